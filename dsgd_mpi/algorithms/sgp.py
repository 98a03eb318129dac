"""Stochastic gradient push (SGP; Assran et al. 2019, arXiv:1811.10792): push-sum on a directed graph.

    y_i <- y_i - eta v_i(z_i);  send (y_i, w_i) / 2 to k, keep half;  add what arrives;  z_i = y_i / w_i

k = i + 1, i + 2, i + 4 ... in turn, on the exponential graph. On that of a file, whose edges may go one way, a rank
sends a share along each edge at every step, and keeps the rest. Models are sent with a weight, so that one-way messages
preserve the weighted mean (Kempe et al. 2003); it moves at the rate of all-reduce, whatever is under way. Batch norm's
running statistics move at their own rate, whatever w is. Letters are added in the order of the steps at which they were
sent, none before this rank has taken that step. A rank continues once only those of the last `overlap` steps are
missing; without overlap, runs are deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.letters import Letters
from dsgd_mpi.net.topology import Push, senders, shares
from dsgd_mpi.optim.api import Optimizer


@dataclass
class StochasticGradientPush(Algorithm):
    graph: Push = "exponential"
    overlap: Annotated[int, 0] = 1          # how many of the last steps' letters may be outstanding

    keeps = "t", "w", "received"
    survives = True
    traffic = "one model sent and, usually, one received; on a file's graph one along each edge"
    offers = "the weighted mean of all models, sum w x / sum w"
    variants = {}, {"overlap": 0}, {"overlap": 2}
    received = 0                            # letters that have been added
    w = 1.0                                 # this rank's weight; all weights, of ranks and letters, sum to n

    @property
    def ordered(self) -> bool:
        return self.overlap == 0

    def go_on(self, net: Net, skipped: int) -> None:
        super().go_on(net, skipped)
        self.w /= float(net.mean(np.array([self.w])).wait()[0])     # those of the dead and of letters are lost
        self.received = self.t

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        self.letters, (self.senders, self.heard) = Letters(net), senders(self.graph, net.size, net.rank)

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        change = self.optimizer.change(x, gradient(x), lr)      # x is z
        x *= self.w                         # and now y, where the parameters have yet to move by the rest of it
        x[self.trained] += (1 - self.w) * change[self.trained]
        kept, sent = shares(self.graph, self.net.size, self.t, self.net.rank)
        self.t += 1
        x *= kept
        self.w *= kept
        for peer, times in sent.items():
            self.net.post(x if times == 1 else times * x, peer, note=times * self.w)
        self.add_letters(x, due=self.t - self.overlap)
        x /= self.w

    def add_letters(self, y: Array, due: int) -> None:
        """Those that have arrived, in order; waits for those of the steps before `due`."""
        while self.received < self.t * self.heard:
            sender = self.senders[self.received % len(self.senders)]
            if not (letter := self.letters.next_from(sender, wait=self.received < due * self.heard)):
                return
            y += letter.array
            self.w += letter.note
            self.received += 1

    def rest(self, x: Array) -> None:
        self.net.settle()
        x *= self.w
        self.add_letters(x, due=self.t)
        x /= self.w
        self.net.settle()                   # nobody continues before all have read

    def answer(self, x: Array) -> Array:
        total = self.net.mean(np.append(x * self.w, x.dtype.type(self.w))).wait()
        return total[:-1] / total[-1]
