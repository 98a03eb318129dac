"""Asynchronous SGD on a parameter server (Downpour; Dean et al. 2012): the model lies in shared memory, nobody waits.

    x <- c;   c <- c - eta v_i(x)            c meanwhile moved by others: how often is the update's staleness s

`staleness="scale"`: eta / max(1, s) (Zhang et al. 2015, arXiv:1511.05950). `staleness="compensate"`: the gradient is
corrected to where c is now, g + lambda g g (c - x) (DC-ASGD; Zheng et al. 2016, arXiv:1609.08326). `max_staleness`: a
worker that is that many steps ahead of the slowest waits for it (stale-synchronous parallel; Ho et al. 2013).

Every rank holds a part of c and is a worker too; or the first `servers` ranks hold it and only serve. Each worker has
its own momentum v_i, so that one alone does plain SGD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from dsgd_mpi.algorithms import Gradient, serving
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.sharded import Sharded
from dsgd_mpi.optim.api import Optimizer


@dataclass
class ParameterServer:
    servers: Annotated[int, 0] = 0          # ranks that only hold the model; 0: all ranks do, and work
    pull_every: Annotated[int, 1] = 1       # steps from one read of c to the next
    push_every: Annotated[int, 1] = 1       # steps from one addition to c to the next
    staleness: Literal["ignore", "scale", "compensate"] = "ignore"
    compensation: Annotated[float, 0] = 0.04    # lambda
    max_staleness: Annotated[int, 0] = 0    # steps; 0: no bound

    keeps: ClassVar[tuple[str, ...]] = ("t", "c")
    replicated: ClassVar[bool] = False
    one_sided: ClassVar[bool] = True
    traffic: ClassVar[str] = "one model read and one added to, one-sided, every pull_every and push_every steps"
    offers: ClassVar[str] = "c, the model in shared memory"
    t = 0                                   # steps done
    c = np.zeros(0)                         # the model as of the last rest

    @property
    def independent(self) -> bool:
        return not self.max_staleness

    def start(self, net: Net, x: Array, sgd: Optimizer) -> None:
        self.net, self.sgd, self.holders = net, sgd, serving(self, net.size)
        self.model = Sharded(net, self.c if len(self.c) else x, self.holders)
        self.clocks = net.counters(net.size)    # steps that each worker has done
        self.clocks.add(net.rank, int(self.t))
        self.update = 0 * x                 # of this rank, not yet added to c

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.t += 1
        if self.net.rank < self.holders:
            self.wait_until_all_have_done(self.t)
        else:
            self.work(x, gradient, lr)
            if self.holders or self.max_staleness:
                self.clocks.add(self.net.rank)
        if self.max_staleness:
            self.wait_until_all_have_done(self.t - self.max_staleness)

    def work(self, x: Array, gradient: Gradient, lr: float) -> None:
        if (self.t - 1) % self.pull_every == 0:
            self.model.read(x)
        g = gradient(x)
        if self.staleness == "compensate":
            g += self.compensation * g * g * (self.model.read(np.empty_like(x)) - x)
        before = x.copy()
        self.sgd.update(x, g, lr / max(1, self.model.age()) if self.staleness == "scale" else lr)
        self.update += x - before
        if self.t % self.push_every == 0:
            self.push()

    def push(self) -> None:
        self.model.add(self.update)
        self.update[:] = 0

    def wait_until_all_have_done(self, steps: int) -> None:
        while self.clocks.values()[self.holders:].min() < steps:
            self.net.idle()

    def rest(self, x: Array) -> None:
        if self.update.any():
            self.push()
        self.c = self.model.whole(x)

    def answer(self, x: Array) -> Array:
        return self.model.whole(x)
