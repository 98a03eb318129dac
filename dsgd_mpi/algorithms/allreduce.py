"""Synchronous SGD by all-reduce (Jin et al. 2016, arXiv:1611.04581; Chen et al. 2016, arXiv:1604.00981).

    g = 1/n sum_i g_i(x);   v <- mu v + g;   x <- x - eta (g + mu v)

All ranks hold the same x, to the bit. Finished stretches of the gradient travel while the rest is still computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from dsgd_mpi.algorithms import Gradient
from dsgd_mpi.arrays.flat import Array, Buckets
from dsgd_mpi.net.api import Net, Pending
from dsgd_mpi.optim.api import Optimizer


@dataclass
class Allreduce:
    bucket_mb: Annotated[float, 0] = 4.0    # how much of the gradient goes in one message, in 1e6 bytes

    keeps: ClassVar[tuple[str, ...]] = ()
    replicated: ClassVar[bool] = True
    one_sided: ClassVar[bool] = False
    servers: ClassVar[int] = 0
    independent: ClassVar[bool] = False
    traffic: ClassVar[str] = "one mean of the gradient over all, in buckets as it becomes ready"
    offers: ClassVar[str] = "x, the same on all ranks"

    def start(self, net: Net, x: Array, sgd: Optimizer) -> None:
        self.net, self.sgd = net, sgd
        self.bucket = int(self.bucket_mb * 1e6) // x.itemsize

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        under_way: list[Pending] = []
        buckets = Buckets(self.bucket, lambda part: under_way.append(self.net.mean(part)))
        g = gradient(x, buckets.ready)
        for pending in under_way:
            pending.wait()
        self.sgd.update(x, g, lr)

    def rest(self, x: Array) -> None:
        pass                                # nothing is in flight between steps

    def answer(self, x: Array) -> Array:
        return x
