"""What the tests of the kernels share: fresh random numbers whose seed is shown, and tensors that start poisoned."""

import os
import secrets

import numpy as np

from dsgd_mpi.flat import Layout
from dsgd_mpi.kernels.api import Tensor


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


def measured(loss, labels) -> float:
    """One pass of a loss."""
    loss.put(labels)
    loss.forward()
    return loss.get()


def flat_tensors(values: dict, dtype: str, offset: int = 1) -> dict[str, Tensor]:
    """Parameters as they come in training: views into a flat vector, at odd offsets, so not aligned."""
    layout = Layout({"before": (offset,), **{name: array.shape for name, array in values.items()}})
    x, g = np.full(layout.size, np.nan, dtype), np.full(layout.size, np.nan, dtype)
    xs, gs = layout.views(x), layout.views(g)
    for name, array in values.items():
        xs[name][...] = array
    return {name: Tensor(xs[name], gs[name]) for name in values}
