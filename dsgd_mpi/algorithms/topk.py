"""Sparsified SGD with memory (Stich et al. 2018, arXiv:1809.07599): only the largest numbers of a gradient are sent.

    u_i = g_i(x) + e_i;   s_i = the k numbers of u_i that are largest in size, else 0;   e_i <- u_i - s_i
    g = 1/n sum_i s_i;   v <- mu v + g;   x <- x - eta (g + mu v)

Lin et al. 2018 (arXiv:1712.01887) correct the momentum as well and clip; here momentum follows the mean, so that with
all of u sent it is `allreduce`. Batch norm's statistics are averaged whole: remembered, they would overshoot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from dsgd_mpi.algorithms import Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Letter, Net
from dsgd_mpi.optim.api import Optimizer


@dataclass
class TopK:
    share: Annotated[float, 0] = 0.01       # k, of the trained numbers; at least one is sent

    keeps: ClassVar[tuple[str, ...]] = ("t", "error")
    replicated: ClassVar[bool] = False      # x is the same on all ranks, but what is remembered is not
    one_sided: ClassVar[bool] = False
    servers: ClassVar[int] = 0
    independent: ClassVar[bool] = False
    traffic: ClassVar[str] = "a share of the gradient, with its places, to each other rank"
    offers: ClassVar[str] = "x, the same on all ranks"
    t = 0                                   # steps done
    error = np.zeros(0)                     # e

    def start(self, net: Net, x: Array, sgd: Optimizer) -> None:
        self.net, self.sgd = net, sgd
        self.trained = sgd.trained.stop
        self.k = min(max(1, round(self.share * self.trained)), self.trained)
        self.early: list[Letter] = []       # of the next step
        if not len(self.error):
            self.error = 0 * x[sgd.trained]

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        g = gradient(x)
        statistics = self.net.mean(g[self.trained :])
        u = g[: self.trained]
        u += self.error
        places = np.argpartition(abs(u), self.trained - self.k)[self.trained - self.k :]
        letter = np.empty_like(u, dtype=f"int{8 * u.itemsize}", shape=2 * self.k)
        letter[: self.k], letter[self.k :] = places, u[places].view(letter.dtype)
        for peer in range(self.net.size):
            if peer != self.net.rank:
                self.net.post(letter, peer, note=self.t)
        self.error[:] = u
        self.error[places] = 0
        u[:] = 0
        for sent in self.in_rank_order(letter):
            u[sent[: self.k]] += sent[self.k :].view(x.dtype)
        u /= self.net.size
        statistics.wait()
        self.sgd.update(x, g, lr)
        self.t += 1

    def in_rank_order(self, own: Array) -> list[Array]:
        """What all have sent in this step, so that the sums are the same everywhere, to the bit."""
        found = {self.net.rank: own}
        letters, self.early = self.early, []
        while True:
            for letter in letters:
                if letter.note == self.t:
                    found[letter.source] = letter.array
                else:                       # from a rank that has all letters already
                    self.early.append(letter)
            if len(found) == self.net.size:
                return [found[rank] for rank in range(self.net.size)]
            letters = list(self.net.collect(least=1))

    def rest(self, x: Array) -> None:
        self.net.settle()                   # nobody goes on before all have read the last step's letters

    def answer(self, x: Array) -> Array:
        return x
