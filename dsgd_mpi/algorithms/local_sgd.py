"""Local SGD: the ranks take local steps and average their models every H steps (Stich 2018, arXiv:1805.09767).

    x_i <- x_i - eta v_i;   every H steps:  x_i <- 1/n sum_j x_j

`post_local`: that many steps of all-reduce first (Lin et al. 2018, arXiv:1808.07217). `slow_momentum` beta > 0: SlowMo
(Wang et al. 2019, arXiv:1910.00643), in which the averaged progress since the last mean is the gradient of an outer SGD
with heavy-ball momentum:

    u <- beta u + (x_0 - mean x) / eta;   x_0, x_i <- x_0 - alpha eta u

x_0 is first the model at the first local step. SlowMo multiplies the rate by alpha / (1 - beta). `buffers`: what
becomes of the ranks' own momentum at a mean: it is maintained, reset to 0, or averaged as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient, outer_sgd
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.config import Below
from dsgd_mpi.net.api import Net
from dsgd_mpi.optim.api import Optimizer


@dataclass
class Local(Algorithm):
    period: Annotated[int, 1] = 8           # H
    post_local: Annotated[int, 0] = 0   # steps of all-reduce before the first local one
    slow_momentum: Annotated[float, 0, Below(1)] = 0.0  # beta
    slow_lr: Annotated[float, 0] = 1.0      # alpha
    buffers: Literal["maintain", "reset", "average"] = "maintain"

    keeps = "t", "u", "x0"
    survives, alike, advised = True, ("u", "x0"), ({"period": 4}, {"period": 16})
    drift = "1; with slow momentum alpha / (1 - beta)"
    traffic = "one average of all models every `period` steps; until post_local, of all gradients at each step"
    variants = ({}, {"period": 3, "post_local": 10}, {"slow_momentum": 0.3}, {"slow_momentum": 0.3, "post_local": 10},
                {"buffers": "reset"}, {"buffers": "average"})
    u = x0 = np.zeros(0)                    # for the trained parameters, without batch norm's statistics

    def __post_init__(self) -> None:
        self.alone_is_sgd = not self.slow_momentum and self.buffers != "reset"

    def in_step(self) -> bool:
        return self.t <= self.post_local

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        if self.slow_momentum:
            self.x0 = self.x0 if len(self.x0) else x[self.trained].copy()
            self.outer, self.u = outer_sgd(self.x0, self.u, self.slow_momentum, nesterov=False)

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        g = gradient(x)
        if self.t < self.post_local:
            g = self.net.mean(g).wait()
        self.optimizer.update(x, g, lr)
        self.t += 1
        if self.t == self.post_local and self.slow_momentum:
            self.x0[:] = x[self.trained]
        elif self.t > self.post_local and self.t % self.period == 0:
            self.net.mean(x).wait()
            self.take_slow_step(x, lr)
            self.treat_buffers()

    def take_slow_step(self, x: Array, lr: float) -> None:
        if self.slow_momentum and lr > 0:
            progress = (self.x0 - x[self.trained]) / lr
            self.outer.update(self.x0, progress, self.slow_lr * lr)
            x[self.trained] = self.x0

    def treat_buffers(self) -> None:
        for name in self.optimizer.vectors:
            if self.buffers == "average":
                self.net.mean(self.optimizer.state[name]).wait()
            elif self.buffers == "reset":
                self.optimizer.state[name][:] = 0
