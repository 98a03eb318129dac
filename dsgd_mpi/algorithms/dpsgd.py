"""Decentralised SGD (D-PSGD; Lian et al. 2017, arXiv:1705.09056): every rank mixes with its neighbours on a graph.

    x_i <- sum_j W_ij x_j - eta v_i          the gradient taken at x_i before the mixing

W_ij = 1 / (1 + max(d_i, d_j)) for neighbours of degrees d (Metropolis weights), W_ii the remainder to 1: symmetric and
doubly stochastic, so mixing preserves the mean of all models; on the complete graph all weights are 1/n. On the graph
"base-K" (Takezawa et al. 2023, arXiv:2305.11420) a rank meets at most K - 1 others a step, with weights such that
models would be equal after at most 2 log_K n + 2 of them; on "one-peer" that holds for powers of 2, after log2 n.
Batch norm's moving averages move on from where mixing has put them: from x_i they could become negative where W_ii is
small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.mixing import Mixing
from dsgd_mpi.net.topology import Graph, mixing_weights


@dataclass
class Decentralised(Algorithm):
    graph: Graph = "ring"
    seed: Annotated[int, 0] = 0         # of the random graph, the same on all ranks

    survives = True
    traffic = "an exchange of models with each neighbour"
    variants = ({}, {"graph": "torus"}, {"graph": "exponential"}, {"graph": "random"}, {"graph": "complete"},
                {"graph": "base-2"})

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        mixing = Mixing(self.net, x, mixing_weights(self.graph, self.net.size, self.t, self.seed, self.net.rank))
        g = gradient(x)                     # while it is in flight
        seen = x[self.statistics].copy()
        mixing.wait()
        g[self.statistics] += x[self.statistics] - seen
        self.optimizer.update(x, g, lr)
        self.t += 1
