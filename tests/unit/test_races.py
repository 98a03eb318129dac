"""The CUDA kernels under a race detector, their blocks and threads running at once as on a GPU."""

import subprocess

import numpy as np
import pytest

from dsgd_mpi.arrays.flat import Layout
from dsgd_mpi.data.augment import Transform
from dsgd_mpi.kernels.api import (
    Arrays,
    AveragePool,
    BatchNorm,
    Convolution,
    FoldedConvolution,
    Linear,
    MaxPool,
    Subsample,
)
from dsgd_mpi.kernels.gpu import tools
from dsgd_mpi.kernels.gpu.cudnn import CuDNN
from dsgd_mpi.kernels.gpu.device import SOURCES, source
from dsgd_mpi.optim.adamw import AdamW
from dsgd_mpi.optim.sgd import Sgd
from tests.support.emulation import races
from tests.support.emulation.emulated import COMPILER, kernels
from tests.support.kernel_cases import filled, flat_tensors, measured, output_of, poisoned, weights_of

FORMAT = tools.FORMATS["float16"]             # which has the most kernels


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    """Of every kernel, in blocks that are small enough for a detector."""
    if not COMPILER:
        pytest.skip("g++ is not installed: the kernels cannot be run on this CPU")
    probe = tmp_path_factory.mktemp("probe") / "probe"
    probe.with_suffix(".cpp").write_text("int main() {}")
    for command in ([COMPILER, "-fsanitize=thread", "-o", probe, probe.with_suffix(".cpp")], [probe]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"ThreadSanitizer does not work here: {(done.stderr.strip() or 'no words').splitlines()[-1]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tools, "THREADS", 32)
        patch.setattr(tools, "ROW_THREADS", 64)
        return noted()


def noted():
    draw, k = np.random.default_rng(0), CuDNN("float16", device=races.Noting)

    def operate(operation, shape, add=False):
        x, y = filled(k, normal(shape)), poisoned(k, output_of(operation, shape))
        p = flat_tensors(k, {name: values.astype("float32") for name, values in
                             weights_of(draw, operation, shape).items()}, 3)
        bound = k.bind(operation, Arrays(x, [*p.values()], y, filled(k, normal(y.value.shape)) if add else None))
        if isinstance(operation, FoldedConvolution):
            bound.fold()
            return bound.forward(False)
        for training in (False, True):
            bound.forward(training)
        k.put(normal(y.value.shape), y.grad)
        return bound.backward()

    def normal(shape):
        return draw.standard_normal(shape).astype("float32")

    operate(BatchNorm(relu=True), (3, 10, 10, 3), add=True)            # 3 blocks for its channels,
    operate(BatchNorm(relu=True), (2, 4, 4, 33))                        # and 2 x 2
    operate(Convolution(3, 3, 1, 1), (1, 5, 5, 3))
    operate(FoldedConvolution(Convolution(3, 1, 1, 0), BatchNorm(relu=True)), (1, 3, 3, 3))
    operate(Linear(3), (5, 7))
    operate(MaxPool(3, 2, 1), (1, 7, 7, 3))
    operate(AveragePool(), (2, 3, 3, 3))
    operate(Subsample(5), (1, 6, 6, 3))
    measured(k.cross_entropy(filled(k, normal((3, 130))), 0.1), np.arange(3))
    k.accumulate(*(filled(k, normal((7, 11))).value for _ in range(2)))
    transform = Transform(2, (4, 4, 3), np.ones(3) / 2, np.ones(3))
    k.put(transform.bytes(np.ones((2, 4, 4, 3), np.uint8), draw.random((2, 3))), k.empty((2, 4, 4, 3)))
    for optimizer in (Sgd(), AdamW()):
        x, g = filled_flat(k, normal(210)), filled_flat(k, normal(210))
        step = optimizer.start(Layout({"a": (20, 9)}, {"r": (30,)}), x, k)
        for overflow in (False, True):
            g[77] = np.inf if overflow else 1
            step.update(x, g, 0.1)
    return k.device.noted


def filled_flat(k, values):
    x = k.zeros(values.size)
    x[:] = values
    return x


def test_no_two_threads_race_and_no_result_depends_on_their_order(launches):
    beside_cudnn = {"copy_channels"}
    assert {name for name, *_ in launches} | beside_cudnn == {name for _, name in kernels(source())}
    assert races.raced(FORMAT, launches) == ""


@pytest.mark.parametrize(("number", "file", "words"), [(number, *each) for number, each in
                                                       enumerate(races.synchronisations())])
def test_each_synchronisation_is_needed_and_the_detector_sees_that_it_is_left_out(launches, number, file, words):
    of_file = {name for _, name in kernels((SOURCES / file).read_text())}
    said = races.raced(FORMAT, [each for each in launches if each[0] in of_file], number)
    assert "WARNING: ThreadSanitizer: data race" in said
