"""Sparsified SGD with memory (Stich et al. 2018, arXiv:1809.07599): only the largest numbers of a gradient are sent.

    u_i = g_i(x) + e_i;   s_i = the k numbers of u_i that are largest in size, else 0;   e_i <- u_i - s_i
    g = 1/n sum_i s_i;   v <- mu v + g;   x <- x - eta (g + mu v)

Lin et al. 2018 (arXiv:1712.01887) correct the momentum as well and clip; here momentum follows the mean, so that with
all of u sent it is `allreduce`. Batch norm's statistics are averaged whole: remembered, they would overshoot.
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
    share: Annotated[float, 0] = 0.01       # k, of the trained numbers; at least one is sent

    keeps = "t", "error"                    # x is the same on all ranks, but what is remembered is not
    may_skip_step = False                   # what overflows would be remembered
    traffic = "a share of the gradient, with its places, to each other rank"
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
        for rank in range(self.net.size):   # the sums are the same everywhere, to the bit
            topk.add(own if rank == self.net.rank else self.letters.next_from(rank).array, into=u)
        u /= self.net.size
        statistics.wait()
        self.optimizer.update(x, g, lr)
        self.t += 1

    def rest(self, x: Array) -> None:
        self.net.settle()                   # nobody goes on before all have read the last step's letters

    def answer(self, x: Array) -> Array:
        return x
