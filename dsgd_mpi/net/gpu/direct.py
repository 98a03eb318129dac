"""GPU-aware MPI: device pointers passed to MPI where they are known to work, which is point-to-point.

Non-blocking collectives on device memory are not supported everywhere (Open MPI's documentation excludes them), and a
blocking one would not notice that a rank asks to stop; so `mean` is the same ring of sends and receives as for host
memory, its sums computed on the device. The rest, and what is too short for a ring, is staged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.half import Half
from dsgd_mpi.net.api import Pending
from dsgd_mpi.net.gpu.staged import Buffer, Carried, StagedHost, Streams

if TYPE_CHECKING:
    from dsgd_mpi.net.mpi.host import MpiHost  # which would start MPI


class DirectHost(StagedHost):
    """`StagedHost` that copies nothing for `mean` and `exchange`."""

    way = "passed directly to GPU-aware MPI"

    def __init__(self, host: MpiHost, device: Streams, reason: str = "") -> None:
        super().__init__(host, device, reason)
        self.least_bytes = host.least_ring_bytes
        host.settle_sums = lambda: device.beside_done().synchronise()

    def mean(self, x: Array, half: Half | None = None) -> Pending:
        if not self.device.holds(x) or half or x.nbytes < self.least_bytes or self.size == 1:
            return super().mean(x, half)
        buffer = Buffer(x, self.device.kernels_done())
        return Carried(self, x, x, buffer, self.host.mean, lambda _: self.device.beside_done())

    def exchange(self, x: Array, peer: int) -> Pending:
        if not self.device.holds(x) or peer == self.rank:
            return super().exchange(x, peer)
        self._start_all()
        self.finish_computing()
        return self.host.exchange(self._settled(Buffer(x, self.device.kernels_done())), peer)
