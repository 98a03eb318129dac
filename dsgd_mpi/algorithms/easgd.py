"""Elastic averaging SGD (Zhang, Choromanska, LeCun 2015, arXiv:1412.6651, algorithm 1; with momentum EAMSGD).

    every tau steps:  e = beta/n (x_i - c);   x_i <- x_i - e;   c <- c + e
    x_i <- x_i - eta v_i                      its gradient taken before the elastic pull

The centre c is in shared memory, a part of it on every rank; or the first `servers` ranks hold it and only serve.
Nobody waits. beta is the pull of all n workers together: the paper's alpha is beta/n, since a fixed alpha makes c
overshoot once n alpha exceeds 1. c takes part in the mean of all models without a gradient of its own: under a constant
one it moves at n / (n + 1) of all-reduce's rate.

`order="adapt-then-combine"`: the elastic pull comes after the step, and the next gradient is taken where it has led.
The code of the first author of Jin et al. 2016 has the other order, the default, with one server, beta = 0.8, and
tau = 1 or 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient, serving
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.clocks import Clocks
from dsgd_mpi.net.sharded import Sharded
from dsgd_mpi.optim.api import Optimizer


@dataclass
class Elastic(Algorithm):
    beta: Annotated[float, 0] = 0.9         # n alpha
    period: Annotated[int, 1] = 4           # tau
    order: Literal["combine-then-adapt", "adapt-then-combine"] = "combine-then-adapt"
    servers: Annotated[int, 0] = 0          # ranks that only hold the centre; 0: all hold it, and all work

    keeps = "t", "c"
    one_sided = True
    independent = True
    alone_is_sgd = False                    # the centre pulls
    traffic = "a one-sided read of the centre and a one-sided addition to it every `period` steps"
    offers = "c, the centre"
    drift = "n / (n + 1)"
    advised = {}, {"period": 16}
    variants = {}, {"period": 1}, {"order": "adapt-then-combine"}, {"servers": 1}
    c = np.zeros(0)                         # the centre as of the last rest

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        self.holders = serving(self, net.size)
        self.centre = Sharded(net, self.c if len(self.c) else x, self.holders)
        self.clocks = Clocks(net, int(self.t), self.holders, 0)

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.t += 1
        if self.clocks.serve(self.t):
            return
        combine_first, meets = self.order == "combine-then-adapt", (self.t - 1) % self.period == 0
        g = gradient(x)
        if meets and combine_first:
            self.combine(x)
        self.optimizer.update(x, g, lr)
        if meets and not combine_first:
            self.combine(x)
        self.clocks.tick()

    def combine(self, x: Array) -> None:
        workers = self.net.size - self.holders
        e = self.beta / workers * (x - self.centre.read(np.empty_like(x)))
        x -= e
        self.centre.add(e)

    def rest(self, x: Array) -> None:
        self.c = self.centre.whole(x)

    def answer(self, x: Array) -> Array:
        return self.centre.whole(x)
