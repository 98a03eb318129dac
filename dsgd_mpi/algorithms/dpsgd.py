"""Decentralised SGD (D-PSGD; Lian et al. 2017, arXiv:1705.09056): every rank mixes with its neighbours on a graph.

    x_i <- sum_j W_ij x_j - eta v_i          the gradient taken at x_i before the mixing

W_ij = 1 / (1 + max(d_i, d_j)) for neighbours of degrees d (Metropolis weights), W_ii what is left to 1: symmetric and
doubly stochastic, so the mixing keeps the mean of all models; on the complete graph it is 1/n everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dsgd_mpi.algorithms import Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.topology import neighbours
from dsgd_mpi.optim.api import Optimizer


@dataclass
class Decentralised:
    graph: Literal["ring", "torus", "exponential", "random", "complete"] = "ring"
    seed: int = 0                           # of the random graph, the same on all ranks

    keeps: ClassVar[tuple[str, ...]] = ("t",)
    replicated: ClassVar[bool] = False
    one_sided: ClassVar[bool] = False
    servers: ClassVar[int] = 0
    independent: ClassVar[bool] = False
    traffic: ClassVar[str] = "an exchange of models with each neighbour"
    offers: ClassVar[str] = "the mean of all models"
    t = 0                                   # steps done

    def start(self, net: Net, x: Array, sgd: Optimizer) -> None:
        self.net, self.sgd = net, sgd

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        weights = self.weights(self.net.rank)
        met = {peer: self.net.exchange(x, peer) for peer in weights}    # in flight while we compute
        g = gradient(x)
        arrived = {peer: exchange.wait() for peer, exchange in met.items()}     # x must stay until the last is there
        x *= 1 - sum(weights.values())
        for peer, weight in weights.items():
            x += weight * arrived[peer]
        self.sgd.update(x, g, lr)
        self.t += 1

    def weights(self, rank: int) -> dict[int, float]:
        """W of this step: neighbour -> weight; the rank's own is what is left."""
        graph = neighbours(self.graph, self.net.size, self.t, self.seed)
        return {peer: 1 / (1 + max(len(graph[rank]), len(graph[peer]))) for peer in graph[rank]}

    def rest(self, x: Array) -> None:
        pass                                # nothing is in flight between steps

    def answer(self, x: Array) -> Array:
        return self.net.mean(x.copy()).wait()
