"""On which streams a whole run on a GPU enqueues its work, by a CuPy that keeps CuPy's own books of them."""

import json
import textwrap
from collections import Counter

import numpy as np
import pytest

from dsgd_mpi.kernels.gpu.tools import FORMATS, ROW_BUILDS
from tests.runs.bits import small_data
from tests.support import ROOT
from tests.support.emulation.emulated import COMPILED, COMPILER, FOLDER, library
from tests.support.jobs import run, train

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed, without which no CUDA kernel runs")
PROGRAM = """
    import json, sys
    sys.path.insert(0, {root!r})
    from tests.support import fake_cupy
    fake_cupy.install()
    from dsgd_mpi.kernels.gpu import device
    device.problem = lambda: None
    from dsgd_mpi.net.launch import launched
    from dsgd_mpi.train import main
    try:
        main()
    finally:
        seen = [[*key, times] for key, times in fake_cupy.SEEN.items()]
        kernels = device.stream_on(0).name
        with open(f"{folder}/streams-{{launched().rank}}.json", "w") as file:
            json.dump({{"seen": seen, "graphs": fake_cupy.GRAPHS, "kernels": kernels}}, file)
"""
SHORT = ("--steps", 4, "--batch", 4, "--lr", 0.01, "--warmup", 0, "--log-every", 1, "--threads", 1, "--share-gpu",
         "--gpu-comm", "staged")


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@needs_compiler
@pytest.mark.parametrize(("ranks", "options"), [
    (None, ("--algorithm", "local_sgd", "--set", "slow_momentum=0.5", "--set", "period=2")),
    (2, ("--algorithm", "allreduce", "--set", "bucket_mb=0.05")),
    (2, ("--algorithm", "gossip", "--optimizer", "lamb"))])
def test_all_work_of_a_run_is_on_its_own_streams_and_a_graph_holds_every_launch(tmp_path, ranks, options):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM.format(root=str(ROOT), folder=tmp_path)))
    for vec in (1, *ROW_BUILDS[32]):
        library(FORMATS["float32"], vec)
    words = (*SHORT, *options, "--data", small_data(tmp_path))
    status, output, errors = run(program, *words, "--device", "gpu", "--out", tmp_path / "gpu", ranks=ranks,
                                 limit_s=120, env={COMPILED: FOLDER.name, "XDG_CACHE_HOME": str(tmp_path)})
    assert status == 0, output + errors
    for rank in range(ranks or 1):
        found = json.loads((tmp_path / f"streams-{rank}.json").read_text())
        seen = Counter({(what, stream): times for what, stream, times in found["seen"]})
        assert "null" not in {stream for _, stream in seen}, seen
        for what in ("launch", "capture", "graph", "memset"):
            assert {stream for each, stream in seen if each == what} == {found["kernels"]}, (what, seen)
        assert seen["graph", found["kernels"]] > 3
        assert min(found["graphs"]) > 0
    assert [*tmp_path.glob("**/a-fake-*-kernels*/batch_norm-*")]        # builds were chosen, on these streams too
    status, output, errors = train(*words, "--device", "cpu", "--out", tmp_path / "cpu", ranks=ranks)
    assert status == 0, output + errors
    assert len(set(losses(tmp_path / "gpu"))) == 4
    np.testing.assert_allclose(losses(tmp_path / "gpu"), losses(tmp_path / "cpu"), rtol=2e-3)
