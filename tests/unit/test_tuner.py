"""Timing of alternatives on a device told by a table, and what is remembered of it."""

import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from types import SimpleNamespace

import numpy as np
import pytest

from dsgd_mpi.kernels.gpu import device as device_module
from dsgd_mpi.kernels.gpu import tuner
from dsgd_mpi.kernels.gpu.device import Gpu
from dsgd_mpi.kernels.gpu.tuner import Choices, NothingRuns, fastest, tuned
from tests.support.timed_device import Failed, Timed


def doing(device, seconds):
    return lambda: lambda: device.work(seconds)


def raising(error):
    def prepare():
        raise error
    return prepare


def test_the_fastest_by_the_shortest_of_several_replays_is_chosen_and_the_first_of_equals():
    device = Timed()
    times = {"a": 0.3, "b": 0.1, "c": 0.1, "d": 0.2}
    assert fastest(device, ((name, doing(device, took)) for name, took in times.items())) == "b"


def test_so_many_are_timed_as_asked_for_beside_those_that_cannot():
    device, seen = Timed(), []

    def candidates():
        for number, took in enumerate([3, None, 2, 1, 0]):
            seen.append(number)
            yield f"{number}", raising(ValueError("barred")) if took is None else doing(device, took)
    assert fastest(device, candidates(), most=3) == "3"
    assert seen == [0, 1, 2, 3, 4]          # the last is looked at and left


LAUNCH_FAILS = {
    "while it is recorded": lambda device: raising(RuntimeError("CUDNN_STATUS_EXECUTION_FAILED")),
    "what it does cannot be recorded": lambda device: lambda: device.work("broken"),
}


@pytest.mark.parametrize("error", [RuntimeError("no engine"), ValueError("barred"), MemoryError("2 GiB")], ids=repr)
def test_a_candidate_that_cannot_be_prepared_is_passed_over(error):
    device = Timed()
    assert fastest(device, [("a", raising(error)), ("b", doing(device, 1)), ("c", raising(error))]) == "b"


@pytest.mark.parametrize("how", LAUNCH_FAILS)
def test_a_candidate_that_cannot_be_recorded_is_passed_over_and_nothing_is_recorded_any_more(how):
    device = Timed()
    bad = LAUNCH_FAILS[how](device)
    assert fastest(device, [("a", lambda: bad), ("b", doing(device, 1))]) == "b"
    assert device.recording is None


@pytest.mark.parametrize("error", [KeyError("a mistake of ours"), KeyboardInterrupt()], ids=repr)
def test_any_other_error_is_raised_and_nothing_is_recorded_any_more(error):
    device = Timed()
    with pytest.raises(type(error)):
        fastest(device, [("a", lambda: raising(error)), ("b", doing(device, 1))])
    assert device.recording is None


def test_a_device_that_fails_ends_it_with_its_own_words():
    device = Timed()
    with pytest.raises(Failed, match="cudaErrorIllegalAddress"):
        fastest(device, [("a", doing(device, 1)), ("b", doing(device, "fault")), ("c", doing(device, 1))])


def test_where_nothing_runs_the_last_reason_is_given():
    with pytest.raises(NothingRuns, match="no candidate can be run"):
        fastest(Timed(), [])
    with pytest.raises(NothingRuns, match="too old"):
        fastest(Timed(), [("a", raising(ValueError("x"))), ("b", raising(RuntimeError("too old")))])


def test_what_a_candidate_holds_is_free_before_the_next_is_prepared():
    device, spaces = Timed(), []

    def prepare():
        assert all(space() is None for space in spaces)
        space = np.empty(10)
        spaces.append(weakref.ref(space))
        return lambda kept=space: device.work(1)

    def failing():
        def launch(kept):
            raise RuntimeError("it failed")
        return partial(launch, prepare())
    assert fastest(device, [("a", prepare), ("b", failing), ("c", failing), ("d", prepare)]) == "a"
    assert len(spaces) == 4
    assert all(space() is None for space in spaces)


