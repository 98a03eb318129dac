"""A model by its name: its graph, with kernels to compute it."""

from __future__ import annotations

from dsgd_mpi.arrays.flat import Shape
from dsgd_mpi.kernels.api import Kernels
from dsgd_mpi.kernels.load import load
from dsgd_mpi.nn import models
from dsgd_mpi.nn.model import Model


def build(name: str, classes: int, image: Shape, batch: int, kernels: Kernels | str = "auto",
          dtype: str = "float32", seed: int = 0, smoothing: float = 0.0) -> Model:
    """A network with its weights drawn from `seed`, for images (H, W, C) in batches of `batch`.

    `kernels`: those to compute with, or a name for `dsgd_mpi.kernels.load`. `dtype`: of activations. `smoothing`: of
    the labels. UsageError for a name that is not one of `models.names()`, or images too small for the network.
    """
    if isinstance(kernels, str):
        kernels = load(kernels, dtype)
    return Model(models.graph(name, classes, image), batch, kernels, seed, smoothing)
