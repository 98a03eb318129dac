"""LAMB: layer-wise adaptive moments for large batches (You et al. 2019, arXiv:1904.00962, algorithm 2).

    m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g g;   t <- t + 1
    r = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) + lambda x
    for each layer:  x <- x - eta ||x|| / ||r|| r

The ratio is 1 where either norm is zero; the paper's phi is omitted, as in the authors' own code. Biases and batch
norm's scales and shifts are by default neither adapted nor decayed: they step by eta r.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.optim.api import Optimizer, bias_corrections, check_betas, decays, trust_ratio


@dataclass
class Lamb(Optimizer):
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: Annotated[float, 0] = 1e-6
    weight_decay: Annotated[float, 0] = 0.01    # lambda
    adapt: Literal["all", "weights"] = "weights"    # what is adapted; all includes biases and batch norm's parameters
    decay: Literal["adapted", "all", "weights"] = "adapted"     # what decays; adapted: what is adapted

    vectors: ClassVar[tuple[str, ...]] = ("m", "v")
    counts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_betas(self)

    def step(self, x: Array, g: Array, lr: float) -> None:
        t = self.state["t"]
        t += 1
        self.first, self.second = bias_corrections(t, self.beta1, self.beta2, x.dtype)
        for layer, are_weights in self.layers:
            w, r, adapted = x[layer], np.empty_like(x[layer]), are_weights or self.adapt == "all"
            decay = self.weight_decay if decays(self, are_weights) else 0.0
            self.in_parts(r.size, partial(self.direction, r, w, g[layer], self.state["m"][layer],
                                          self.state["v"][layer], decay))
            rate = lr * trust_ratio(np.linalg.norm(w), np.linalg.norm(r)) if adapted else lr
            self.in_parts(r.size, partial(self.move, w, r, rate))

    def direction(self, r: Array, x: Array, g: Array, m: Array, v: Array, decay: float, part: slice) -> None:
        r, g, m, v = r[part], g[part], m[part], v[part]
        m *= self.beta1
        m += (1 - self.beta1) * g
        v *= self.beta2
        v += (1 - self.beta2) * g * g
        np.sqrt(v, out=r)
        r *= self.second
        r += self.epsilon
        np.divide(m, r, out=r)
        r *= self.first
        r += decay * x[part]

    def move(self, x: Array, r: Array, rate: Array | float, part: slice) -> None:
        r = r[part]
        r *= rate
        x[part] -= r
