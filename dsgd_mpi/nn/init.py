"""Initial weights, drawn as the operations declare them, so that they are the same on every rank and device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.errors import UsageError
from dsgd_mpi.nn.layers import Graph


def initialise(graph: Graph, state: Mapping[str, Array], seed: int) -> None:
    """Fills the NumPy view of each weight, in the order of the layers. UsageError for one without initial values."""
    draw = np.random.default_rng(seed)
    for name, weight in graph.weights.items():
        if weight.initial is None:
            raise UsageError(f"{name}: expected initial values, found none; give its Weight an `initial` in the "
                             "operation that declares it")
        state[name][...] = weight.initial(draw, weight.shape)
