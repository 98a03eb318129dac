"""Sparsified SGD with memory (Stich et al. 2018, arXiv:1809.07599): only the largest entries of a gradient are sent.

    u_i = g_i(x) + e_i;   s_i = the k entries of u_i largest in magnitude, else 0;   e_i <- u_i - s_i
    g = 1/n sum_i s_i;   v <- mu v + g;   x <- x - eta (g + mu v)

Lin et al. 2018 (arXiv:1712.01887) also correct the momentum and clip; here momentum is applied to the mean, so that
with all of u sent it equals `allreduce`. Batch norm's statistics are averaged in full: with memory they overshoot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.compression import topk
from dsgd_mpi.net.letters import Letters
from dsgd_mpi.optim.api import Optimizer


@dataclass
class TopK(Algorithm):
    share: Annotated[float, 0] = 0.01       # k as a fraction of the trained parameters; at least one is sent

    keeps = "t", "error"                    # x is the same on all ranks, but the error memory is not
    may_skip_step = False                   # the error memory would keep what overflows
    traffic = "a fraction of the gradient's entries, with their indices, to each other rank"
    offers = "x, the same on all ranks"
    variants = {"share": 0.1}, {"share": 1.0}
    error = np.zeros(0)                     # e

    def __post_init__(self) -> None:
        self.alone_is_sgd = self.share >= 1

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        self.trained = optimizer.trained
        size = x[self.trained].size
        self.k = min(max(1, round(self.share * size)), size)
        self.letters = Letters(net)
        if not len(self.error):
            self.error = 0 * x[self.trained]

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        g = gradient(x)
        statistics = self.net.mean(g[self.trained.stop :])
        u = g[self.trained]
        u += self.error
        places = topk.largest(u, self.k)
        own = topk.pack(u, places)
        others = [peer for peer in range(self.net.size) if peer != self.net.rank]
        for peer in others:
            self.net.post(own, peer)
        self.error[:] = u
        self.error[places] = 0
        u[:] = 0
        for rank in range(self.net.size):   # the sums are bitwise the same on all ranks
            topk.add(own if rank == self.net.rank else self.letters.next_from(rank).array, into=u)
        u /= self.net.size
        statistics.wait()
        self.optimizer.update(x, g, lr)
        self.t += 1

    def rest(self, x: Array) -> None:
        self.net.settle()                   # nobody continues before all have read the last step's letters

    def answer(self, x: Array) -> Array:
        return x
