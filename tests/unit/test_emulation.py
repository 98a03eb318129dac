"""The stand-in for a GPU: it finds what a GPU would not forgive, and runs launches as large as an H100's."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from dsgd_mpi.kernels.api import BatchNorm
from dsgd_mpi.kernels.gpu import tools
from dsgd_mpi.kernels.gpu.cudnn import CuDNN
from dsgd_mpi.kernels.gpu.tools import CHANNELS_A_THREAD, FORMATS
from dsgd_mpi.nn import resnet
from dsgd_mpi.optim.sgd import Sgd
from tests.support import ROOT
from tests.support.emulation.emulated import COMPILER, Emulated, library
from tests.unit import test_kernels as laws

pytestmark = pytest.mark.skipif(not COMPILER, reason="g++ is not installed: the kernels cannot be run on this CPU")


# what is found

START = """
import ctypes
import numpy as np
from dsgd_mpi.kernels.gpu.tools import FORMATS
from tests.support.emulation import emulated

def moved(x, elements):
    return np.ctypeslib.as_array((ctypes.c_float * x.size).from_address(x.ctypes.data + 4 * elements))

def run(name, *arguments, vec=1, grid=(4,), block=(256,), fence="behind", move=0):
    device = emulated.Emulated(FORMATS["float32"], fence=fence)
    x, y = (device.zeros((1024,), np.float32) for _ in range(2))
    device.kernel(name, vec, grid, block, moved(x, move), y, *arguments)()
"""
NARROWED = "run('narrowed', np.uint32({}), np.int32(1), np.int32(1), {})"
APPLIED = "run('batch_norm_apply', None, None, None, None, None, np.int32(0), np.int32(0), np.int32(0), {})"
WAITING = """
emulated.source = lambda: 'extern "C" __global__ void waits(float*, float*) { if (threadIdx.x < 200) __syncthreads(); }'
run("waits")
"""


def ended(program, **environment):
    """The signal that ends a process which gives the emulation something to do, and its words."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", START + program], env=environment, capture_output=True, text=True,
                          timeout=60)
    assert done.returncode <= 0, done.stderr
    return -done.returncode, done.stderr


@pytest.mark.parametrize(("program", "signals", "words"), [
    (NARROWED.format(1024, ""), {0}, ""),
    (NARROWED.format(1025, ""), {signal.SIGSEGV}, ""),
    (NARROWED.format(1024, "fence='before'"), {0}, ""),
    (NARROWED.format(1024, "fence='before', move=-1"), {signal.SIGSEGV}, ""),
    ("run('accumulate', np.uint32(255), vec=4)", {0}, ""),
    ("run('accumulate', np.uint32(255), vec=4, move=1)", {signal.SIGILL, signal.SIGTRAP}, ""),
    ("run('accumulate', np.uint32(1023), vec=1, move=1)", {0}, ""),
    (NARROWED.format(0, "block=(1024,)"), {0}, ""),
    (NARROWED.format(0, "block=(1025,)"), {signal.SIGABRT}, "blocks of 1025 x 1 x 1 threads"),
    (NARROWED.format(0, "block=(1, 1, 65)"), {signal.SIGABRT}, "blocks of 1 x 1 x 65 threads"),
    (NARROWED.format(0, "grid=(0,)"), {signal.SIGABRT}, "cannot launch 0 x 1 x 1 blocks"),
    (NARROWED.format(0, "grid=(1, 65535), block=(1,)"), {0}, ""),
    (NARROWED.format(0, "grid=(1, 65536)"), {signal.SIGABRT}, "cannot launch 1 x 65536 x 1 blocks"),
    (NARROWED.format(0, "grid=(1, 1, 65536)"), {signal.SIGABRT}, "cannot launch 1 x 1 x 65536 blocks"),
    (APPLIED.format("block=(32, 16)"), {0}, ""),
    (APPLIED.format("block=(32, 17)"), {signal.SIGABRT}, "32 x 17 x 1 threads, of which there may be 512")])
def test_what_would_be_an_error_on_a_gpu_ends_the_process(program, signals, words):
    for vec in (1, 4):
        library(FORMATS["float32"], vec)
    signalled, errors = ended(program)
    assert signalled in signals, errors
    assert words in errors


