"""Asynchronous decentralised SGD (AD-PSGD; Lian et al. 2018, arXiv:1710.06952): any rank averages with any other.

    d = (x_i - x_j) / 2;   x_j <- x_j + d;   x_i <- x_i - d - eta v_i          j a random other rank, which does nothing

The models are in shared memory. The same d is subtracted from one model and added to the other, so the sum of all
models is preserved whatever happens in between. A pair is averaged only if nobody else is averaging either of the two,
as the paper requires: three at once would leave a model with a negative weight of its own. Where the paper's ranks then
wait, and are split into active and passive ones lest they wait for each other, ours leave that average out. Batch
norm's running statistics are each rank's own, and the answer has their mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.topology import random_peer
from dsgd_mpi.optim.api import Optimizer


@dataclass
class AsynchronousDecentralised(Algorithm):
    seed: Annotated[int, 0] = 0         # of each rank's choice of peers

    one_sided = True
    independent = True
    traffic = "a one-sided read of a random rank's model and a one-sided addition to it, if nobody else is at it"

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        self.models, self.busy = net.share(x[self.trained]), net.counters(net.size)

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        me = self.net.rank
        peer = random_peer(self.t, me, self.net.size, self.seed)
        change = self.optimizer.change(x, gradient(x), lr)[self.trained]        # -eta v_i
        pair = (me, peer) if peer != me and self.hold(me, peer) else ()
        if pair:
            d = (self.models.read(me) - self.models.read(peer)) / 2
            self.models.add(peer, d)
            change -= d
        self.models.add(me, change)
        self.let_go(*pair)
        x[self.trained] = self.models.read(me)
        self.t += 1

    def hold(self, *ranks: int) -> bool:
        """Keeps others from averaging the models of all these ranks; of none if another has hold of one already."""
        for held, rank in enumerate(ranks):
            if self.busy.add(rank):
                self.let_go(*ranks[: held + 1])
                return False
        return True

    def let_go(self, *ranks: int) -> None:
        for rank in ranks:
            self.busy.add(rank, -1)

    def rest(self, x: Array) -> None:
        self.net.settle()                   # nobody adds any more
        x[self.trained] = self.models.read(self.net.rank)
        self.net.settle()                   # nobody continues before all have read

    def answer(self, x: Array) -> Array:
        answer = x.copy()
        self.net.settle()
        answer[self.trained] = self.models.read(self.net.rank)
        return self.net.mean(answer).wait()
