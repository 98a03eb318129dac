"""RelaySGD (Vogels et al. 2021, arXiv:2110.04175): models are summed up along a tree, each rank's latest, once.

    x_i <- x_i - eta v_i
    m_ij = x_i + sum_k m_ki, to each neighbour j, of what came at the step before from the neighbours k but j
    x_i <- 1/n (x_i + sum_j m_ji)

So a model travels one edge a step, and a rank's new model is the mean of all, those d edges away being d - 1 steps old.
Before the first came from there, the common x at the start stands for it, as in the authors' code. Where ranks agree,
they are where the mean of all gradients is 0: data that differ from rank to rank do not keep them from the minimum.
Models of the past hold the mean back, at 1 / (1 + their mean age) of all-reduce's rate; the paper tunes the rate for
each tree. A rank's last messages are part of its state. Each rank has its own momentum, as in that code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.topology import Tree, behind
from dsgd_mpi.optim.api import Optimizer


@dataclass
class Relay(Algorithm):
    tree: Tree = "tree"                     # a binary one

    keeps = "t", "heard"
    survives = True
    traffic = "an exchange of models with each neighbour on the tree"
    drift = "1 / (1 + the models' mean age): on a tree of 8 ranks 0.46, of 64 0.15; star 0.6, 0.5; line 0.36, 0.05"
    variants = {}, {"tree": "line"}
    heard = np.zeros((0, 0))                # m_ji, a row for each neighbour

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        self.behind = behind(self.tree, net.size)[net.rank]
        if not len(self.heard):
            self.heard = np.empty_like(x, shape=(len(self.behind), x.size))
            for row, ranks in enumerate(self.behind.values()):
                self.heard[row] = ranks * x

    def go_on(self, net: Net, skipped: int) -> None:
        super().go_on(net, skipped)
        self.heard = self.heard[:0]         # another tree

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.optimizer.update(x, gradient(x), lr)
        messages = x + self.heard.sum(0) - self.heard
        met = [self.net.exchange(message, peer) for message, peer in zip(messages, self.behind, strict=True)]
        for row, exchange in enumerate(met):
            self.heard[row] = exchange.wait()
        x += self.heard.sum(0)
        x /= self.net.size
        self.t += 1
