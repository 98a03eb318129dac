"""Gradient tracking (DSGT; Pu, Nedic 2018, arXiv:1805.11454): ranks on a graph step by the gradient of all their data.

    y_i = g_i(x_i) + c_i;   x_i <- sum_j W_ij (x_j - eta v_j(y_j));   c_i <- sum_j W_ij y_j - g_i(x_i)

c_i, at first 0, corrects for what a rank's own data differ from all others': since the c of all ranks sum to 0, the
mean of all y is that of all gradients. Where `dpsgd` stops at a distance that data which differ from rank to rank keep
it at, this reaches the minimum at a constant rate. The momentum is that of y.

`variant="d2"` (Tang et al. 2018, arXiv:1803.07068) learns the correction from the models, which alone are sent:

    z_i = x_i - eta v_i(g_i);   x_i <- sum_j W_ij (z_j + c_j);   c_i <- x_i - z_i

It needs eigenvalues of W above -1/3, so its W is (I + W) / 2. Batch norm's running statistics are mixed and not
corrected. Messages are not rounded (`--compress`): the corrections would add up what is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.mixing import Mixing
from dsgd_mpi.net.topology import Graph, mixing_weights
from dsgd_mpi.optim.api import Optimizer


@dataclass
class GradientTracking(Algorithm):
    variant: Literal["tracking", "d2"] = "tracking"
    graph: Graph = "ring"
    seed: Annotated[int, 0] = 0         # of the random graph, the same on all ranks

    keeps = "t", "c"
    survives, may_round, may_skip_step = True, False, False
    traffic = "an exchange of models, and of gradients unless variant=d2, with each neighbour"
    advised = {}, {"variant": "d2"}
    variants = {}, {"variant": "d2"}, {"graph": "exponential"}, {"graph": "random"}, {"variant": "d2", "graph": "torus"}
    c = np.zeros(0)

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        if not len(self.c):
            self.c = 0 * x[self.trained]

    def go_on(self, net: Net, skipped: int) -> None:
        super().go_on(net, skipped)
        self.c *= 0                         # those of the dead are missing in the sum

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        g = gradient(x)
        if self.variant == "d2":
            self.optimizer.update(x, g, lr)
            z = x[self.trained].copy()
            x[self.trained] += self.c
            self.mix(x)
            self.c[:] = x[self.trained] - z
        else:
            own = g[self.trained].copy()
            g[self.trained] += self.c
            y = g[self.trained].copy()
            self.optimizer.update(x, g, lr)
            both = self.mix(np.concatenate([x, y]))
            x[:] = both[: x.size]
            self.c[:] = both[x.size :] - own
        self.t += 1

    def mix(self, x: Array) -> Array:
        weights = mixing_weights(self.graph, self.net.size, self.t, self.seed, self.net.rank, lazy=self.variant == "d2")
        return Mixing(self.net, x, weights).wait()
