"""Epidemic learning (EL; de Vos et al. 2023, arXiv:2310.01972): models go to s random ranks, new ones at each step.

    x_i <- x_i - eta v_i;   x_i is sent to s ranks
    x_i <- mean of x_i and all x_j that were sent to it at this step

`sample="local"`: each rank draws s of the others by itself (EL-Local), so that some hear from more and some from none;
the mean of all models is kept in expectation. "oracle": each hears from s as well (EL-Oracle), and the mean is kept.
Draws are functions of the step, so that a rank knows who sends to it and waits for these alone; in the authors' code
the others tell it that they do not. With s = n - 1 all models are averaged after every step.

`wait=False`: nobody waits, and the mean is that with what has arrived; with s = 1 this is push gossip. What arrived
while a rank computed is a step old and pulls it back. Each rank has its own momentum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Letter, Net
from dsgd_mpi.net.letters import Letters
from dsgd_mpi.net.topology import audiences
from dsgd_mpi.optim.api import Optimizer


@dataclass
class Epidemic(Algorithm):
    peers: Annotated[int, 1] = 2            # s; all others if there are fewer
    sample: Literal["local", "oracle"] = "local"
    wait: bool = True                       # for what was sent at this step
    seed: Annotated[int, 0] = 0         # of the draws, the same on all ranks

    survives = True
    traffic = "`peers` models sent and, on average, as many received"
    drift = "1; wait=False: where all ranks are in step 0.73 with one peer, 0.63 with 2, with 10 % jitter 0.84 and 0.77"
    advised = {}, {"peers": 1}
    variants = {}, {"wait": False}

    def __post_init__(self) -> None:
        self.independent = not self.wait

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        self.letters = Letters(net)

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.t += 1
        self.optimizer.update(x, gradient(x), lr)
        me, draw = self.net.rank, (self.t, self.net.size, self.seed, self.peers, self.sample == "oracle")
        for peer in audiences(*draw)[me]:
            self.net.post(x, peer)
        senders = [rank for rank, audience in enumerate(audiences(*draw)) if me in audience] if self.wait else []
        self.combine(x, map(self.letters.next_from, senders) if self.wait else self.net.collect())

    def combine(self, x: Array, letters: Iterable[Letter]) -> None:
        for arrived, letter in enumerate(letters, start=1):
            x += (letter.array - x) / (arrived + 1)

    def rest(self, x: Array) -> None:
        self.net.settle()
        self.combine(x, self.net.collect())
        self.net.settle()                   # nobody continues before all have read
