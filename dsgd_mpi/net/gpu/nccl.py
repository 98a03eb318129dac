"""`mean` by NCCL, over the GPUs' own links; the other verbs are staged. One rank per GPU."""

from __future__ import annotations

import warnings
from typing import Protocol

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.half import Half
from dsgd_mpi.net.api import Host, Pending
from dsgd_mpi.net.gpu.staged import Event, StagedHost, Streams


class Adder(Protocol):
    """A communicator of all ranks."""

    def add_up(self, x: Array) -> None:
        """Collective: x becomes the sum over all ranks, on the current stream."""


def missing() -> str | None:
    """Why there is no NCCL here; None if there is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")     # CuPy warns if it finds no library: our own message says so
        try:
            from cupy.cuda import nccl
        except Exception as error:          # whatever CuPy and the driver may raise
            return str(error).partition("\n")[0]
    return None if nccl.available else "its library is not installed (pip install nvidia-nccl-cu12, or -cu13)"


class Nccl:
    """`Adder` over NCCL. Collective to construct: rank 0's id is sent by MPI."""

    def __init__(self, host: Host) -> None:
        import cupy
        from cupy.cuda import nccl
        self.cupy, self.nccl = cupy, nccl
        self.types = {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64}
        name = host.allgather(nccl.get_unique_id() if host.rank == 0 else None)[0]
        self.communicator = nccl.NcclCommunicator(host.size, name, host.rank)

    def add_up(self, x: Array) -> None:
        stream = self.cupy.cuda.get_current_stream()
        self.communicator.allReduce(x.data.ptr, x.data.ptr, x.size, self.types[x.dtype.name], self.nccl.NCCL_SUM,
                                    stream.ptr)


class NcclHost(StagedHost):
    """`StagedHost` whose means never leave the GPUs."""

    way = "staged through pinned host memory, except for averages, which use NCCL"

    def __init__(self, host: Host, device: Streams, adder: Adder) -> None:
        super().__init__(host, device)
        self.adder = adder

    def mean(self, x: Array, half: Half | None = None) -> Pending:
        if half or not self.device.holds(x):
            return super().mean(x, half)
        self.traffic.bytes_sent += 2 * (self.size - 1) * x.nbytes // self.size
        self.device.hold_beside(self.device.kernels_done())
        with self.device.beside():
            self.adder.add_up(x)
            x /= self.size
        return Reduced(self, x, self.device.beside_done())


class Reduced:
    """A mean in progress on the device."""

    def __init__(self, host: NcclHost, x: Array, event: Event) -> None:
        self.host, self.x, self.event = host, x, event

    def test(self) -> bool:
        return self.event.done()

    def wait(self) -> Array:
        """Polls rather than blocks on the device: a waiting rank still notices that another asks to stop."""
        while not self.event.done():
            self.host.idle()
        self.host.device.hold_kernels(self.event)
        return self.x
