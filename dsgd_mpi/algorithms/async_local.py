"""Asynchronous local SGD with delayed Nesterov momentum (Liu et al. 2024, arXiv:2401.09135): nobody waits for anybody.

    every H steps:  D_i = x_0i - x_i;   c <- c - alpha D_i / n;   x_0i, x_i <- c
    after each n-th of these:  b = the mean of the last n D;   u <- mu u + b;   c <- c - alpha mu u

The centre c is in shared memory, and changed by others meanwhile: momentum would add up what is stale, and so is
applied only once for n ranks' worth of D, to what these have brought since the last time, b = (c_then - c) / alpha.
If all ranks are in step this is DiLoCo's outer step, and so it is for a single rank. Who comes while another applies
the momentum leaves it at that. A momentum of 0.9, DiLoCo's, makes the centre of ranks out of step swing. The
optimizer's own state and batch norm's running statistics stay with their rank; the answer has the mean of the latter.
The paper lets slower ranks take fewer local steps; here all take H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.config import Below
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.sharded import Sharded
from dsgd_mpi.optim.api import Optimizer

COME, BUSY = 0, 1                           # counters: of all D so far, and whether a rank applies the momentum


@dataclass
class AsynchronousLocal(Algorithm):
    period: Annotated[int, 1] = 8           # H
    outer_lr: Annotated[float, 1e-9] = 0.7  # alpha
    outer_momentum: Annotated[float, 0, Below(1)] = 0.7     # mu

    default_optimizer = "adamw"
    keeps = "t", "c", "u", "x0", "come"
    one_sided = independent = True
    alone_is_sgd = False
    traffic = "a one-sided addition to the centre and a read of it every `period` steps"
    offers = "c, the centre"
    drift = "alpha / (1 - mu), 2.3 by default, in the end"
    variants = {}, {"period": 3, "outer_momentum": 0.5}
    advised = ({"period": 16},)
    c = u = x0 = np.zeros(0)                # u: c_then and the momentum, one after the other
    come = 0

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        if not len(self.x0):
            self.c = self.x0 = x[self.trained].copy()
            self.u = np.concatenate([self.c, 0 * self.c])
        self.centre, self.outer, self.counts = Sharded(net, self.c), Sharded(net, self.u), net.counters(2)
        self.counts.add(COME, int(self.come) if net.rank == 0 else 0)
        net.settle()                        # nobody counts before that

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.optimizer.update(x, gradient(x), lr)
        self.t += 1
        if self.t % self.period == 0:
            self.centre.add(self.outer_lr / self.net.size * (x[self.trained] - self.x0))
            if (self.counts.add(COME) + 1) % self.net.size == 0:
                self.apply_momentum()
            self.x0 = self.centre.read(np.empty_like(self.x0))
            x[self.trained] = self.x0

    def apply_momentum(self) -> None:
        if self.counts.add(BUSY) == 0:
            c, old = self.centre.read(np.empty_like(self.x0)), self.outer.read(np.empty_like(self.u))
            then, u = old[: c.size], old[c.size :]
            u = self.outer_momentum * u + (then - c) / self.outer_lr
            change = -self.outer_lr * self.outer_momentum * u
            self.outer.add(np.concatenate([c + change, u]) - old)
            self.centre.add(change)
        self.counts.add(BUSY, -1)

    def rest(self, x: Array) -> None:
        self.c, self.u = self.centre.whole(self.x0), self.outer.whole(self.u)
        self.come = int(self.counts.values()[COME])
        self.net.settle()                   # nobody counts before all have read

    def answer(self, x: Array) -> Array:
        statistics = self.net.mean(x[self.statistics].copy()).wait()
        return np.concatenate([self.centre.whole(self.x0), statistics])
