"""CHOCO-SGD (Koloskova et al. 2019, arXiv:1907.09356): ranks on a graph send the largest changes of their models.

    x_i <- x_i + gamma sum_j W_ij (h_j - h_i) - eta v_i      the gradient taken at x_i before the mixing
    q_i = the k entries of x_i - h_i largest in magnitude, else 0, to the neighbours;   h_i <- h_i + q_i

h_i is what the neighbours know of x_i; what was not sent stays in x_i - h_i. The mean of all x is kept whatever is
sent, and with all of it and gamma = 1 this is `dpsgd`. The smaller the share, the smaller gamma must be. h begins with
the common x, where the paper's begins with 0. q travels while the next gradient is computed. Batch norm's statistics
are sent whole; they move on from where mixing has put them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array, beside
from dsgd_mpi.config import Most
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.letters import Letters
from dsgd_mpi.net.sparse import add, largest_share, pack
from dsgd_mpi.net.topology import Static, mixing_weights
from dsgd_mpi.optim.api import Optimizer


@dataclass
class Choco(Algorithm):
    share: Annotated[float, 0, Most(1)] = 0.1   # k as a fraction of the trained parameters; at least one is sent
    gamma: Annotated[float, 0, Most(1)] = 0.4   # how far a rank goes to its neighbours in a step
    graph: Static = "ring"
    seed: Annotated[int, 0] = 0         # of a random graph, the same on all ranks

    keeps = "t", "own", "others"
    traffic = "a fraction of the model's changes, with their indices, to each neighbour"
    advised = ()                            # the bytes of its messages depend on the models
    variants = {}, {"graph": "exponential"}, {"share": 0.3, "gamma": 0.3}
    own = others = np.zeros(0)              # h_i, and sum_j W_ij h_j of the neighbours
    due = False                             # letters of the last step are not read yet

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        self.letters, self.weights = Letters(net), mixing_weights(self.graph, net.size, 0, self.seed, net.rank)
        self.statistic_places = beside(x, np.arange(self.trained.stop, x.size))
        if not len(self.own):
            self.own, self.others = x.copy(), sum(self.weights.values()) * x

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        g = gradient(x)
        self.read()
        seen = x[self.statistics].copy()
        x += self.gamma * (self.others - sum(self.weights.values()) * self.own)
        g[self.statistics] += x[self.statistics] - seen
        self.optimizer.update(x, g, lr)
        self.send(x - self.own)
        self.t += 1

    def send(self, change: Array) -> None:
        places = np.concatenate([largest_share(change[self.trained], self.share), self.statistic_places])
        q = pack(change, places)
        add(q, into=self.own)
        for peer in self.weights:
            self.net.post(q, peer)
        self.due = True

    def read(self) -> None:
        for peer, weight in self.weights.items() if self.due else ():
            add(self.letters.next_from(peer).array, into=self.others, weight=weight)
        self.due = False

    def rest(self, x: Array) -> None:
        self.read()
        self.net.settle()                   # nobody continues before all have read
