"""What the tests of the kernels share: a table of cases, fresh random numbers whose seed is shown, poisoned tensors."""

import os
import secrets

import numpy as np
import pytest

from dsgd_mpi.arrays.flat import Layout, fill
from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.api import (
    AveragePool,
    BatchNorm,
    Convolution,
    Linear,
    MaxPool,
    Operation,
    Subsample,
    Tensor,
)
from dsgd_mpi.kernels.gpu.cudnn import CuDNN
from dsgd_mpi.kernels.load import load
from tests.support.emulation.emulated import COMPILER, Emulated

TABLE: list[tuple[Operation, tuple[int, ...]]] = [      # an operation, and the shape of its input, batch first
    *((Convolution(o, window, stride, pad), (n, h, w, c)) for n, h, w, c, o, window, stride, pad in [
        (2, 8, 8, 16, 16, 3, 1, 1), (4, 14, 14, 32, 64, 3, 2, 1), (2, 7, 9, 17, 33, 3, 2, 1),
        (3, 28, 28, 1, 16, 3, 1, 1), (2, 32, 32, 3, 16, 3, 1, 1), (1, 15, 13, 3, 5, 7, 2, 3),
        (2, 64, 64, 3, 64, 7, 2, 3), (2, 8, 8, 16, 32, 1, 2, 0), (2, 7, 7, 64, 256, 1, 1, 0), (1, 1, 1, 8, 8, 1, 1, 0),
        (1, 5, 5, 1, 1, 3, 1, 1), (1, 9, 7, 13, 4, 1, 2, 0), (2, 9, 7, 64, 72, 3, 2, 1), (3, 6, 6, 68, 33, 3, 1, 1),
        (3, 5, 7, 13, 9, 1, 1, 0)]),
    *((BatchNorm(relu), shape) for relu in (False, True) for shape in [
        (4, 14, 14, 16), (2, 7, 5, 33), (1, 8, 8, 64), (3, 4, 4, 1), (16, 1, 1, 8)]),
    *((MaxPool(window, stride, pad), shape) for window, stride, pad, shape in [
        (3, 2, 1, (2, 16, 16, 64)), (3, 2, 1, (1, 9, 7, 5)), (2, 2, 0, (2, 8, 8, 16)), (3, 2, 1, (2, 8, 8, 3))]),
    *((AveragePool(), shape) for shape in [(4, 7, 7, 64), (1, 8, 5, 3), (2, 1, 1, 16)]),
    *((Subsample(channels), shape) for channels, shape in [(32, (2, 8, 8, 16)), (6, (1, 7, 5, 3))]),
    *((Linear(classes), shape) for classes, shape in [(10, (32, 64)), (1000, (1, 512)), (3, (5, 7)), (100, (128, 64))]),
]
TINY: list[tuple[Operation, tuple[int, ...]]] = [       # sums of so few numbers cancel: too rough a measure for 16 bits
    *((Convolution(o, window, stride, pad), (n, h, w, c)) for n, h, w, c, o, window, stride, pad in [
        (2, 5, 5, 3, 4, 3, 1, 1), (2, 6, 6, 3, 4, 3, 2, 1), (1, 7, 5, 1, 2, 3, 2, 1), (2, 5, 4, 3, 5, 1, 1, 0),
        (2, 5, 6, 3, 5, 1, 2, 0), (1, 11, 9, 3, 2, 7, 2, 3), (2, 6, 6, 2, 3, 3, 1, 0)]),
    *((BatchNorm(relu), shape) for relu in (False, True) for shape in [(3, 4, 4, 5), (2, 3, 5, 1)]),
    *((MaxPool(window, stride, pad), shape) for window, stride, pad, shape in [
        (3, 2, 1, (1, 7, 9, 1)), (2, 2, 0, (2, 4, 4, 2)), (3, 1, 1, (2, 5, 5, 2))]),
    *((AveragePool(), shape) for shape in [(2, 4, 4, 3), (1, 7, 5, 2), (3, 1, 1, 4)]),
    *((Subsample(channels), shape) for channels, shape in [(4, (2, 4, 4, 2)), (6, (1, 5, 7, 3)), (2, (2, 3, 3, 2))]),
    *((Linear(classes), shape) for classes, shape in [(3, (4, 6)), (2, (1, 5)), (7, (3, 1))]),
]


