"""Synchronous SGD with backup workers (Chen et al. 2016, arXiv:1604.00981): nobody waits for the last b ranks.

    g = mean of the first n gradients at x of the n + b that are under way;   v <- mu v + g;   x <- x - eta (g + mu v)

Rank 0 serves: it takes the gradients, drops those of earlier steps, steps, and sends the model to all. A worker that
finds the model ahead of it skips the steps that were decided without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from dsgd_mpi.algorithms import Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.optim.api import Optimizer


@dataclass
class Backup:
    backups: Annotated[int, 0] = 1          # b; at least one worker is always waited for

    keeps: ClassVar[tuple[str, ...]] = ("t", "version")
    replicated: ClassVar[bool] = False
    one_sided: ClassVar[bool] = False
    servers: ClassVar[int] = 1
    independent: ClassVar[bool] = False
    traffic: ClassVar[str] = "a worker's gradient to rank 0, its model to each worker"
    offers: ClassVar[str] = "rank 0's model"
    t = 0                                   # steps done
    version = 0                             # steps that the model here has taken

    def start(self, net: Net, x: Array, sgd: Optimizer) -> None:
        self.net, self.sgd = net, sgd
        self.needed = max(1, net.size - 1 - self.backups)       # n

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        if self.net.size == 1:
            self.sgd.update(x, gradient(x), lr)
        elif self.net.rank == 0:
            self.serve(x, lr)
        else:
            self.take(x)
            if self.version == self.t:      # else this step has been decided already
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
        self.sgd.update(x, g / arrived, lr)
        for worker in range(1, self.net.size):
            self.net.post(x, worker, note=self.t + 1)

    def take(self, x: Array, least: int = 0) -> None:
        """The newest model that has arrived; from one sender letters come in order."""
        for letter in self.net.collect(least):
            x[:], self.version = letter.array, int(letter.note)

    def rest(self, x: Array) -> None:
        self.net.settle()
        if self.net.rank == 0:
            list(self.net.collect())        # late gradients, of no use any more
        else:
            self.take(x)
        self.net.settle()                   # nobody goes on before all have read

    def answer(self, x: Array) -> Array:
        newest = self.net.size * x if self.net.rank == 0 else 0 * x
        return self.net.mean(newest).wait()
