"""Decoupled momentum (DeMo; Peng et al. 2024, arXiv:2411.19870): the fast part of each rank's momentum is shared.

    m_i <- beta m_i + g_i
    q_i = of each block of C m_i the k entries largest in magnitude, else 0;   m_i <- m_i - C' q_i
    x <- x - eta sign(C' mean of all q)             C the cosine transform of each block, orthonormal

What was sent is taken out of a rank's momentum; what is slow stays there until it has grown. The mean of an entry of q
is over the ranks that sent it. Blocks have at most `chunk` rows and columns of a weight's matrix, as in the authors'
code; a convolution's matrix has a row for each channel that it makes. With all coefficients nothing stays, and this is
the sign of the mean gradient.

A step changes each number by eta: take rates as for AdamW, 1e-3 or so. m is kept in the place of the momentum of the
optimizer, which must be `sgd`, and whose own momentum is not used; its weight decay shrinks x and is not a part of g_i.
x is equal to the bit on all ranks if their processors are alike. Batch norm's statistics are averaged in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.config import Below
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.cosines import Cosines
from dsgd_mpi.net.sparse import Sparse
from dsgd_mpi.optim.api import Optimizer
from dsgd_mpi.optim.sgd import Sgd


@dataclass
class DecoupledMomentum(Algorithm):
    largest: Annotated[int, 1] = 32         # k, coefficients of each block
    chunk: Annotated[int, 1] = 64           # the longest side of a block
    decay: Annotated[float, 0, Below(1)] = 0.999    # beta

    one_model = survives = gentle = True
    alone_is_sgd = may_skip_step = False
    usual_lr = 1e-3
    traffic = "`largest` coefficients of each block of the momentum, with their indices, to each other rank"
    offers = "x, the same on all ranks"
    advised = ()                            # the bytes of its messages depend on the layers' shapes
    variants = ({"largest": 4, "chunk": 8},)

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        if not isinstance(optimizer, Sgd):
            raise UsageError(f"demo replaces the momentum of sgd, found --optimizer {optimizer.name}; use sgd, or dgc")
        layout, self.sparse = optimizer.layout, Sparse(net)
        self.cosines = Cosines([layout.shapes[name] for name in layout.trained], self.chunk, x)
        self.plain = Sgd(0.0, False, optimizer.weight_decay, optimizer.decay).start(layout, x)

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        g = gradient(x)
        statistics, u, m = self.net.mean(g[self.statistics]), g[self.trained], self.optimizer.state["v"]
        m *= self.decay
        m += u
        q = self.cosines.of(m)
        fast, slow = self.cosines.largest(q, self.largest), q.copy()
        slow[fast] = 0
        m[:] = self.cosines.back(slow)
        self.sparse.mean(q, fast, of_senders=True)
        u[:] = np.sign(self.cosines.back(q))
        statistics.wait()
        self.plain.update(x, g, lr)
        self.t += 1

    def rest(self, x: Array) -> None:
        self.net.settle()                   # nobody continues before all have read the last step's letters
