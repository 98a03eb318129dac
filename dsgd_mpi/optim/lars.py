"""LARS: layer-wise adaptive rate scaling (You, Gitman, Ginsburg 2017, arXiv:1708.03888, algorithm 1).

    for each layer:  eta_l = eta trust ||x|| / (||g|| + lambda ||x||)
                     v <- mu v + eta_l (g + lambda x);   x <- x - v

eta_l is eta where either norm is zero. Biases and batch norm's scales and shifts are by default neither adapted nor
decayed: they step at eta. Suitable rates are tens of times SGD's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.config import Below
from dsgd_mpi.optim.api import Optimizer, decays, trust_ratio


@dataclass
class Lars(Optimizer):
    trust: Annotated[float, 0] = 0.001      # length of a step at rate 1, as a fraction of ||x||
    momentum: Annotated[float, 0, Below(1)] = 0.9     # mu
    weight_decay: Annotated[float, 0] = 5e-4    # lambda
    adapt: Literal["all", "weights"] = "weights"    # what is adapted; all includes biases and batch norm's parameters
    decay: Literal["adapted", "all", "weights"] = "adapted"     # what decays; adapted: what is adapted

    vectors: ClassVar[tuple[str, ...]] = ("v",)

    def step(self, x: Array, g: Array, lr: float) -> None:
        for layer, are_weights in self.layers:
            w, dw, v = x[layer], g[layer], self.state["v"][layer]
            rate, decay = lr, self.weight_decay if decays(self, are_weights) else 0.0
            if are_weights or self.adapt == "all":
                size = np.linalg.norm(w)
                rate = lr * trust_ratio(self.trust * size, np.linalg.norm(dw) + decay * size)
            self.in_parts(w.size, partial(self.move, w, dw, v, rate, decay))

    def move(self, x: Array, g: Array, v: Array, rate: Array | float, decay: float, part: slice) -> None:
        x, v = x[part], v[part]
        d = g[part] + decay * x
        d *= rate
        v *= self.momentum
        v += d
        x -= v
