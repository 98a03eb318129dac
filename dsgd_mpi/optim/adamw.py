"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv:1711.05101, algorithm 2).

    m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g g;   t <- t + 1
    x <- x - eta (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) + lambda x)

As in PyTorch, the learning rate also multiplies the decay; the paper's alpha multiplies only the first term. Suitable
rates are about a hundredth of SGD's: `--lr 1e-3`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.optim.api import Optimizer, bias_corrections, check_betas


@dataclass
class AdamW(Optimizer):
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: Annotated[float, 0] = 1e-8
    weight_decay: Annotated[float, 0] = 0.01    # lambda
    decay: Literal["all", "weights"] = "all"    # what decays; all includes biases and batch norm's parameters

    vectors: ClassVar[tuple[str, ...]] = ("m", "v")
    counts: ClassVar[bool] = True
    usual_lr: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        check_betas(self)

    def step(self, x: Array, g: Array, lr: float) -> None:
        t = self.state["t"]
        t += 1
        self.first, self.second = bias_corrections(t, self.beta1, self.beta2, x.dtype)
        super().step(x, g, lr)

    def rule(self, part: slice, x: Array, g: Array, lr: float) -> None:
        x, g, m, v = x[part], g[part], self.state["m"][part], self.state["v"][part]
        m *= self.beta1
        m += (1 - self.beta1) * g
        v *= self.beta2
        v += (1 - self.beta2) * g * g
        x *= 1 - lr * self.weight_decay * (1 if self.decay == "all" else self.weights[part])
        d = np.sqrt(v)
        d *= self.second
        d += self.epsilon
        np.divide(m, d, out=d)
        d *= lr * self.first
        x -= d
