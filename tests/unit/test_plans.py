"""cuDNN's plans: how one is chosen, on a cuDNN told by a table; and that the real one, without a GPU, has them."""

import sys
from types import SimpleNamespace

import pytest

from dsgd_mpi.kernels.gpu.device import Gpu
from dsgd_mpi.kernels.gpu.plans import CANDIDATES, WORKSPACE_BYTES, Geometry, Plans
from dsgd_mpi.kernels.gpu.tools import Tools
from dsgd_mpi.kernels.gpu.tuner import REPLAYS, NothingRuns
from tests.support.cudnn_table import Cudnn, Plan, cudnnGraphNotSupportedError
from tests.support.cudnn_without_gpu import answers, missing
from tests.support.timed_device import Failed, Timed

G = Geometry(4, 8, 8, 16, 16, 3, 1, 1, 8, 8)
MB = 1 << 20


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def made(monkeypatch):
    """Makes Plans on a new device with a cuDNN of these plans."""
    def make(recommended, fallback=(), room=1 << 34):
        device = Timed(room)
        cudnn = Cudnn(device, A=recommended, FALLBACK=fallback)
        monkeypatch.setitem(sys.modules, "cudnn", cudnn)
        kept = []

        def workspace(size):
            kept.append(device.empty((size,), None))
            return kept[-1]
        return Plans(device, "bfloat16", False, workspace), device, cudnn
    return make


def arrays(first=0):
    return tuple(SimpleNamespace(data=SimpleNamespace(ptr=first + number)) for number in range(3))


def run(launch, device):
    device.begin()
    launch()
    device.end()()


def test_the_fastest_plan_is_timed_once_and_found_again(made):
    table = [Plan("a", 5), Plan("b", 3), Plan("c", 4)]
    plans, device, cudnn = made(table)
    run(plans.step("forward", G, *arrays()), device)
    assert cudnn.ran[-1] == ("b", 0, 1, 2)
    assert cudnn.built == ["a", "b", "c", "b"]
    plans, device, cudnn = made(table)      # another process
    run(plans.step("forward", G, *arrays()), device)
    assert (cudnn.built, cudnn.ran) == (["b"], [("b", 0, 1, 2)])


def test_so_many_plans_are_timed_of_those_that_can_be_built(made):
    cannot = cudnnGraphNotSupportedError("Deselecting execution plan")
    table = [Plan(f"{number}", 20 - number, build=cannot if number % 2 else None) for number in range(20)]
    plans, _, cudnn = made(table)
    plans.step("forward", G, *arrays())
    assert cudnn.built == [*(f"{2 * number}" for number in range(CANDIDATES)), f"{2 * CANDIDATES - 2}"]


def test_convolutions_of_one_geometry_share_a_query_and_a_plan_but_not_arrays(made):
    plans, device, cudnn = made([Plan("a", 2), Plan("b", 1, 64)])
    launches = [plans.step("forward", G, *arrays(first)) for first in (0, 10, 20)]
    queries = len(cudnn.asked)
    cudnn.ran.clear()
    for launch in launches:
        run(launch, device)
    assert cudnn.ran == [("b", 0, 1, 2), ("b", 10, 11, 12), ("b", 20, 21, 22)]
    assert (queries, cudnn.asked) == (2, ["A", "A"])        # one to time, one that is kept
    plans.step("data", G, *arrays())
    plans.step("forward", G._replace(n=5), *arrays())
    assert len(cudnn.asked) == 6


@pytest.mark.parametrize("recommended", [cudnnGraphNotSupportedError("No valid engine configs"), [],
                                         [Plan("a", build=cudnnGraphNotSupportedError("Deselecting"))]], ids=str)
def test_plans_for_any_shape_are_asked_for_only_where_none_that_is_recommended_runs(made, recommended):
    for _ in range(2):                      # the second time it is known
        plans, device, cudnn = made(recommended, [Plan("slow", 9), Plan("slower", 10)])
        run(plans.step("forward", G, *arrays()), device)
        assert cudnn.ran[-1][0] == "slow"
    plans, _, cudnn = made([Plan("a"), Plan("b", 2)], [Plan("slow", 0)])
    plans.step("data", G, *arrays())
    assert set(cudnn.asked) == {"A"}


