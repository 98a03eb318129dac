"""Asynchronous SGD on a parameter server (Downpour; Dean et al. 2012): the model is in shared memory, nobody waits.

    x <- c;   c <- c - eta v_i(x)            c meanwhile updated by others: how often is the update's staleness s

`staleness="scale"`: eta / max(1, s) (Zhang et al. 2015, arXiv:1511.05950). `staleness="compensate"`: the gradient is
corrected to the current c, g + lambda g g (c - x) (DC-ASGD; Zheng et al. 2016, arXiv:1609.08326). `max_staleness`: a
worker that is that many steps ahead of the slowest waits for it (stale-synchronous parallel; Ho et al. 2013).
`max_delay` R: an update is dropped if R or more by others came since its c was read, so that old ones do no harm at the
rate of young ones (Ringmaster ASGD; Maranjyan et al. 2025, arXiv:2501.16168); a worker's momentum has it nevertheless.

Every rank holds a part of c and is also a worker; or the first `servers` ranks hold it and only serve. Each worker has
its own momentum v_i, so a single worker does plain SGD. The updates of n workers add up, so eta is an n-th of that of
all-reduce; with `scale` it is that of all-reduce, since s is about n - 1. Batch norm's running statistics do not pass
through the server, where they would move at n times their rate: each worker keeps its own, and the answer has the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient, mean_of_workers, serving
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.clocks import Clocks
from dsgd_mpi.net.sharded import Sharded
from dsgd_mpi.optim.api import Optimizer


@dataclass
class ParameterServer(Algorithm):
    servers: Annotated[int, 0] = 0          # ranks that only hold the model; 0: all hold it, and all work
    pull_every: Annotated[int, 1] = 1       # steps between reads of c
    push_every: Annotated[int, 1] = 1       # steps between additions to c
    staleness: Literal["ignore", "scale", "compensate"] = "ignore"
    compensation: Annotated[float, 0] = 0.04    # lambda
    max_staleness: Annotated[int, 0] = 0    # steps; 0: no bound
    max_delay: Annotated[int, 0] = 0        # R, updates; 0: none is dropped

    keeps = "t", "c"
    one_sided = True
    traffic = "a one-sided read of the model every pull_every steps, a one-sided addition every push_every"
    offers = "c, the model in shared memory"
    drift = "n, the number of workers; staleness=scale: 1.1 to 1.3, more where they are in step; max_delay: up to R"
    advised = {}, {"staleness": "scale"}
    variants = ({}, {"servers": 1}, {"pull_every": 3, "push_every": 2}, {"staleness": "scale"},
                {"staleness": "compensate"}, {"max_staleness": 1}, {"max_delay": 2})
    c = np.zeros(0)                         # the trained parameters as of the last rest

    def __post_init__(self) -> None:
        self.independent = not self.max_staleness
        self.updates_add_up = self.staleness != "scale"
        self.alone_is_sgd = self.pull_every == 1        # else stale by design

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        self.holders = serving(self, net.size)
        self.model = Sharded(net, (self.c if len(self.c) else x)[self.trained], self.holders, self.max_delay)
        self.clocks = Clocks(net, int(self.t), self.holders, self.max_staleness)
        self.update = 0 * x[self.trained]   # this rank's, not yet added to c
        self.weigh = (lambda stale: 1 / max(1, stale)) if self.staleness == "scale" else None

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.t += 1
        if self.clocks.serve(self.t):
            return
        if (self.t - 1) % self.pull_every == 0:
            self.model.read(x[self.trained])
        g = gradient(x)
        if self.staleness == "compensate":
            h = g[self.trained]
            h += self.compensation * h * h * (self.model.read(np.empty_like(h), glance=True) - x[self.trained])
        self.update += self.optimizer.change(x, g, lr)[self.trained]
        if self.t % self.push_every == 0:
            self.applied = self.model.flush(self.update, self.weigh, self.push_every)
        self.clocks.tick()

    def rest(self, x: Array) -> None:
        if self.update.any():
            self.applied = self.model.flush(self.update, self.weigh, self.t % self.push_every)
        self.c = self.model.whole(x[self.trained])

    def answer(self, x: Array) -> Array:
        statistics = mean_of_workers(self.net, x[self.statistics], self.holders)
        return np.concatenate([self.model.whole(x[self.trained]), statistics])
