"""Initial weights, as torchvision draws them: He et al. 2015 (arXiv:1502.01852), normal, fan out, for convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np

from dsgd_mpi.arrays.flat import Array


def initialise(state: Mapping[str, Array], seed: int) -> None:
    """Fills every view of `state` in its order. The same seed gives the same numbers on every rank and device."""
    draw = np.random.default_rng(seed)
    for name, view in state.items():
        if view.ndim == 4:                  # convolution, OIHW
            fan_out = view.shape[0] * view.shape[2] * view.shape[3]
            view[...] = draw.standard_normal(view.shape, np.float32) * sqrt(2 / fan_out)
        elif view.ndim == 2:                # linear: uniform in +- 1 / sqrt(fan in), its bias too
            bound = 1 / sqrt(view.shape[1])
            view[...] = draw.uniform(-bound, bound, view.shape)
            bias = state[name.replace("weight", "bias")]
            bias[...] = draw.uniform(-bound, bound, bias.shape)
        elif name.endswith(("running_var", "weight")):
            view[...] = 1                   # batch norm begins as the identity on what is normal already
        elif name.endswith("running_mean") or name.replace("bias", "running_mean") in state:
            view[...] = 0
