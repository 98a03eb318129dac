"""Decentralised SGD (D-PSGD; Lian et al. 2017, arXiv:1705.09056): every rank mixes with its neighbours on a graph.

    x_i <- sum_j W_ij x_j - eta v_i          the gradient taken at x_i before the mixing

W_ij = 1 / (1 + max(d_i, d_j)) for neighbours of degrees d (Metropolis weights), W_ii the remainder to 1: symmetric and
doubly stochastic, so mixing preserves the mean of all models; on the complete graph all weights are 1/n. Batch norm's
moving averages move on from where mixing has put them: from x_i they could become negative where W_ii is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.topology import neighbours


@dataclass
class Decentralised(Algorithm):
    graph: Literal["ring", "torus", "exponential", "random", "complete"] = "ring"
    seed: Annotated[int, 0] = 0         # of the random graph, the same on all ranks

    survives = True
    traffic = "an exchange of models with each neighbour"
    variants = {}, {"graph": "torus"}, {"graph": "exponential"}, {"graph": "random"}, {"graph": "complete"}

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        weights = self.weights(self.net.rank)
        met = {peer: self.net.exchange(x, peer) for peer in weights}    # in flight while we compute
        g = gradient(x)
        seen = x[self.statistics].copy()
        arrived = {peer: exchange.wait() for peer, exchange in met.items()}     # only then may x change
        x *= 1 - sum(weights.values())
        for peer, weight in weights.items():
            x += weight * arrived[peer]
        g[self.statistics] += x[self.statistics] - seen
        self.optimizer.update(x, g, lr)
        self.t += 1

    def weights(self, rank: int) -> dict[int, float]:
        """W of this step: neighbour -> weight; the rank's own is the remainder."""
        graph = neighbours(self.graph, self.net.size, self.t, self.seed)
        return {peer: 1 / (1 + max(len(graph[rank]), len(graph[peer]))) for peer in graph[rank]}
