"""PowerSGD (Vogels et al. 2019, arXiv:1905.13727, algorithms 1 and 2): averages of gradients as products of rank r.

    for each weight, an n x m matrix:  M_i = g_i + e_i;   P = 1/n sum_i M_i Q, its columns made orthonormal
    Q <- 1/n sum_i M_i' P;   e_i <- M_i - P (M_i' P)';   x <- x - eta v(P Q')

One step of the power iteration, which begins with the Q of the step before. P and Q are sent, r (n + m) numbers
instead of n m, as means, so that the cost does not grow with the ranks; matrices to which that is no gain, biases and
batch norm are averaged whole. A convolution's matrix has a row for each channel that it makes. The paper's e_i,
M_i - P Q', has the same mean as this one, and so the same x, but grows. x is equal to the bit on all ranks if their
processors are alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Annotated

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array, Layout, beside
from dsgd_mpi.net.api import Net
from dsgd_mpi.optim.api import Optimizer


@dataclass
class PowerSGD(Algorithm):
    rank: Annotated[int, 1] = 2             # r
    seed: Annotated[int, 0] = 0         # of the first Q, the same on all ranks

    keeps = "t", "q", "error"
    alike = ("q",)
    one_model = survives = True
    alone_is_sgd = may_skip_step = False
    traffic = "two averages, of two thin matrices for each weight"
    offers = "x, the same on all ranks"
    advised = ()                            # the bytes of its messages depend on the layers' shapes
    variants = {}, {"rank": 1}
    q = error = np.zeros(0)                 # all Q; all e, zero where nothing is left out

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        self.layout = optimizer.layout
        sides = {name: (shape[0], prod(shape[1:])) for name, shape in self.layout.shapes.items()
                 if len(shape) > 1 and name in self.layout.trained}
        self.sides = {name: (n, m) for name, (n, m) in sides.items() if self.rank * (n + m) < n * m}
        self.first = Layout({name: (self.sides[name][0], self.rank) if name in self.sides else shape
                             for name, shape in self.layout.shapes.items()})
        self.second = Layout({name: (m, self.rank) for name, (_, m) in self.sides.items()})
        if not len(self.error):
            self.error = 0 * x
            self.q = beside(x, np.random.default_rng(self.seed).normal(size=self.second.size).astype(x.dtype))

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        g = gradient(x)
        parts, errors, qs = self.layout.views(g), self.layout.views(self.error), self.second.views(self.q)
        sent = np.empty_like(x, shape=self.first.size)
        means = self.first.views(sent)
        for name, mean in means.items():
            if name in self.sides:
                parts[name] += errors[name]
            mean[...] = parts[name].reshape(self.sides[name]) @ qs[name] if name in self.sides else parts[name]
        self.net.mean(sent).wait()
        for name in self.sides:
            matrix, means[name] = parts[name].reshape(self.sides[name]), np.linalg.qr(means[name])[0]
            qs[name][:] = matrix.T @ means[name]
            errors[name][:] = (matrix - means[name] @ qs[name].T).reshape(errors[name].shape)
        if self.sides:
            self.net.mean(self.q).wait()
        for name, mean in means.items():
            parts[name][...] = (mean @ qs[name].T).reshape(parts[name].shape) if name in self.sides else mean
        self.optimizer.update(x, g, lr)
        self.t += 1
