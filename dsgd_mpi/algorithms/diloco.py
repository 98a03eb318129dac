"""DiLoCo: many local steps of any optimizer, then one of an outer SGD (Douillard et al. 2023, arXiv:2311.08105).

    every H steps:  D = 1/n sum_j (x_0 - x_j);   u <- mu u + D;   x_0 <- x_0 - alpha (D + mu u);   x_i <- x_0

x_0 is the model of the last meeting; the optimizer's own state stays with its rank. The outer momentum is Nesterov's;
SlowMo's (`local_sgd`) is the heavy ball, of D divided by the learning rate.

Streaming DiLoCo (Douillard et al. 2025, arXiv:2501.18512): the model is cut into `fragments` of equal length, whose
meetings take turns within the H steps. D of a fragment travels during the `delay` tau of further local steps, and then

    x_i <- (1 - beta) x_i + beta x_0                        beta the `mix`, 1 - beta the paper's alpha

so that a delay undoes beta tau of H local steps. Batch norm's running statistics are averaged like a fragment's x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient, outer_sgd
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.config import Below, Most
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.fragments import Fragments
from dsgd_mpi.optim.api import Optimizer


@dataclass
class DiLoCo(Algorithm):
    period: Annotated[int, 1] = 8           # H; the paper has 500
    outer_lr: Annotated[float, 0] = 0.7     # alpha
    outer_momentum: Annotated[float, 0, Below(1)] = 0.9     # mu
    fragments: Annotated[int, 1, Most(10**6)] = 1
    delay: Annotated[int, 0] = 0            # tau: steps while which a fragment's D travels; fewer than H
    mix: Annotated[float, 0, Most(1)] = 1.0     # beta: the share of x_0 in the model that goes on

    default_optimizer = "adamw"
    keeps = "t", "u", "x0", "d", "lost"
    alone_is_sgd = False
    survives, alike = True, ("u", "x0")
    drift = "alpha / (1 - mu), 7 by default, after some ten meetings; less with a delay"
    traffic = "one average of all models every `period` steps, in `fragments` that take turns"
    variants = ({}, {"period": 4, "outer_momentum": 0.5}, {"delay": 3}, {"fragments": 3, "delay": 3, "mix": 0.5})
    advised = {"period": 16}, {"period": 16, "fragments": 4, "delay": 3, "mix": 0.5}
    u = x0 = d = np.zeros(0)                # d: the mean of each fragment, or this rank's part of it while it travels
    lost = 0                                # what was sent at this step or before is gone

    def __post_init__(self) -> None:
        if self.delay >= self.period:
            raise UsageError(f"diloco: expected a delay of fewer than the {self.period} steps of a period, found "
                             f"{self.delay}; set delay lower or period higher")

    def go_on(self, net: Net, skipped: int) -> None:
        super().go_on(net, skipped)
        self.lost = self.t

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        if not len(self.x0):
            self.x0, self.d = x.copy(), 0 * x
        self.outer, self.u = outer_sgd(self.x0, self.u, self.outer_momentum, nesterov=True)
        self.pieces = Fragments(net, self.d, self.fragments, self.period, self.delay, int(self.lost))

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.optimizer.update(x, gradient(x), lr)
        self.t += 1
        for part in self.pieces.due(self.t):
            self.d[part] = self.x0[part] - x[part]
            self.pieces.send(part)
        for part in self.pieces.arrived(self.t):
            self.take_outer_step(x, part)

    def take_outer_step(self, x: Array, part: slice) -> None:
        trained = slice(part.start, max(part.start, min(part.stop, self.trained.stop)))
        others = slice(trained.stop, part.stop)
        self.outer.rule(trained, self.x0, self.d, self.outer_lr)
        self.x0[others] -= self.d[others]
        x[part] *= 1 - self.mix
        x[part] += self.mix * self.x0[part]

    def rest(self, x: Array) -> None:
        self.pieces.rest()
