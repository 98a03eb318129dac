"""Two levels: all-reduce within each node, any other algorithm between the nodes (Ying et al. 2021, arXiv:2111.04287).

    at each step of a node's first rank:  x -> all ranks of the node;   g <- mean of their gradients at x

A node is one rank of the algorithm `between`, whose batch is that of all ranks of the node: the first of them takes the
steps, in a net of all first ranks, and the others compute gradients for it. So a method is whole, whatever it asks of
other ranks, and one model a node travels between nodes. On one node this is all-reduce; with one rank a node it is
`between` alone. Each node counts as one, however many ranks it has: those that share memory, those of a simulated
cluster's node, or as many in a row as `--ranks-per-node` says. The x of a rank that is not the first is where it took
its last gradient, and at a rest the first one's.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient, parsed
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.levels import Levels
from dsgd_mpi.optim.api import Optimizer

LIKE_INNER = ("default_optimizer", "one_sided", "may_round", "may_skip_step", "updates_add_up", "usual_lr",
              "alone_is_sgd", "graphs")


@dataclass
class Hierarchical(Algorithm):
    between: str = "dpsgd"                  # the algorithm between nodes; with options: gossip:mode=push,period=2

    traffic = "within a node a model and a gradient of each rank, between nodes what `between` sends"
    offers = "what `between` offers"
    drift = "that of `between`"
    variants = {}, {"between": "local_sgd:slow_momentum=0.3"}
    advised = {}, {"between": "local_sgd"}

    def __post_init__(self) -> None:
        inner = self.inner = parsed(self.between, "hierarchical: between")
        if inner.servers or isinstance(inner, Hierarchical):
            raise UsageError("hierarchical: between: expected an algorithm of one level whose ranks all work, such as "
                             f"local_sgd or gossip:mode=push, found {self.between!r}")
        self.keeps = ("t", *(key for key in inner.keeps if key != "t"))
        for key in (*LIKE_INNER, *self.keeps):
            setattr(self, key, getattr(inner, key))

    @property
    def ordered(self) -> bool:
        return self.inner.ordered

    def suits(self, size: int) -> None:
        pass                                # the number of nodes is known once it starts

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        self.levels, self.inner = Levels(net), copy.copy(self.inner)
        for key in self.keeps:
            setattr(self.inner, key, getattr(self, key))
        if self.levels.first:
            self.inner.suits(self.levels.between.size)
            self.inner.start(self.levels.between, x, optimizer)

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.t += 1
        of_node = self.levels.gradient_of_node(gradient)
        if self.levels.first:
            self.inner.step(x, of_node, lr)
        else:
            of_node(x)

    def rest(self, x: Array) -> None:
        if self.levels.first:
            self.inner.rest(x)
        self.levels.within.broadcast(x)
        for key in self.keeps[1:]:
            setattr(self, key, getattr(self.inner, key))

    def answer(self, x: Array) -> Array:
        answer = self.inner.answer(x) if self.levels.first else np.empty_like(x)
        self.levels.within.broadcast(answer)
        return answer
