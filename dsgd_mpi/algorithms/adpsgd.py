"""Asynchronous decentralised SGD (AD-PSGD; Lian et al. 2018, arXiv:1710.06952): any rank averages with any other.

    d = (x_i - x_j) / 2;   x_j <- x_j + d;   x_i <- x_i - d - eta v_i          j a random other rank, which does nothing

The models are in shared memory. The same d is subtracted from one model and added to the other, so the sum of all
models is preserved whatever happens in between; the paper averages the pair atomically, which one-sided memory cannot.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.topology import random_peer
from dsgd_mpi.optim.api import Optimizer


@dataclass
class AsynchronousDecentralised(Algorithm):
    seed: int = 0                           # of each rank's choice of peers

    one_sided = True
    independent = True
    traffic = "a one-sided read of a random rank's model and a one-sided addition to it"

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        self.models = net.share(x)

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        me = self.net.rank
        peer = random_peer(self.t, me, self.net.size, self.seed)
        change = self.optimizer.change(x, gradient(x), lr)      # -eta v_i
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
        self.net.settle()                   # nobody continues before all have read

    def answer(self, x: Array) -> Array:
        self.net.settle()
        mean: Array = self.net.mean(self.models.read(self.net.rank)).wait()
        return mean
