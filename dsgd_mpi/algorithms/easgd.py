"""Elastic averaging SGD (Zhang, Choromanska, LeCun 2015, arXiv:1412.6651, algorithm 1; with momentum EAMSGD).

    every tau steps:  e = beta/n (x_i - c);   x_i <- x_i - e;   c <- c + e
    x_i <- x_i - eta v_i                      its gradient taken before the elastic pull

The centre c is in shared memory, a part of it on every rank; nobody waits. beta is the pull of all ranks together:
the paper's alpha is beta/n, since a fixed alpha makes c overshoot once n alpha exceeds 1. c takes part in the mean of
all models without a gradient of its own: under a constant one it moves at n / (n + 1) of all-reduce's rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.sharded import Sharded
from dsgd_mpi.optim.api import Optimizer


@dataclass
class Elastic(Algorithm):
    beta: Annotated[float, 0] = 0.9         # n alpha
    period: Annotated[int, 1] = 4           # tau

    keeps = "t", "c"
    one_sided = True
    independent = True
    alone_is_sgd = False                    # the centre pulls
    traffic = "a one-sided read of the centre and a one-sided addition to it every `period` steps"
    offers = "c, the centre"
    drift = "n / (n + 1)"
    advised = {}, {"period": 16}
    variants = {}, {"period": 1}
    c = np.zeros(0)                         # the centre as of the last rest

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        self.centre = Sharded(net, self.c if len(self.c) else x)

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        g = gradient(x)
        if self.t % self.period == 0:
            e = self.beta / self.net.size * (x - self.centre.read(np.empty_like(x)))
            x -= e
            self.centre.add(e)
        self.optimizer.update(x, g, lr)
        self.t += 1

    def rest(self, x: Array) -> None:
        self.c = self.centre.whole(x)

    def answer(self, x: Array) -> Array:
        return self.centre.whole(x)
