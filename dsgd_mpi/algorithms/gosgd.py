"""Gossip by push-sum (GoSGD; Blot et al. 2016, arXiv:1611.09726), to random ranks at random steps; nobody waits.

    z_i <- z_i - eta v_i;  y_i = w_i z_i;  add what has arrived
    with probability p send (y_i, w_i) / 2 to a random k, keep half;  z_i = y_i / w_i

Models are sent with a weight, so that one-way messages preserve the weighted mean (Kempe et al. 2003). The order, step,
merge, send, is that of Theano-MPI's implementation, where p = 0.01. What arrives is a step old, and pulls back by its
weight: the mean moves at 1 - p/2 to 1 - p/3 of all-reduce's rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.config import Most
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.topology import chance, random_peer


@dataclass
class GossipPush(Algorithm):
    probability: Annotated[float, 0, Most(1)] = 1.0     # p, of sending at a step
    seed: Annotated[int, 0] = 0         # of each rank's random choices

    keeps = "t", "w"
    independent = True
    survives = True
    traffic = "one model sent with `probability` and, on average, as many received"
    offers = "the weighted mean of all models, sum w x / sum w"
    drift = "1 - p/2 where all ranks are in step, about 1 - p/3 with 10 % jitter"
    variants = {}, {"probability": 0.5}
    w = 1.0                                 # this rank's weight; all weights, of ranks and letters, sum to n

    def go_on(self, net: Net, skipped: int) -> None:
        super().go_on(net, skipped)
        self.w /= float(net.mean(np.array([self.w])).wait()[0])     # those of the dead and of letters are lost

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.optimizer.update(x, gradient(x), lr)       # x is z
        x *= self.w                         # and now y
        self.add_letters(x)
        peer = self.peer()
        self.t += 1
        if peer != self.net.rank:
            x /= 2
            self.w /= 2
            self.net.post(x, peer, note=self.w)
        x /= self.w

    def peer(self) -> int:
        lucky = chance(self.probability, self.seed, self.t, self.net.rank, 1)
        return random_peer(self.t, self.net.rank, self.net.size, self.seed) if lucky else self.net.rank

    def add_letters(self, y: Array) -> None:
        for letter in self.net.collect():
            y += letter.array
            self.w += letter.note

    def rest(self, x: Array) -> None:
        self.net.settle()
        x *= self.w
        self.add_letters(x)
        x /= self.w
        self.net.settle()                   # nobody continues before all have read

    def answer(self, x: Array) -> Array:
        total = self.net.mean(np.append(x * self.w, x.dtype.type(self.w))).wait()
        return total[:-1] / total[-1]