def test_a_gpu_is_timed_by_events_and_only_once_its_clocks_are_up(monkeypatch):
    monkeypatch.setattr(device_module, "WARMING_S", 0.02)
    gpu, seen = object.__new__(Gpu), []
    event = SimpleNamespace(record=lambda stream: seen.append("event"), synchronize=lambda: seen.append("wait"))
    gpu.__dict__["cupy"] = SimpleNamespace(cuda=SimpleNamespace(Event=lambda: event,
                                                                get_elapsed_time=lambda start, stop: 250.0))
    gpu.__dict__["stream"] = SimpleNamespace(synchronize=lambda: seen.append("wait"))
    begin = time.perf_counter()
    assert gpu.seconds(lambda: seen.append("replay")) == 0.25
    assert time.perf_counter() - begin > 0.02
    assert seen[-4:] == ["event", "replay", "event", "wait"]
    assert seen[:-4] == ["replay", "wait"] * (len(seen) // 2 - 2) != []
    seen.clear()
    gpu.seconds(lambda: seen.append("replay"))
    assert seen == ["event", "replay", "event", "wait"]


# what is remembered

@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_choices_are_kept_for_each_device_and_version(monkeypatch):
    one, other = Choices("NVIDIA H200", "92800"), Choices("NVIDIA H200", "92800")
    assert one.agreed("forward-1", "eng1") == "eng1"
    assert other.agreed("forward-1", "eng2") == "eng1"          # another rank, which was later
    assert other.agreed("forward-2", "eng2") == "eng2"
    again = Choices("NVIDIA H200", "92800")
    assert (again.get("forward-1"), again.get("forward-2"), again.get("data-1")) == ("eng1", "eng2", None)
    assert sorted(path.name for path in again.folder.iterdir()) == ["forward-1", "forward-2"]
    assert Choices("NVIDIA H200", "90000").get("forward-1") is None
    again.forget("forward-1")
    assert again.agreed("forward-1", "eng3") == "eng3"
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    nowhere = Choices("x")                  # what cannot be written is timed again
    assert (nowhere.agreed("forward-1", "eng1"), nowhere.get("forward-1")) == ("eng1", None)


def test_ranks_that_time_a_shape_at_the_same_time_agree():
    together = Barrier(8)

    def rank(number):
        choices = Choices("gpu")

        def agreed(key):
            together.wait(30)
            return choices.agreed(f"forward-{key}", f"eng{number}")
        return [agreed(key) for key in range(50)]
    with ThreadPoolExecutor(8) as ranks:
        found = list(ranks.map(rank, range(8)))
    assert all(each == found[0] for each in found)


def test_a_choice_is_found_once_and_tried_before_it_is_used():
    tried, works = [], {"a", "b"}

    def choice(found):
        tried.clear()
        return Choices("gpu").choice("key", lambda name: tried.append(name) or name in works, lambda: found)
    assert choice("a") == "a"
    assert choice("b") == "a"               # known
    assert tried == ["a"]
    works.remove("a")
    assert choice("b") == "b"               # what was known does not work here
    assert tried == ["a", "b"]
    assert Choices("gpu").get("key") == "b"


def test_what_does_not_work_after_all_is_told():
    with pytest.raises(NothingRuns, match="eng1 ran when it was timed"):
        Choices("gpu").choice("key", lambda name: False, lambda: "eng1")


@pytest.mark.parametrize(("works", "used"), [({"theirs", "ours"}, "theirs"), ({"ours"}, "ours")])
def test_another_process_that_was_first_is_followed_where_that_works(works, used):
    choices = Choices("gpu")

    def find():
        Choices("gpu").agreed("key", "theirs")
        return "ours"
    assert choices.choice("key", works.__contains__, find) == used


def test_the_chosen_launch_is_prepared_without_timing_the_second_time():
    device, ran = Timed(), []
    candidates = {"slow": doing(device, 2), "fast": lambda: lambda: device.work(1) if device.recording is not None
                  else ran.append("fast")}
    for _ in range(2):
        tuned(device, Choices("gpu"), "rows-1", candidates)()
        assert device.replays == 2 * tuner.REPLAYS
    assert ran == ["fast"] * 3              # before it was recorded, and twice when it was chosen
    launch = tuned(device, Choices("gpu"), "rows-1", {"other": doing(device, 1)})       # what was known is gone
    assert device.replays == 3 * tuner.REPLAYS
    device.begin()
    launch()
    assert device.end()
