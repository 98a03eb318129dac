"""Messages from a GPU, on one: staged equals host memory to the bit, GPU-aware MPI where there is one, NCCL."""

import shutil
import subprocess
import textwrap

import pytest

from dsgd_mpi.kernels.gpu.device import problem
from dsgd_mpi.net.gpu.cuda import find
from tests.support.jobs import run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(problem() is not None, reason=f"no GPU can be used: {problem()}")]

# Rank 0 prints how arrays travel, and whether all verbs gave on all ranks what they should; or why this is refused.
PROGRAM = """
    import sys
    import cupy
    import numpy as np
    from dsgd_mpi.errors import UsageError
    from dsgd_mpi.net.gpu.staged import StagedHost
    from dsgd_mpi.net.mpi.host import MpiHost
    from dsgd_mpi.net.gpu.policy import connected

    def vector(rank, size=1000):
        return np.random.default_rng(rank).normal(size=size).astype("float32")

    def late(values):                       # on the GPU, but not before a few milliseconds have passed
        spin = cupy.ones(1 << 25, "float32")
        for _ in range(20):
            cupy.sin(spin, out=spin)
        x = cupy.empty(values.size, "float32")
        x.set(values)
        x += 0 * spin[0]
        return x

    def mean(size):
        expected, g = host.mean(vector(me, size)).wait(), late(vector(me, size))
        pending = net.mean(g)
        while not pending.test():
            net.progress()
        found = (pending.wait() + 0).get()
        return np.array_equal(found, expected) if type(net) is StagedHost else np.allclose(found, expected, atol=1e-6)

    def exchange(size):
        theirs = net.exchange(late(vector(me, size)), last - me).wait()
        return np.array_equal((theirs + 0).get(), vector(last - me, size))

    def letters():
        x = late(vector(me))
        net.post(x, (me + 1) % host.size, note=me)
        x += 1
        net.settle()
        letter, = net.collect()
        return np.array_equal((letter.array + 0).get(), vector(int(letter.note)))

    def memory():
        shared = net.share(late(vector(me)))
        shared.add(0, late(vector(me)))
        net.settle()
        found = (shared.read(0) + 0).get()
        net.settle()
        return np.allclose(found, sum(map(vector, range(host.size))) + vector(0), atol=1e-5)

    def broadcast():
        x = late(vector(me))
        net.broadcast(x)
        return np.array_equal((x + 0).get(), vector(0))

    def check():
        sizes = [1, 1000, 3_000_001] * 5
        found = {"means": all(map(mean, sizes)), "exchanges": all(map(exchange, sizes)), "letters": letters(),
                 "memory": memory(), "broadcast": broadcast()}
        return net.library(), [each for each in net.allgather(found) if not all(each.values())] or "all is well"

    host = MpiHost()
    me, last = host.rank, host.size - 1
    try:
        net = connected(host, sys.argv[1], share=True)
        lines = check()
    except UsageError as error:
        lines = ["refused", error.message]
    if me == 0:
        print(*lines, sep="\\n")
    host.close()
"""


@pytest.fixture
def start(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))

    def start(way, ranks):
        status, output, errors = run(program, way, ranks=ranks, limit_s=180)
        assert status == 0, output + errors
        return output.strip().splitlines()
    return start


@pytest.mark.parametrize("ranks", [1, 2])
def test_staged_verbs_give_what_host_memory_gives(start, ranks):
    way, found = start("staged", ranks)
    assert way.endswith("staged through pinned host memory")
    assert found == "all is well"


def test_a_gpu_aware_mpi_gives_what_host_memory_gives(start):
    way, found = start("auto", 2)
    assert found == "all is well"
    if "passed directly to GPU-aware MPI" not in way:
        pytest.skip(way)


def test_nccl_takes_means_or_says_why_it_cannot(start):
    way, found = start("nccl", 1)
    if way == "refused":
        assert "has no NCCL" in found
        pytest.skip(found)
    assert found == "all is well"


def test_nccl_is_refused_for_two_ranks_on_one_gpu(start):
    import cupy
    if cupy.cuda.runtime.getDeviceCount() > 1:
        pytest.skip("two ranks have a GPU each here")
    way, reason = start("nccl", 2)
    assert way == "refused"
    assert "--gpu-comm nccl: " in reason


def test_a_gpu_has_the_uuid_that_nvidia_smi_tells():
    if not shutil.which("nvidia-smi"):
        pytest.skip("there is no nvidia-smi")
    told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    assert f"UUID: {find(0)['uuid']})" in told
