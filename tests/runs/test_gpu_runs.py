"""Whole runs whose ranks believe to have GPUs: who gets which, what is said of it, what is refused and how often."""

import json
import textwrap

import pytest

from tests.support import ROOT
from tests.support.jobs import run

PROGRAM = """
    import os, sys
    sys.path.insert(0, {root!r})
    from tests.support.numpy_device import NumpyDevice
    from dsgd_mpi.kernels import reference
    from dsgd_mpi.kernels.cpu import onednn
    from dsgd_mpi.net.launch import launched
    from dsgd_mpi.net.gpu import policy
    from dsgd_mpi.net.places import cpu, gpu_of

    def find(local):
        index = gpu_of(local, 2)
        return {{**cpu(), "host": "node", "device": "NumPy", "uuid": "GPU-" + str(index), "index": index}}

    def device(place):
        made = NumpyDevice()
        made.place = place
        return made
    policy.cuda.find, policy.cuda.CudaStreams = find, device
    if str(launched().rank) not in os.environ.get("WITHOUT_GPU", ""):
        onednn.OneDNN.name = reference.Reference.name = "cudnn"
    from dsgd_mpi.train import main
    main()
"""


@pytest.fixture
def start(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM.format(root=str(ROOT))))
    return lambda *options, ranks, env=None: run(program, "--steps", 3, "--batch", 4, "--out", tmp_path / "run",
                                                 *options, ranks=ranks, env=env)


def test_the_banner_says_which_gpu_each_rank_has_and_how_its_arrays_travel(start, tmp_path):
    status, output, errors = start(ranks=2)
    assert status == 0, errors
    assert "rank 0 on node: GPU-0, cores " in output
    assert "rank 1 on node: GPU-1, cores " in output
    machine = json.loads((tmp_path / "run" / "env.json").read_text())
    assert [(own["device"], own["uuid"]) for own in machine["ranks"]] == [("NumPy", "GPU-0"), ("NumPy", "GPU-1")]
    # where there is no GPU there is no NCCL, and no MPI can show that it knows one
    assert "staged through pinned host memory (rank 0 on node has no NCCL: " in machine["mpi"]
    assert "; GPU-aware MPI not trusted: rank 0: the trial" in machine["mpi"]


@pytest.mark.parametrize(("options", "without", "message"), [
    ((), "1,2", "ranks [1, 2] have no GPU to compute on, but the others do; use --device cpu, or"),
    ((), "", "3 ranks on node, but only 2 GPUs; start 2 ranks per node, or allow several ranks per GPU by"),
    (("--share-gpu", "--gpu-comm", "nccl"), "", "--gpu-comm nccl: ")])
def test_what_is_refused_is_told_once(start, tmp_path, options, without, message):
    status, _, errors = start(*options, ranks=3, env={"WITHOUT_GPU": without})
    assert status == 2, errors
    assert errors.count("Error") == errors.count(message) == 1, errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()
