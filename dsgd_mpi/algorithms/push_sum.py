"""Push-sum gossip: models travel with a weight, so that one-way messages lose nothing (Kempe et al. 2003).

    z_i <- z_i - eta v_i;  y_i = w_i z_i;  send (y_i, w_i) / 2 to k, keep half;  add what arrives;  z_i = y_i / w_i

The local step is taken at z, as GoSGD has it; SGP's y_i <- y_i - eta v_i makes large steps of z where w is small.
`graph="exponential"`: stochastic gradient push (SGP; Assran et al. 2019, arXiv:1811.10792): k = i + 1, i + 2, i + 4
... in turn, and a rank goes on when all but `overlap` of the letters that it should have had so far are there.
`graph="random"`: GoSGD (Blot et al. 2016, arXiv:1611.09726): with `probability`, to a random k; nobody waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from dsgd_mpi.algorithms import Gradient
from dsgd_mpi.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.sgd import LocalSgd
from dsgd_mpi.topology import exponential_peer, random_peer


@dataclass
class PushSum:
    graph: Literal["exponential", "random"] = "exponential"
    overlap: Annotated[int, 0] = 1          # letters that may be outstanding
    probability: Annotated[float, 0] = 1.0  # of sending at a step, on the random graph
    seed: int = 0                           # of the random graph

    keeps: ClassVar[tuple[str, ...]] = ("t", "w", "received")
    replicated: ClassVar[bool] = False
    t = received = 0                        # steps done, letters merged
    w = 1.0                                 # this rank's weight; over all ranks and letters they sum to n

    def start(self, net: Net, x: Array, sgd: LocalSgd) -> None:
        self.net, self.sgd = net, sgd

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        g = gradient(x)                     # x is z
        self.sgd.update(x, g, lr)
        x *= self.w                         # and now y
        peer = self.peer()
        self.t += 1
        if peer != self.net.rank:
            x /= 2
            self.w /= 2
            self.net.post(x, peer, note=self.w)
        expected = self.t if self.graph == "exponential" and self.net.size > 1 else 0
        self.merge(x, least=expected - self.received - self.overlap)
        x /= self.w

    def peer(self) -> int:
        if self.graph == "exponential":
            return exponential_peer(self.t, self.net.rank, self.net.size)
        lucky = np.random.default_rng((self.seed, self.t, self.net.rank, 1)).random() < self.probability
        return random_peer(self.t, self.net.rank, self.net.size, self.seed) if lucky else self.net.rank

    def merge(self, y: Array, least: int = 0) -> None:
        for letter in self.net.collect(least):
            y += letter.array
            self.w += letter.note
            self.received += 1

    def rest(self, x: Array) -> None:
        self.net.settle()
        x *= self.w
        self.merge(x)
        x /= self.w

    def answer(self, x: Array) -> Array:
        total = self.net.mean(np.append(x * self.w, x.dtype.type(self.w))).wait()
        return total[:-1] / total[-1]
