"""Quasi-global momentum (QG-DSGDm; Lin et al. 2021, arXiv:2102.04761): the momentum is that of the mixed models.

    v_i = beta m_i + g_i;   x_i' = sum_j W_ij (x_j - eta (g_j + beta v_j))       beta v_j + g_j for Nesterov, else v_j
    m_i <- mu m_i + (1 - mu) (x_i - x_i') / eta;   x_i <- x_i'

A rank's own momentum would carry it on where its own data lead; the difference of two mixed models is closer to where
all go. beta, Nesterov and weight decay are those of the optimizer, which must be `sgd`; mu is beta as in the paper.
Batch norm's running statistics are mixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.config import Below
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.mixing import Mixing
from dsgd_mpi.net.topology import Graph, mixing_weights
from dsgd_mpi.optim.api import Optimizer


@dataclass
class QuasiGlobalMomentum(Algorithm):
    mu: Annotated[float, 0, Below(1)] = 0.9     # of the average of past differences
    graph: Graph = "ring"
    seed: Annotated[int, 0] = 0         # of the random graph, the same on all ranks

    survives, alone_is_sgd = True, False
    traffic = "an exchange of models with each neighbour"
    variants = {}, {"mu": 0.5}, {"graph": "exponential"}, {"graph": "random"}, {"graph": "complete"}

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        if optimizer.name != "sgd":
            raise UsageError(f"qgm replaces the momentum of sgd, found --optimizer {optimizer.name}; use sgd, or dpsgd")

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        before, v = x[self.trained].copy(), self.optimizer.state["v"]
        m = v.copy()
        self.optimizer.update(x, gradient(x), lr)
        Mixing(self.net, x, mixing_weights(self.graph, self.net.size, self.t, self.seed, self.net.rank)).wait()
        v[:] = m
        if lr > 0:
            v *= self.mu
            v += (1 - self.mu) / lr * (before - x[self.trained])
        self.t += 1
