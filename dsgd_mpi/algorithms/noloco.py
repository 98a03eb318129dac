"""NoLoCo: DiLoCo whose outer step needs one random other rank, not all (Kolehmainen et al. 2025, arXiv:2506.10911).

    every H steps, j the partner in a random matching of all ranks:
    D_i = x_0i - x_i;   m_i <- mu m_i - beta (D_i + D_j) / 2 - gamma (x_0i - x_0j) / 2
    x_0i <- x_0i + m_i;   x_i <- x_0i

x_0i is the model of rank i after its last outer step; gamma draws those of a pair together. All signs are those of the
authors' code, whose gamma is beta. One vector is exchanged, beta D_j - gamma x_0j, where that code sends two. The
momentum is the heavy ball: a pair with the same x_0 does SlowMo (`local_sgd`) at a constant rate. The mean of all x_0
moves as if all ranks met. The optimizer's own state stays with its rank; batch norm's running statistics are averaged
in pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.config import Below
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.topology import matching
from dsgd_mpi.optim.api import Optimizer


@dataclass
class NoLoCo(Algorithm):
    period: Annotated[int, 1] = 8           # H; the authors have 50
    outer_lr: Annotated[float, 0] = 0.7     # beta
    outer_momentum: Annotated[float, 0, Below(1)] = 0.5     # mu
    pull: Annotated[float, 0] = 0.7         # gamma
    seed: Annotated[int, 0] = 0             # of the pairs, the same on all ranks

    default_optimizer = "adamw"
    keeps = "t", "m", "x0"
    alone_is_sgd = False
    survives = True
    drift = "beta / (1 - mu), 1.4 by default, after some meetings"
    traffic = "an exchange of models with a random rank every `period` steps"
    variants = {}, {"period": 3, "pull": 1.0}
    advised = ({"period": 16},)
    m = x0 = np.zeros(0)                    # of the trained parameters

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        if not len(self.x0):
            self.x0, self.m = x[self.trained].copy(), 0 * x[self.trained]

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.optimizer.update(x, gradient(x), lr)
        self.t += 1
        if self.t % self.period == 0:
            self.meet(x, int(matching(self.t, self.net.size, self.seed)[self.net.rank]))

    def meet(self, x: Array, partner: int) -> None:
        d = self.outer_lr * (self.x0 - x[self.trained])
        sent = x.copy()
        sent[self.trained] = d - self.pull * self.x0
        d += self.pull * self.x0
        met = self.net.exchange(sent, partner).wait()
        self.m *= self.outer_momentum
        self.m -= (d + met[self.trained]) / 2
        self.x0 += self.m
        x += met
        x /= 2                              # of the statistics
        x[self.trained] = self.x0
