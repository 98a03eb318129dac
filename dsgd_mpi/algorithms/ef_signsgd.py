"""Signs with error feedback (EF-signSGD; Karimireddy et al. 2019, arXiv:1901.09847): a bit for each number.

    u_i = e_i + eta v_i;   s_i = sign(u_i) mean |u_i|, by layer;   e_i <- u_i - s_i
    x <- x - 1/n sum_i s_i

Signs alone lose the size of a gradient, and need not come to a minimum; what they leave out is added to the next step,
at the rate of its own time. What has to wait so delays the update, which bears smaller rates than all-reduce's. Each
rank has its own momentum and sends its signs to all others. Batch norm's statistics are averaged in full.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net import signs
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.letters import Letters
from dsgd_mpi.optim.api import Optimizer


@dataclass
class ErrorFeedbackSigns(Algorithm):
    keeps = "t", "error"
    one_model = survives = gentle = True
    alone_is_sgd = False
    traffic = "a bit for each number of the update to each other rank"
    offers = "x, the same on all ranks"
    error = np.zeros(0)                     # e

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        self.letters, self.moved = Letters(net), x.copy()
        self.layers = [part for part, _ in optimizer.layers]
        if not len(self.error):
            self.error = 0 * x[self.trained]

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.moved[:] = x
        self.optimizer.update(self.moved, gradient(x), lr)
        self.moved -= x                     # -eta v_i, and what the statistics change by
        u = self.moved[self.trained]
        statistics = self.net.mean(self.moved[self.statistics])
        self.error += u
        own = signs.pack(self.error, self.layers)
        u[:] = 0
        signs.add(own, self.layers, into=u)
        self.error -= u
        u[:] = 0
        for packed in self.letters.from_all(own):
            signs.add(packed, self.layers, into=u)
        u /= self.net.size
        statistics.wait()
        x += self.moved
        self.t += 1

    def rest(self, x: Array) -> None:
        self.net.settle()                   # nobody continues before all have read the last step's letters
