"""Synchronous SGD with backup workers (Chen et al. 2016, arXiv:1604.00981): nobody waits for the b slowest.

    g = mean of the first n gradients at x of the n + b that are under way;   v <- mu v + g;   x <- x - eta (g + mu v)

Rank 0 serves: it collects the gradients, drops those of earlier steps, updates the model and sends it to all. A worker
that finds the model ahead of it skips the steps that were taken without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.optim.api import Optimizer


@dataclass
class Backup(Algorithm):
    backups: Annotated[int, 0] = 1          # b; at least one gradient is always waited for

    keeps = "t", "version"
    servers = 1
    ordered = False                         # gradients are summed in order of arrival
    may_skip_step = False                   # the workers would not learn of it
    traffic = "each worker's gradient to rank 0, and rank 0's model to each worker"
    offers = "rank 0's model"
    variants = {}, {"backups": 0}
    version = 0                             # steps that this rank's copy of the model has taken

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        self.needed = max(1, net.size - 1 - self.backups)       # n
        self.applied = 0 if net.size > 1 else None              # the workers' gradients, by rank 0

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        if self.net.size == 1:
            self.optimizer.update(x, gradient(x), lr)
        elif self.net.rank == 0:
            self.serve(x, lr)
        else:
            self.take(x)
            if self.version == self.t:      # else this step has been taken already
                self.net.post(gradient(x), 0, note=self.t)
                self.take(x, least=1)
        self.t += 1

    def serve(self, x: Array, lr: float) -> None:
        g, arrived = 0 * x, 0
        while arrived < self.needed:
            for letter in self.net.collect(least=1):
                if letter.note == self.t and arrived < self.needed:
                    g += letter.array
                    arrived += 1
        self.optimizer.update(x, g / arrived, lr)
        self.applied = (self.applied or 0) + arrived
        for worker in range(1, self.net.size):
            self.net.post(x, worker, note=self.t + 1)

    def take(self, x: Array, least: int = 0) -> None:
        """The newest model that has arrived; letters from one sender come in order."""
        for letter in self.net.collect(least):
            x[:], self.version = letter.array, int(letter.note)

    def rest(self, x: Array) -> None:
        self.net.settle()
        if self.net.rank == 0:
            list(self.net.collect())        # late gradients, which are discarded
        else:
            self.take(x)
        self.net.settle()                   # nobody continues before all have read

    def answer(self, x: Array) -> Array:
        newest = self.net.size * x if self.net.rank == 0 else 0 * x
        return self.net.mean(newest).wait()
