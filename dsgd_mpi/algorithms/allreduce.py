"""Synchronous SGD by all-reduce (Jin et al. 2016, arXiv:1611.04581; Chen et al. 2016, arXiv:1604.00981).

    g = 1/n sum_i g_i(x);   v <- mu v + g;   x <- x - eta (g + mu v)

All ranks hold bitwise the same x. Finished buckets of the gradient are sent while the rest is still being computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.config import Most
from dsgd_mpi.net.api import Pending


@dataclass
class Allreduce(Algorithm):
    bucket_mb: Annotated[float, 0, Most(1e6)] = 4.0     # size of a bucket, the gradient per message, in 1e6 bytes

    keeps = ()
    one_model = replicated = True
    survives = True
    traffic = "one average of the gradient over all ranks, in buckets as they become ready"
    offers = "x, the same on all ranks"
    variants = {}, {"bucket_mb": 1e-4}

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        under_way: list[Pending] = []
        bucket = int(self.bucket_mb * 1e6) // x.itemsize
        g = gradient(x, lambda g, part: under_way.append(self.net.mean(g[part])), bucket)
        for pending in under_way:
            pending.wait()
        self.optimizer.update(x, g, lr)
