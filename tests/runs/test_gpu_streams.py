"""On which streams a whole run on a GPU enqueues its work, by a CuPy that keeps CuPy's own books of them."""

import json
import shutil
import textwrap
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from dsgd_mpi.kernels.gpu.tools import FORMATS, ROW_BUILDS
from tests.support import ROOT
from tests.support.emulation.emulated import COMPILER, library
from tests.support.jobs import run, train

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed, without which no CUDA kernel runs")
PROGRAM = """
    import json, sys
    sys.path.insert(0, {root!r})
    from tests.support import fake_cupy
    fake_cupy.install()
    from dsgd_mpi.kernels.gpu import device
    from dsgd_mpi.net.gpu import cuda
    device.problem = lambda: None
    cuda.identity = lambda index: "of the fake"
    {fault}
    if not {tuned}:
        from dsgd_mpi.kernels.gpu.tools import Tools
        Tools.choices = None
    from dsgd_mpi.net.launch import launched
    from dsgd_mpi.train import main
    try:
        main()
    finally:
        seen = [[*key, times] for key, times in fake_cupy.SEEN.items()]
        kernels = device.stream_on(0).name
        with open(f"{folder}/streams-{{launched().rank}}.json", "w") as file:
            json.dump({{"seen": seen, "graphs": fake_cupy.GRAPHS, "kernels": kernels, "log": fake_cupy.LOG}}, file)
"""
STEPS = 6
SHORT = ("--steps", STEPS, "--batch", 4, "--lr", 0.01, "--warmup", 0, "--log-every", 1, "--threads", 1, "--share-gpu",
         "--gpu-comm", "staged")


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def start(tmp_path):
    """Trains on the fake: its losses, and what each rank did on its streams."""
    def start(*words, ranks, early=False, fault="pass", tuned=False):
        program = tmp_path / "program.py"
        program.write_text(textwrap.dedent(PROGRAM.format(root=str(ROOT), folder=tmp_path, fault=fault, tuned=tuned)))
        for vec in (1, *ROW_BUILDS[32]):
            library(FORMATS["float32"], vec)
        status, output, errors = run(program, *words, "--device", "gpu", "--out", tmp_path / "gpu", ranks=ranks,
                                     limit_s=120, env={"EAGER_COPIES": "1" if early else "",
                                                       "XDG_CACHE_HOME": str(tmp_path)})
        assert status == 0, output + errors
        found = [json.loads((tmp_path / f"streams-{rank}.json").read_text()) for rank in range(ranks or 1)]
        return losses(tmp_path / "gpu"), found
    return start


@pytest.fixture
def compared(tmp_path, start, small):
    """The same, after a comparison with the CPU's losses."""
    def compared(*options, ranks, early=False):
        words = (*SHORT, *options, *small)
        values, found = start(*words, ranks=ranks, early=early)
        status, output, errors = train(*words, "--device", "cpu", "--out", tmp_path / "cpu", ranks=ranks)
        assert status == 0, output + errors
        assert len(set(values)) == STEPS
        np.testing.assert_allclose(values, losses(tmp_path / "cpu"), rtol=2e-3)
        return found
    return compared


@needs_compiler
@pytest.mark.parametrize(("ranks", "early", "options"), [
    (None, True, ("--algorithm", "local_sgd", "--set", "slow_momentum=0.5", "--set", "period=2")),
    (2, False, ("--algorithm", "allreduce", "--set", "bucket_mb=0.05")),
    pytest.param(2, True, ("--algorithm", "gossip", "--optimizer", "lamb"), marks=pytest.mark.soak)])
def test_all_work_of_a_run_is_on_its_own_streams_and_a_graph_holds_every_launch(compared, ranks, options, early):
    for found in compared(*options, ranks=ranks, early=early):
        seen = Counter({(what, stream): times for what, stream, times in found["seen"]})
        assert "null" not in {stream for _, stream in seen}, seen
        for what in ("launch", "capture", "graph", "memset"):
            assert {stream for each, stream in seen if each == what} == {found["kernels"]}, (what, seen)
        assert seen["graph", found["kernels"]] > 3
        assert min(found["graphs"]) > 0


