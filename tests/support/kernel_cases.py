"""What the tests of the kernels share: fresh random numbers whose seed is shown, and tensors that start poisoned."""

import os
import secrets

import numpy as np
import pytest

from dsgd_mpi.arrays.flat import Layout, fill
from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.api import Tensor
from dsgd_mpi.kernels.gpu.cudnn import CuDNN
from dsgd_mpi.kernels.load import load
from tests.support.emulation.emulated import COMPILER, Emulated


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
