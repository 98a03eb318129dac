"""Asynchronous SGD on a parameter server (Downpour; Dean et al. 2012): the model lies in shared memory, nobody waits.

    x <- c;   c <- c - eta v_i(x)            c meanwhile moved by others: how often is the update's staleness s

`staleness="scale"`: eta / max(1, s) (Zhang et al. 2015, arXiv:1511.05950). `staleness="compensate"`: the gradient is
corrected to where c is now, g + lambda g g (c - x) (DC-ASGD; Zheng et al. 2016, arXiv:1609.08326). `max_ahead`: a rank
that is that many steps ahead of the slowest waits for it (stale-synchronous parallel; Ho et al. 2013).

The server is the memory of the first `servers` ranks, a part on each; these ranks are workers too. Each rank has its
own momentum v_i, so that one rank alone does plain SGD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from dsgd_mpi.algorithms import Gradient
from dsgd_mpi.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.sharded import Sharded
from dsgd_mpi.sgd import LocalSgd


@dataclass
class ParameterServer:
    servers: Annotated[int, 0] = 0          # ranks that hold the model; 0: all
    pull_every: Annotated[int, 1] = 1       # steps from one read of c to the next
    push_every: Annotated[int, 1] = 1       # steps from one addition to c to the next
    staleness: Literal["ignore", "scale", "compensate"] = "ignore"
    compensation: Annotated[float, 0] = 0.04    # lambda
    max_ahead: Annotated[int, 0] = 0        # steps; 0: no bound

    keeps: ClassVar[tuple[str, ...]] = ("t", "c")
    replicated: ClassVar[bool] = False
    t = 0                                   # steps done
    c = np.zeros(0)                         # the model as of the last rest

    def start(self, net: Net, x: Array, sgd: LocalSgd) -> None:
        self.net, self.sgd = net, sgd
        self.model = Sharded(net, self.c if len(self.c) else x, self.servers)
        self.clocks = net.share(np.full(net.size if net.rank == 0 else 0, float(self.t)))
        self.update = 0 * x                 # of this rank, not yet added to c

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        if self.t % self.pull_every == 0:
            self.model.read(x)
        g = gradient(x)
        if self.staleness == "compensate":
            g += self.compensation * g * g * (self.model.read(np.empty_like(x)) - x)
        before = x.copy()
        self.sgd.update(x, g, lr / max(1, self.model.age()) if self.staleness == "scale" else lr)
        self.update += x - before
        self.t += 1
        if self.t % self.push_every == 0:
            self.push()
        if self.max_ahead:
            self.wait_for_the_slowest()

    def push(self) -> None:
        self.model.add(self.update)
        self.update[:] = 0

    def wait_for_the_slowest(self) -> None:
        self.clocks.add(0, np.arange(self.net.size) == self.net.rank)
        while self.t - self.clocks.read(0).min() > self.max_ahead:
            self.net.idle()

    def rest(self, x: Array) -> None:
        self.push()
        self.c = self.model.whole(x)

    def answer(self, x: Array) -> Array:
        return self.model.whole(x)