@needs_compiler
def test_builds_of_the_kernels_are_timed_on_the_stream_of_the_kernels(tmp_path, start, small):
    _, (found,) = start(*SHORT, *small, ranks=None, tuned=True)
    assert [*tmp_path.glob("**/a-fake-*-kernels*/batch_norm-*")]
    assert {stream for what, stream, _ in found["seen"] if what in ("launch", "capture", "graph")} == {found["kernels"]}


def steps_of(found):
    """What the host did in each step, from one launch of the forward and backward pass to the next."""
    log = [tuple(each) for each in found["log"] if each[0] in ("graph", "launch", "copy in", "copy out", "host waits")]
    passes = [place for place, (what, *_) in enumerate(log) if what == "graph"][:2 * (STEPS - 1):2]
    return [log[start:stop] for start, stop in pairwise(passes)]


@needs_compiler
@pytest.mark.parametrize("early", [False, True])
def test_the_host_is_a_step_ahead_and_images_are_copied_beside_the_kernels(compared, early):
    found, = compared("--algorithm", "allreduce", "--augment", "--eval-every", 1000, ranks=None, early=early)
    kernels, (_, *steps) = found["kernels"], steps_of(found)    # in the first the update is not a graph yet
    beside = {stream for step in steps for what, stream, _ in step} - {kernels}
    assert len(steps) == STEPS - 3
    assert len(beside) == 1
    for step in steps:
        assert step == [
            ("graph", kernels, 0),          # forward and backward
            ("copy out", kernels, 4),       # its loss
            ("host waits", kernels, 2),     # for that of the step before: its update and this pass are behind it
            *[("copy in", *beside, size) for size in (4 * 28 * 28, 2 * 4, 4 * 3 * 4)],      # of the next step
            ("copy in", kernels, 4),        # the rate
            ("graph", kernels, 0),          # the update
            ("launch", kernels, 0),         # bytes to floats, of the next step
            ("copy in", kernels, 3 * 4 * 4)]    # its labels: two of each image, and the share of the first


@pytest.mark.soak
@needs_compiler
def test_between_two_averages_the_host_is_a_step_ahead(compared):
    for found in compared("--algorithm", "local_sgd", "--set", "period=3", "--eval-every", 1000, ranks=2):
        waits = [[number for what, stream, number in step if what == "host waits" and stream == found["kernels"]]
                 for step in steps_of(found)]
        # in step 3, after its update, an average: the loss is waited for at once, while messages progress
        assert waits == [[1], [2, 1], [], [2]]


FAULTS = {
    "kernels do not wait for copies": (False, """
    wait = fake_cupy.Stream.wait_event
    fake_cupy.Stream.wait_event = lambda self, event: None if self.has_kernels else wait(self, event)"""),
    "copies do not wait for kernels": (True, """
    wait = fake_cupy.Stream.wait_event
    fake_cupy.Stream.wait_event = lambda self, event: wait(self, event) if self.has_kernels else None"""),
    "a batch is overwritten when the next is asked for": (False, """
    import time
    from dsgd_mpi.data import loader
    from dsgd_mpi.training.record import Record
    settle, loader.LATE = Record.settle, 0
    Record.settle = lambda self: (time.sleep(0.05), settle(self))""")}


@pytest.mark.soak
@needs_compiler
@pytest.mark.parametrize("name", FAULTS)
def test_no_such_fault_would_go_unnoticed(tmp_path, start, small, name):
    """The test of the tests."""
    early, fault = FAULTS[name]
    words = (*SHORT, "--algorithm", "allreduce", "--augment", *small)
    wrong, _ = start(*words, ranks=None, early=early, fault=fault.strip())
    shutil.rmtree(tmp_path / "gpu")
    right, _ = start(*words, ranks=None, early=early)
    assert not np.allclose(wrong, right, rtol=2e-3)
