"""Gossip SGD (Jin et al. 2016, arXiv:1611.04581): every rank has a model and averages it with a random peer's.

    pull   x_i <- (x_i + x_j) / 2            j the partner in a random matching of all ranks
    push   x_i <- mean of x_i and all x_j that have arrived; then x_i is sent to one random k; nobody waits
    then   x_i <- x_i - eta v_i              the local step, its gradient taken before the averaging

The paper draws j independently for every rank; a matching preserves the mean of all models and is one Sendrecv.
The paper evaluates the mean of all models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.topology import matching, random_peer


@dataclass
class Gossip(Algorithm):
    mode: Literal["pull", "push"] = "pull"
    period: Annotated[int, 1] = 1           # tau: local steps between exchanges
    probability: Annotated[float, 0] = 1.0  # of an exchange at those steps
    seed: int = 0                           # the same on all ranks: it determines the pairs

    traffic = "an exchange of models, or one model sent, every `period` steps"
    variants = {}, {"mode": "push"}, {"period": 3}, {"probability": 0.4}, {"mode": "push", "probability": 0.4}

    def __post_init__(self) -> None:
        self.independent = self.mode == "push"

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.t += 1
        if not self.meets():
            g = gradient(x)
        elif self.mode == "pull":
            partner = int(matching(self.t, self.net.size, self.seed)[self.net.rank])
            met = self.net.exchange(x, partner)     # in flight while we compute
            g = gradient(x)
            x += met.wait()
            x /= 2
        else:
            peer = random_peer(self.t, self.net.rank, self.net.size, self.seed)
            g = gradient(x)
            self.merge(x)
            if peer != self.net.rank:
                self.net.post(x, peer)
        self.optimizer.update(x, g, lr)

    def meets(self) -> bool:
        """Whether this step has an exchange. With pull, all ranks draw alike, so nobody waits for an absent partner."""
        drawn_by = [self.net.rank] if self.mode == "push" else []
        draw = np.random.default_rng((self.seed, self.t, 1, *drawn_by)).random()
        return self.t % self.period == 0 and bool(draw < self.probability)

    def merge(self, x: Array) -> None:
        for arrived, letter in enumerate(self.net.collect(), start=1):
            x += (letter.array - x) / (arrived + 1)

    def rest(self, x: Array) -> None:
        self.net.settle()
        self.merge(x)
        self.net.settle()                   # nobody continues before all have read