def test_threads_that_do_not_all_come_to_a_barrier_end_the_process():
    assert ended(WAITING) == (signal.SIGABRT, "56 of 256 threads ended while others wait at barrier 0\n")


def test_no_kernel_touches_what_lies_before_its_arrays():
    """In the other tests it is what lies behind."""
    losses = []
    for fence in ("before", "behind"):
        model = resnet("resnet8", 10, (12, 12, 3), 4, CuDNN("float16", lambda form, at=fence: Emulated(form, fence=at)))
        draw = np.random.default_rng(0)
        images, labels = draw.standard_normal((4, 12, 12, 3)).astype("float32"), draw.integers(0, 10, 4)
        sgd = Sgd().start(model.layout, model.flat, model.kernels)
        for _ in range(2):
            losses.append(model.loss_and_gradient(images, labels))
            sgd.update(model.flat, model.flat_gradient, 0.1)
        losses.append(float(model.predict(images).sum()))
    assert losses[:3] == losses[3:]


# as large as an H100's: two blocks for each of its 132 multiprocessors

class H100(Emulated):
    """`grids`: of the launches of each kernel, with the elements that a thread takes at a time."""

    def __init__(self, form):
        super().__init__(form, processors=132)
        self.grids = {}

    def kernel(self, name, vec, grid, block, *arguments):
        self.grids[name] = (vec, grid, block)
        return super().kernel(name, vec, grid, block, *arguments)


class Slabs(CuDNN):
    """As many blocks, however few the rows: most have none."""

    def rows(self, rows, channels, vec):
        (chunks, _), block = super().rows(rows, channels, vec)
        return (chunks, 264 // chunks), block


def assert_batch_norm(kernels, dtype, shape, relu, add, launched):
    k = kernels(dtype, device=H100)
    k.device.put(np.float32([1, 1, 0, 0]), k.scaling)           # the loss is not scaled: each operation is its own
    laws.test_an_operation_and_its_gradients_agree_with_the_reference(k, BatchNorm(relu), shape, add)
    over_rows = {"batch_norm_statistics", "batch_norm_apply", "batch_norm_gradient_statistics", "batch_norm_gradient"}
    assert {name: k.device.grids[name] for name in over_rows} == dict.fromkeys(over_rows, launched)


@pytest.mark.parametrize(("shape", "launched"), [
    ((265, 32, 32, 3), (1, (1, 264), (4, 128))),                # every fourth lane idle; 8 rows a thread, or 9
    ((33, 16, 32, 33), (1, (2, 132), (32, 16)))])               # all lanes but one of the second chunk idle
def test_batch_norm_in_as_many_blocks_as_on_an_h100(shape, launched):
    assert_batch_norm(CuDNN, "float32", shape, True, False, launched)


@pytest.mark.parametrize(("dtype", "shape", "launched"), [
    ("bfloat16", (5, 28, 32, 128), (4, (1, 264), (32, 16))), ("float32", (1, 25, 25, 193), (1, (7, 37), (32, 16)))])
def test_batch_norm_in_as_many_blocks_of_few_rows(dtype, shape, launched, monkeypatch):
    monkeypatch.setattr(tools, "ROWS_A_THREAD", 1)
    assert_batch_norm(CuDNN, dtype, shape, True, True, launched)


@pytest.mark.parametrize("shape", [(2, 7, 7, 2048), (1, 4, 4, 4 * 32 * 265)])
def test_batch_norm_with_more_channels_than_blocks_at_a_time(shape):
    chunks = -(-shape[-1] // (32 * CHANNELS_A_THREAD))
    assert_batch_norm(CuDNN, "float32", shape, False, False, (4, (chunks, 1), (32, 16)))


@pytest.mark.parametrize(("shape", "launched"), [
    ((1, 1, 1, 8), (4, (1, 264), (2, 256))), ((5, 1, 1, 3), (1, (1, 264), (4, 128))),
    ((1, 9, 7, 33), (1, (2, 132), (32, 16))), ((1, 3, 5, 512), (4, (4, 66), (32, 16)))])
def test_batch_norm_where_most_blocks_have_no_row(shape, launched):
    assert_batch_norm(Slabs, "float32", shape, True, True, launched)
