"""Sparsified SGD with memory (Stich et al. 2018, arXiv:1809.07599): only the largest entries of an update are sent.

    u_i = e_i + eta v_i;   s_i = the k entries of u_i largest in magnitude, else 0;   e_i <- u_i - s_i
    x <- x - 1/n sum_i s_i

The memory e holds steps, each at the rate of its own time, as in the paper; that has no momentum, and here each rank
has its own, so that with all of u sent it equals `allreduce`. For momentum that knows of what was sent, see `dgc`.
Batch norm's statistics are averaged in full: with memory they would overshoot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.config import Most
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.sparse import Sparse, largest_share
from dsgd_mpi.optim.api import Optimizer


@dataclass
class TopK(Algorithm):
    share: Annotated[float, 0, Most(1)] = 0.01  # k as a fraction of the trained parameters; at least one is sent

    keeps = "t", "error"
    one_model = survives = True
    traffic = "a fraction of the update's entries, with their indices, to each other rank"
    offers = "x, the same on all ranks"
    advised = ()                            # the bytes of its messages depend on the gradients
    variants = {"share": 0.1}, {"share": 1.0}
    error = np.zeros(0)                     # e

    def __post_init__(self) -> None:
        self.alone_is_sgd = self.share >= 1

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        self.sparse, self.moved = Sparse(net), x.copy()
        if not len(self.error):
            self.error = 0 * x[self.trained]

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.moved[:] = x
        self.optimizer.update(self.moved, gradient(x), lr)
        self.moved -= x                     # -eta v_i, and what the statistics change by
        u = self.moved[self.trained]
        statistics = self.net.mean(self.moved[self.statistics])
        u += self.error
        places = largest_share(u, self.share)
        self.error[:] = u
        self.error[places] = 0
        self.sparse.mean(u, places)
        statistics.wait()
        x += self.moved
        self.t += 1

    def rest(self, x: Array) -> None:
        self.net.settle()                   # nobody continues before all have read the last step's letters
