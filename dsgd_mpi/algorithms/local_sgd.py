"""Local SGD: every rank steps alone, and every H steps all take their models' mean (Stich 2018, arXiv:1805.09767).

    x_i <- x_i - eta v_i;   every H steps:  x_i <- 1/n sum_j x_j

`post_local`: that many steps of all-reduce first (Lin et al. 2018, arXiv:1808.07217). `slow_momentum` beta > 0: SlowMo
(Wang et al. 2019, arXiv:1910.00643), in which the ranks' common progress since the last mean has a momentum of its own:

    u <- beta u + (x_0 - mean x) / eta;   x_0, x_i <- x_0 - alpha eta u
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from dsgd_mpi.algorithms import Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.optim.api import Optimizer


@dataclass
class Local:
    period: Annotated[int, 1] = 8           # H
    post_local: Annotated[int, 0] = 0       # steps of all-reduce before the first local one
    slow_momentum: Annotated[float, 0] = 0.0    # beta
    slow_lr: Annotated[float, 0] = 1.0      # alpha

    keeps: ClassVar[tuple[str, ...]] = ("t", "u", "x0")
    replicated: ClassVar[bool] = False
    one_sided: ClassVar[bool] = False
    servers: ClassVar[int] = 0
    independent: ClassVar[bool] = False
    traffic: ClassVar[str] = "one mean of the model over all every `period` steps; until post_local, of the gradient"
    offers: ClassVar[str] = "the mean of all models"
    t = 0                                   # steps done
    u = x0 = np.zeros(0)                    # of what is trained, not of batch norm's statistics

    def start(self, net: Net, x: Array, sgd: Optimizer) -> None:
        self.net, self.sgd, self.trained = net, sgd, sgd.trained
        if self.slow_momentum and not len(self.u):
            self.u, self.x0 = 0 * x[self.trained], x[self.trained].copy()

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        g = gradient(x)
        if self.t < self.post_local:
            g = self.net.mean(g).wait()
        self.sgd.update(x, g, lr)
        self.t += 1
        if self.t >= self.post_local and self.t % self.period == 0:
            self.net.mean(x).wait()
            if self.slow_momentum and lr > 0:
                self.slow_step(x[self.trained], lr)

    def slow_step(self, x: Array, lr: float) -> None:
        self.u *= self.slow_momentum
        self.u += (self.x0 - x) / lr
        self.x0 -= self.slow_lr * lr * self.u
        x[:] = self.x0

    def rest(self, x: Array) -> None:
        pass                                # nothing is in flight between steps

    def answer(self, x: Array) -> Array:
        return self.net.mean(x.copy()).wait()
