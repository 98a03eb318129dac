"""Deep gradient compression (Lin et al. 2018, arXiv:1712.01887): the largest entries, with a momentum that knows it.

    u_i <- mu u_i + g_i;   e_i <- e_i + u_i [+ mu u_i for Nesterov]          momentum correction
    s_i = of each weight's e_i the largest in magnitude, of biases and batch norm all
    u_i, e_i <- 0 where they were sent                                       momentum factor masking
    x <- x - eta/n sum_i s_i

`clip`: before it is accumulated g_i is scaled down to a norm of at most clip / sqrt(n). `warmup`: over that many steps
a quarter is sent, then a sixteenth, and so on down to `share`. The momentum is that of the optimizer, which must be
`sgd`; its weight decay is a part of g_i. Of what is left unsent the rate is that of the step at which it is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.config import Most
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.sparse import Sparse, largest_share
from dsgd_mpi.optim.api import Optimizer

STAGES = 5                                  # of the warm-up: 25 %, 6.25 %, 1.6 %, 0.4 %, 0.1 %


@dataclass
class DeepGradientCompression(Algorithm):
    share: Annotated[float, 0, Most(1)] = 0.001     # of each weight's entries; at least one is sent
    clip: Annotated[float, 0] = 0.0         # of the norm of the gradient of all ranks; 0: none
    warmup: Annotated[int, 0] = 1000        # steps; the paper has four epochs
    masking: bool = True

    keeps = "t", "left"
    one_model = survives = True
    alone_is_sgd = False
    traffic = "a fraction of the gradient's entries, with their indices, to each other rank"
    offers = "x, the same on all ranks"
    advised = ()                            # the bytes of its messages depend on the gradients
    variants = {"share": 0.1, "warmup": 10}, {"share": 1.0}, {"share": 0.1, "masking": False}, {"clip": 5.0}
    left = np.zeros(0)                      # e

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        if optimizer.name != "sgd":
            raise UsageError(f"dgc corrects the momentum of sgd, found --optimizer {optimizer.name}; use sgd, or topk")
        self.sparse, self.moved = Sparse(net), x.copy()
        if not len(self.left):
            self.left = 0 * x[self.trained]

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.moved[:] = x
        self.optimizer.update(self.moved, self.clipped(gradient(x)), 1.0)
        self.moved -= x                     # -u_i [- mu u_i], and what the statistics change by
        e = self.moved[self.trained]
        statistics = self.net.mean(self.moved[self.statistics])
        e += self.left
        places = np.concatenate([part.start + largest_share(e[part], self.share_now() if weight else 1)
                                 for part, weight in self.optimizer.layers])
        self.left[:] = e
        self.left[places] = 0
        if self.masking:
            self.optimizer.state["v"][places] = 0
        self.sparse.mean(e, places)
        e *= lr
        statistics.wait()
        x += self.moved
        self.t += 1

    def clipped(self, g: Array) -> Array:
        if self.clip:
            norm, most = float(np.linalg.norm(g[self.trained])), self.clip / self.net.size**0.5
            g[self.trained] *= min(1.0, most / norm) if norm else 1.0
        return g

    def share_now(self) -> float:
        return max(self.share, 0.25 ** (1 + STAGES * self.t // self.warmup)) if self.t < self.warmup else self.share

    def rest(self, x: Array) -> None:
        self.net.settle()                   # nobody continues before all have read the last step's letters
