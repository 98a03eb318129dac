"""Asynchronous decentralised SGD (AD-PSGD; Lian et al. 2018, arXiv:1710.06952): any rank averages with any other.

    d = (x_i - x_j) / 2;   x_j <- x_j + d;   x_i <- x_i - d - eta v_i          j a random other rank, which does nothing

The models lie in shared memory. The same d leaves one model and arrives in the other, so that the sum of all models is
kept whatever happens in between; the paper makes the pair's averaging atomic, which one-sided memory cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsgd_mpi.algorithms import Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.topology import random_peer
from dsgd_mpi.optim.api import Optimizer


@dataclass
class AsynchronousDecentralised:
    seed: int = 0                           # of each rank's choice of peers

    keeps: ClassVar[tuple[str, ...]] = ("t",)
    replicated: ClassVar[bool] = False
    one_sided: ClassVar[bool] = True
    servers: ClassVar[int] = 0
    independent: ClassVar[bool] = True
    traffic: ClassVar[str] = "the model of a random rank read and added to, one-sided"
    offers: ClassVar[str] = "the mean of all models"
    t = 0                                   # steps done

    def start(self, net: Net, x: Array, sgd: Optimizer) -> None:
        self.net, self.sgd, self.models = net, sgd, net.share(x)

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        me = self.net.rank
        peer = random_peer(self.t, me, self.net.size, self.seed)
        g = gradient(x)
        change = -x
        self.sgd.update(x, g, lr)
        change += x                         # -eta v_i
        if peer != me:
            d = (self.models.read(me) - self.models.read(peer)) / 2
            self.models.add(peer, d)
            change -= d
        self.models.add(me, change)
        x[:] = self.models.read(me)
        self.t += 1

    def rest(self, x: Array) -> None:
        self.net.settle()                   # nobody adds any more
        x[:] = self.models.read(self.net.rank)
        self.net.settle()                   # nobody goes on before all have read

    def answer(self, x: Array) -> Array:
        self.net.settle()
        mean: Array = self.net.mean(self.models.read(self.net.rank)).wait()
        return mean