REFUSALS = {
    "not supported": {"build": cudnnGraphNotSupportedError("No execution plans support the graph.")},
    "barred": {"build": ValueError("plan 0 ('a') is excluded by deselect_engines()/a note filter")},
    "not built": {"build": RuntimeError("CUDNN_STATUS_INTERNAL_ERROR")},
    "size unknown": {"size": RuntimeError("CUDNN_STATUS_BAD_PARAM")},
    "too much workspace": {"workspace": WORKSPACE_BYTES + 1},
    "no memory": {"workspace": 600 * MB},
    "cuDNN's memory": {"build": MemoryError("std::bad_alloc")},
    "not executed": {"run": RuntimeError("CUDNN_STATUS_EXECUTION_FAILED")},
    "not supported when executed": {"run": cudnnGraphNotSupportedError("CUDNN_STATUS_NOT_SUPPORTED")},
    "missing buffer": {"run": ValueError("the variant pack is missing a buffer")},
    "not recorded": {"run": "broken"},
}


def bad(how):
    return Plan("bad", 0, **{"workspace": 0, **REFUSALS[how]})


def room(how):
    return {"room": 500 * MB} if how == "no memory" else {}


@pytest.mark.parametrize("how", REFUSALS)
def test_a_plan_that_fails_is_passed_over_whatever_it_raises(made, how):
    plans, device, cudnn = made([bad(how), Plan("good", 1)], **room(how))
    run(plans.step("weights", G, *arrays()), device)
    assert cudnn.ran[-1][0] == "good"
    assert device.recording is None


@pytest.mark.parametrize("how", REFUSALS)
def test_if_all_plans_fail_our_own_convolution_serves_which_is_said_once(made, how, caplog):
    plans, device, _ = made([bad(how)], **room(how))
    tools = Tools("bfloat16", device=lambda form: device)
    tools.__dict__["plans"] = plans
    for direction in ("forward", "data"):
        assert tools.planned(direction, G, *arrays()) is None
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("cuDNN has no plan for a convolution (forward, Geometry(n=4,")
    with pytest.raises(NothingRuns):
        plans.step("forward", G, *arrays())


def test_a_device_that_fails_ends_the_run_with_its_own_words(made, caplog):
    plans, device, cudnn = made([Plan("a"), Plan("bad", run="fault"), Plan("c")], [Plan("slow")])
    tools = Tools("bfloat16", device=lambda form: device)
    tools.__dict__["plans"] = plans
    with pytest.raises(Failed, match="cudaErrorIllegalAddress"):
        tools.planned("forward", G, *arrays())
    assert cudnn.asked == ["A"]
    assert cudnn.built == ["a", "bad"]
    assert not caplog.messages


@pytest.mark.parametrize("error", [RuntimeError("CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER"),
                                   cudnnGraphNotSupportedError("cuLibraryLoadData")], ids=repr)
@pytest.mark.parametrize("known", [True, False])
def test_a_device_that_has_failed_is_not_taken_for_a_cudnn_that_refuses(made, error, known):
    """Whatever cuDNN raises then, CUDA says what it was."""
    if known:
        made([Plan("a")])[0].step("forward", G, *arrays())
    plans, device, _ = made([Plan("a", build=error)], [Plan("slow")])
    device.failed = Failed("cudaErrorLaunchFailure")
    with pytest.raises(Failed, match="cudaErrorLaunchFailure"):
        plans.step("forward", G, *arrays())
    assert [path.read_text() for path in plans.choices.folder.glob("*")] == ["a"] * known   # what is known stays
    plans, device, _ = made(error)
    device.failed = Failed("cudaErrorLaunchFailure")
    with pytest.raises(Failed, match="cudaErrorLaunchFailure"):
        plans.step("forward", G, *arrays())


class Board(Gpu):
    """A GPU as far as it is asked before the first plan."""

    versions, stream, wait = Timed.versions, Timed.stream, Timed.wait
    recording = failed = None

    def __init__(self, form):
        pass


def test_without_a_cudnn_that_works_there_are_no_plans_which_is_said_once(made, monkeypatch, caplog):
    def refuse(self):
        raise RuntimeError("CUDNN_STATUS_NOT_INITIALIZED")
    made([])
    monkeypatch.setattr(Cudnn, "create_handle", refuse)
    tools = Tools("bfloat16", device=Board)
    for _ in range(2):
        assert tools.planned("forward", G, *arrays()) is None
    assert len(caplog.messages) == 1
    assert "cuDNN cannot be used (CUDNN_STATUS_NOT_INITIALIZED)" in caplog.messages[0]
    monkeypatch.setattr(Board, "failed", Failed("cudaErrorECCUncorrectable"))
    with pytest.raises(Failed, match="cudaErrorECCUncorrectable"):
        Tools("bfloat16", device=Board).planned("forward", G, *arrays())
    assert len(caplog.messages) == 1