def cases(*tables) -> list[tuple[Operation, tuple[int, ...], bool]]:
    """Without and with an activation to add."""
    return [(operation, shape, add) for table in tables for operation, shape in table
            for add in sorted({False, operation.adds})]


# All kernels are tried on TABLE; the reference, against central differences, on those of all cases with so little input
# that a step hardly ever goes across a kink.
CASES = cases(TABLE)
SMALL = [case for case in cases(TABLE, TINY) if np.prod(case[1]) <= 512]


def weights_of(rng, operation: Operation, shape) -> dict[str, np.ndarray]:
    """Random weights by name for an input of that shape: factors and variances positive, all else normal."""
    return {name: rng.uniform(0.5, 2, weight.shape) if name.endswith("running_var") or
            (name.endswith("weight") and len(weight.shape) == 1) else rng.standard_normal(weight.shape)
            for name, weight in operation.weights(shape[1:]).items()}


def output_of(operation: Operation, shape) -> tuple[int, ...]:
    """Batch first, as the input's."""
    return (shape[0], *operation.output(shape[1:]))


def fresh() -> np.random.Generator:
    """New numbers each run; DSGD_TEST_SEED repeats a run. pytest shows the seed where a test fails."""
    seed = int(os.environ.get("DSGD_TEST_SEED", secrets.randbits(32)))
    print(f"DSGD_TEST_SEED={seed}")
    return np.random.default_rng(seed)


def poisoned(kernels, shape) -> Tensor:
    """Activations that are NaN until somebody writes them, gradient too."""
    value, grad = kernels.empty(shape), kernels.empty(shape)
    for array in (value, grad):
        kernels.put(np.full(shape, np.nan, "float32"), array)
    return Tensor(value, grad)


def filled(kernels, values) -> Tensor:
    """Activations of the given values; the gradient is NaN until somebody writes it."""
    x = poisoned(kernels, values.shape)
    kernels.put(values, x.value)
    return x


def loaded(name: str, dtype: str):
    """Kernels by name, or "emulated": the GPU's on a CPU. The test is skipped, and says why, where they cannot run."""
    if name == "emulated":
        if not COMPILER:
            pytest.skip("g++ is not installed: the CUDA kernels cannot be run on this CPU")
        return CuDNN(dtype, device=Emulated)
    try:
        return load(name, dtype)
    except UsageError as reason:
        pytest.skip(str(reason))


def is_emulated(k) -> bool:
    return isinstance(k, CuDNN) and isinstance(k.device, Emulated)


def unscaled(name: str, dtype: str):
    """The same, the loss being scaled by one: a single operation is then its own."""
    k = loaded(name, dtype)
    if isinstance(k, CuDNN):
        k.device.put(np.float32([1, 1, 0, 0]), k.scaling)
    return k


def measured(loss, labels) -> float:
    """One pass of a loss."""
    loss.put(labels)
    loss.forward()
    return loss.get()


def flat_tensors(kernels, values: dict, offset: int = 1) -> dict[str, Tensor]:
    """Parameters as they come in training: views into a flat vector, at odd offsets, so not aligned."""
    layout = Layout({"before": (offset,), **{name: array.shape for name, array in values.items()}})
    x, g = kernels.zeros(layout.size), kernels.zeros(layout.size)
    fill(x, np.nan)
    fill(g, np.nan)
    xs, gs = layout.views(x), layout.views(g)
    for name, array in values.items():
        fill(xs[name], array)
    return {name: Tensor(xs[name], gs[name]) for name in values}
