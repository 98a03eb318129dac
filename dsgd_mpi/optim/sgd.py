"""SGD with momentum, Nesterov's or the heavy ball, and weight decay (Sutskever et al. 2013, as PyTorch writes it).

    d = g + lambda x;   v <- mu v + d
    x <- x - eta (d + mu v)                 Nesterov
    x <- x - eta v                          the heavy ball (Polyak 1964)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.config import Below
from dsgd_mpi.optim.api import Optimizer


@dataclass
class Sgd(Optimizer):
    momentum: Annotated[float, 0, Below(1)] = 0.9     # mu
    nesterov: bool = True                   # else the heavy ball
    weight_decay: Annotated[float, 0] = 1e-4    # lambda
    decay: Literal["all", "weights"] = "all"    # what decays; all includes biases and batch norm's parameters

    vectors: ClassVar[tuple[str, ...]] = ("v",)

    def rule(self, part: slice, x: Array, g: Array, lr: float) -> None:
        x, v = x[part], self.state["v"][part]
        d = g[part] + self.weight_decay * (x if self.decay == "all" else self.weights[part] * x)
        v *= self.momentum
        v += d
        if self.nesterov:
            d += self.momentum * v
        else:
            d[:] = v
        d *= lr
        x -= d
