"""Push-sum gossip: models travel with a weight, so that one-way messages lose nothing (Kempe et al. 2003).

    z_i <- z_i - eta v_i;  y_i = w_i z_i;  send (y_i, w_i) / 2 to k, keep half;  add what arrives;  z_i = y_i / w_i

The local step is taken at z, as GoSGD has it; SGP's y_i <- y_i - eta v_i makes large steps of z where w is small.
`graph="exponential"`: stochastic gradient push (SGP; Assran et al. 2019, arXiv:1811.10792): k = i + 1, i + 2, i + 4
... in turn. Letters are added in the order of the steps that they were sent at, none before this rank has done that
step, and it goes on when none is missing but those of the last `overlap` steps. Without overlap nothing is chance.
`graph="random"`: GoSGD (Blot et al. 2016, arXiv:1611.09726): with `probability`, to a random k; nobody waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from dsgd_mpi.algorithms import Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Letter, Net
from dsgd_mpi.net.topology import exponential_peer, exponential_sender, random_peer
from dsgd_mpi.optim.api import Optimizer


@dataclass
class PushSum:
    graph: Literal["exponential", "random"] = "exponential"
    overlap: Annotated[int, 0] = 1          # steps, the last ones, whose letters may be outstanding
    probability: Annotated[float, 0] = 1.0  # of sending at a step, on the random graph
    seed: int = 0                           # of the random graph

    keeps: ClassVar[tuple[str, ...]] = ("t", "w", "received")
    replicated: ClassVar[bool] = False
    one_sided: ClassVar[bool] = False
    servers: ClassVar[int] = 0
    traffic: ClassVar[str] = "one model sent and, as a rule, one received"
    offers: ClassVar[str] = "the mean of all models by their weights, sum w x / sum w"
    t = received = 0                        # steps done; steps whose letter has been added, of the exponential graph
    w = 1.0                                 # this rank's weight; over all ranks and letters they sum to n

    @property
    def independent(self) -> bool:
        return self.graph == "random"

    def start(self, net: Net, x: Array, sgd: Optimizer) -> None:
        self.net, self.sgd = net, sgd
        self.letters: list[Letter] = []     # that have come and wait for their turn

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.sgd.update(x, gradient(x), lr)     # x is z
        x *= self.w                         # and now y
        peer = self.peer()
        self.t += 1
        if peer != self.net.rank:
            x /= 2
            self.w /= 2
            self.net.post(x, peer, note=self.w)
        self.add_what_came(x, due=self.t - self.overlap)
        x /= self.w

    def peer(self) -> int:
        if self.graph == "exponential":
            return exponential_peer(self.t, self.net.rank, self.net.size)
        lucky = np.random.default_rng((self.seed, self.t, self.net.rank, 1)).random() < self.probability
        return random_peer(self.t, self.net.rank, self.net.size, self.seed) if lucky else self.net.rank

    def add_what_came(self, y: Array, due: int) -> None:
        """All of it on the random graph; else what has its turn, the letters of the steps before `due` at any rate."""
        self.letters += self.net.collect()
        while self.graph == "random" and self.letters:
            self.add(y, self.letters.pop(0))
        while self.graph == "exponential" and self.received < self.t and self.net.size > 1:
            sender = exponential_sender(self.received, self.net.rank, self.net.size)
            place = next((place for place, letter in enumerate(self.letters) if letter.source == sender), None)
            if place is not None:
                self.add(y, self.letters.pop(place))
                self.received += 1
            elif self.received < due:
                self.letters += self.net.collect(least=1)
            else:
                return

    def add(self, y: Array, letter: Letter) -> None:
        y += letter.array
        self.w += letter.note

    def rest(self, x: Array) -> None:
        self.net.settle()
        x *= self.w
        self.add_what_came(x, due=self.t)
        x /= self.w
        self.net.settle()                   # nobody goes on before all have read

    def answer(self, x: Array) -> Array:
        total = self.net.mean(np.append(x * self.w, x.dtype.type(self.w))).wait()
        return total[:-1] / total[-1]
