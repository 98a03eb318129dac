"""Gossip SGD (Jin et al. 2016, arXiv:1611.04581): every rank has a model and averages it with a random peer's.

    adapt     x_i <- x_i - eta v_i           the local step
    combine   x_i <- (x_i + x_j) / 2         pull: j the partner in a random matching of all ranks
              x_i is sent to one random k;   push: nobody waits
              x_i <- mean of x_i and all x_j that have arrived

In this order, the one of the first author's code, a pull waits for the models of this step, and what was pushed to a
rank while it computed is a step old and pulls it back. `order="combine-then-adapt"`: models are combined as they were
when the gradient was taken, so that a pull travels meanwhile, and x_i is sent after the step.

`partner`, of a pull: by a matching the mean of all models is kept, and one Sendrecv does. "independent", as in the
paper and that code: each rank draws j from all ranks, itself included, and reads what j last published, which it does
with its own model before it reads. Nobody waits. Push draws independently always. The mean of all models is evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.config import Most
from dsgd_mpi.net.api import Net, Pending
from dsgd_mpi.net.pairs import Pairs
from dsgd_mpi.net.topology import chance, matching, random_peer
from dsgd_mpi.optim.api import Optimizer


@dataclass
class Gossip(Algorithm):
    mode: Literal["pull", "push"] = "pull"
    order: Literal["adapt-then-combine", "combine-then-adapt"] = "adapt-then-combine"
    partner: Literal["matching", "independent"] = "matching"    # of a pull
    period: Annotated[int, 1] = 1           # tau: local steps between exchanges
    probability: Annotated[float, 0, Most(1)] = 1.0     # of an exchange at those steps
    seed: Annotated[int, 0] = 0         # the same on all ranks: it determines the pairs

    traffic = "an exchange of models, or one model sent, every `period` steps"
    drift = "1; mode=push: 0.7 to 0.85, with order=combine-then-adapt 1 to 1.25; partner=independent: 0.8 to 0.87"
    advised = {}, {"mode": "push"}, {"period": 4}, {"partner": "independent"}
    variants = ({}, {"mode": "push"}, {"period": 3}, {"probability": 0.4}, {"mode": "push", "probability": 0.4},
                {"order": "combine-then-adapt"}, {"mode": "push", "order": "combine-then-adapt"},
                {"partner": "independent"}, {"partner": "independent", "order": "combine-then-adapt"})

    def __post_init__(self) -> None:
        self.one_sided = self.mode == "pull" and self.partner == "independent"
        self.survives, self.independent = not self.one_sided, self.mode == "push" or self.one_sided

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        self.pairs, self.drawn_by = Pairs(net, x, self.one_sided), [net.rank] if self.independent else []

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.t += 1
        meets, combine_first = self.meets(), self.order == "combine-then-adapt"
        met = self.pull(x) if meets and combine_first else None     # in flight while we compute
        g = gradient(x)
        if meets and combine_first:
            self.combine(x, met)
        self.optimizer.update(x, g, lr)
        if meets and self.mode == "push":
            self.pairs.send(x, self.peer())
        if meets and not combine_first:
            self.combine(x, self.pull(x))

    def meets(self) -> bool:
        """Whether this step has an exchange. Those who wait for each other draw alike."""
        return self.t % self.period == 0 and chance(self.probability, self.seed, self.t, 1, *self.drawn_by)

    def peer(self) -> int:
        if self.independent:
            return random_peer(self.t, self.net.rank, self.net.size, self.seed, itself=self.one_sided)
        return int(matching(self.t, self.net.size, self.seed)[self.net.rank])

    def pull(self, x: Array) -> Pending | None:
        return self.pairs.exchange(x, self.peer()) if self.mode == "pull" else None

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
        self.pairs.rest(x)
