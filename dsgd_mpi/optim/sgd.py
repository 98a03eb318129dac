from __future__ import annotations
from dataclasses import dataclass
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.optim.api import Optimizer
@dataclass
class Sgd(Optimizer):
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    def update(self, x: Array, g: Array, lr: float) -> None:
        v = self.state["v"]
        n = len(v)
        d = g[:n] + self.weight_decay * x[:n]
        v *= self.momentum
        v += d
        if self.nesterov:
            d += self.momentum * v
            d *= lr
            x[:n] -= d
        else:
            x[:n] -= lr * v
        x[n:] -= 0.1 * g[n:]