def test_of_the_plans_that_were_tried_nothing_is_kept_but_the_workspace_of_the_fastest(made):
    plans, device, _ = made([Plan("a", 3, 400 * MB), Plan("b", 1, 10 * MB), Plan("c", 2, 900 * MB)], room=950 * MB)
    plans.step("forward", G, *arrays())
    assert device.held == 10 * MB
    assert device.most == 900 * MB
    assert device.released == [0]


def test_no_room_for_the_workspace_of_the_plan_that_was_chosen_is_a_lack_of_memory(made):
    made([Plan("a", 1, 600 * MB), Plan("b", 2)])[0].step("forward", G, *arrays())
    plans, *_ = made([Plan("a", 1, 600 * MB), Plan("b", 2)], room=500 * MB)
    with pytest.raises(MemoryError):        # and no other plan: ranks would round differently
        plans.step("forward", G, *arrays())


def test_a_plan_that_is_known_but_gone_is_chosen_anew(made):
    made([Plan("a", 1), Plan("b", 2)])[0].step("forward", G, *arrays())
    for table in ([Plan("b", 2), Plan("c", 1)], [Plan("a", 0, build=RuntimeError("not any more")), Plan("c", 1)]):
        plans, device, cudnn = made(table)
        run(plans.step("forward", G, *arrays()), device)
        assert cudnn.ran[-1][0] == "c"


def test_what_another_rank_chose_first_is_taken(made):
    plans, device, cudnn = made([Plan("a", 1), Plan("b", 2)])
    timed = plans.fastest

    def slow(*arguments):
        found = timed(*arguments)
        plans.choices.agreed("forward-bfloat16-fast-" + "-".join(map(str, G)), "b")
        return found
    plans.fastest = slow
    run(plans.step("forward", G, *arrays()), device)
    assert cudnn.ran[-1][0] == "b"


def test_choices_are_kept_for_each_device_driver_cudnn_and_frontend(made, monkeypatch):
    folders = []

    def note():
        folders.append(made([Plan("a")])[0].choices.folder.name)
    note()
    assert folders == ["NVIDIA-H200-sm90-driver13000-cudnn92800-frontend1.28.0"]
    for place, name in enumerate(("another GPU", "sm100", "driver14000")):
        versions = list(Timed.versions)
        versions[place] = name
        with monkeypatch.context() as patched:
            patched.setattr(Timed, "versions", versions)
            note()
    with monkeypatch.context() as patched:
        patched.setattr(Cudnn, "backend_version", lambda self: 90000)
        note()
    with monkeypatch.context() as patched:
        patched.setattr(Cudnn, "__version__", "1.16.0")
        note()
    assert len(set(folders)) == 6


# the real one

FORMATS = ("bfloat16", False), ("float16", False), ("float32", False), ("float32", True)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """What cuDNN answers to all questions below: all in one process, since it is slow to begin."""
    if reason := missing():
        pytest.skip(reason)
    asked = [("errors",), ("chosen",), ("built", "data"), ("built", "weights"),
             *(("unsupported", *of) for of in FORMATS)]
    return answers(asked, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(("dtype", "exact"), FORMATS)
def test_cudnn_has_a_plan_for_every_convolution_of_resnet50_on_an_h200(real, dtype, exact):
    """Without rounding, that for the gradient of the weights is a precompiled one, which only the whole cuDNN has."""
    without = real["unsupported", dtype, exact]
    assert {direction for direction, *_ in without} == ({"weights"} if exact else set())


def test_what_cudnn_raises_is_taken_for_a_refusal(real):
    errors = real["errors",]
    assert {what: (kind, refused) for what, (kind, refused, _) in errors.items()} == {
        "a plan that would round": ("cudnnGraphNotSupportedError", True),
        "too much workspace": ("cudnnGraphNotSupportedError", True),
        "no handle": ("RuntimeError", True),
        "no device": ("RuntimeError", True),
        "an array that is missing": ("ValueError", True),
        "sizes that disagree": ("RuntimeError", True)}
    assert "Deselecting" in errors["a plan that would round"][2]
    assert "workspace" in errors["too much workspace"][2]


def test_of_its_real_plans_the_fastest_is_built_and_found_again(real):
    chosen = real["chosen",]
    assert chosen["key"] == "forward-bfloat16-fast-8-14-14-64-64-3-1-1-14-14"
    assert chosen["found"] in chosen["plans"][1:]           # the first that could be built was slower
    assert len(set(chosen["plans"])) == len(chosen["plans"])
    assert chosen["replays"] == 2 * REPLAYS
    assert all(size >= 0 for size in chosen["sizes"])


@pytest.mark.parametrize("direction", ["data", "weights"])
def test_the_first_of_its_real_plans_can_be_built(real, direction):
    assert real["built", direction] is None
