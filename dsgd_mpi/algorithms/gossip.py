"""Gossip SGD (Jin et al. 2016, arXiv:1611.04581): every rank has a model and averages it with a random peer's.

    adapt     x_i <- x_i - eta v_i           the local step
    combine   x_i <- (x_i + x_j) / 2         pull: j the partner in a random matching of all ranks
              x_i is sent to one random k;   push: nobody waits
              x_i <- mean of x_i and all x_j that have arrived

In this order, the one of the first author's code, a pull waits for the models of this step, and what was pushed to a
rank while it computed is a step old and pulls it back. `order="combine-then-adapt"`: models are combined as they were
when the gradient was taken, so that a pull travels meanwhile, and x_i is sent after the step.

The paper draws j independently for every rank; a matching preserves the mean of all models and is one Sendrecv.
The paper evaluates the mean of all models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.config import Most
from dsgd_mpi.net.api import Pending
from dsgd_mpi.net.topology import matching, random_peer


@dataclass
class Gossip(Algorithm):
    mode: Literal["pull", "push"] = "pull"
    order: Literal["adapt-then-combine", "combine-then-adapt"] = "adapt-then-combine"
    period: Annotated[int, 1] = 1           # tau: local steps between exchanges
    probability: Annotated[float, 0, Most(1)] = 1.0     # of an exchange at those steps
    seed: Annotated[int, 0] = 0         # the same on all ranks: it determines the pairs

    survives = True
    traffic = "an exchange of models, or one model sent, every `period` steps"
    drift = "1; mode=push: 0.7 to 0.85, with order=combine-then-adapt 1 to 1.25"
    advised = {}, {"mode": "push"}, {"period": 4}
    variants = ({}, {"mode": "push"}, {"period": 3}, {"probability": 0.4}, {"mode": "push", "probability": 0.4},
                {"order": "combine-then-adapt"}, {"mode": "push", "order": "combine-then-adapt"})

    def __post_init__(self) -> None:
        self.independent = self.mode == "push"

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.t += 1
        meets, combine_first = self.meets(), self.order == "combine-then-adapt"
        met = self.pull(x) if meets and combine_first else None     # in flight while we compute
        g = gradient(x)
        if meets and combine_first:
            self.combine(x, met)
        self.optimizer.update(x, g, lr)
        if meets and self.mode == "push":
            self.push(x)
        if meets and not combine_first:
            self.combine(x, self.pull(x))

    def meets(self) -> bool:
        """Whether this step has an exchange. With pull, all ranks draw alike, so nobody waits for an absent partner."""
        if self.t % self.period:
            return False
        drawn_by = [self.net.rank] if self.mode == "push" else []
        return self.probability == 1 or (
            np.random.default_rng((self.seed, self.t, 1, *drawn_by)).random() < self.probability)

    def pull(self, x: Array) -> Pending | None:
        partner = int(matching(self.t, self.net.size, self.seed)[self.net.rank])
        return self.net.exchange(x, partner) if self.mode == "pull" else None

    def push(self, x: Array) -> None:
        peer = random_peer(self.t, self.net.rank, self.net.size, self.seed)
        if peer != self.net.rank:
            self.net.post(x, peer)

    def combine(self, x: Array, met: Pending | None = None) -> None:
        """With the model of the partner, or with those that have been pushed here."""
        if met:
            x += met.wait()
            x /= 2
        for arrived, letter in enumerate(self.net.collect(), start=1):
            x += (letter.array - x) / (arrived + 1)

    def rest(self, x: Array) -> None:
        self.net.settle()
        self.combine(x)
        self.net.settle()                   # nobody continues before all have read
