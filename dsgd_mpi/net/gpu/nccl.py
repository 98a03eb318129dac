"""`mean` by NCCL, over the GPUs' own links; the other verbs are staged. One rank per GPU.

They are staged even where MPI is GPU-aware: NVIDIA does not promise that NCCL and such an MPI may use the same GPUs at
the same time (NCCL's documentation, "NCCL and MPI": each may wait on the device for other ranks).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.half import Half
from dsgd_mpi.net.api import Host, Pending
from dsgd_mpi.net.gpu.staged import Event, StagedHost, Streams
from dsgd_mpi.net.places import Place, sharing

Found = int | str                           # NCCL's version as a number, or why there is none


class Averager(Protocol):
    """A communicator of all ranks."""

    def average(self, x: Array, stream: Any) -> None:
        """Collective: enqueues on the stream that x, not empty, becomes the mean over all ranks."""


def found() -> Found:
    """Which NCCL is here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")     # CuPy warns if it finds no library: our own message says so
        try:
            from cupy.cuda import nccl
            if nccl.available:
                return int(nccl.get_version())
        except Exception as error:          # whatever CuPy and the driver may raise
            return str(error).partition("\n")[0]
    return "its library is not installed (pip install nvidia-nccl-cu12, or -cu13)"


def version(number: int) -> str:
    """As NVIDIA writes it, from 2.9 on: 22707 -> "2.27.7"."""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def refusal(places: list[Place], libraries: list[Found]) -> str | None:
    """Why these ranks cannot use NCCL together; None if they can. The places and versions of all ranks."""
    for place, rank, here in zip(places, range(len(places)), libraries, strict=True):
        if isinstance(here, str):
            return f"rank {rank} on {place['host']} has no NCCL: {here}"
        if here != libraries[0]:
            return (f"rank {rank} on {place['host']} has NCCL {version(here)}, but rank 0 on {places[0]['host']} "
                    f"{version(int(libraries[0]))}")
    if crowded := sharing(places):
        return (f"{len(crowded)} ranks share their GPU with another, which NCCL does not support (the first on "
                f"{crowded[0]['host']})")
    return None


@contextmanager
def explained(what: str) -> Iterator[None]:
    """What NCCL raises inside, as one line that says what failed and what to do.

    RuntimeError, so that the job ends at once: the other ranks may be waiting for this one inside NCCL.
    """
    try:
        yield
    except (RuntimeError, KeyError) as error:       # KeyError: CuPy has no name for NCCL's newer errors
        raise RuntimeError(f"NCCL failed while {what} ({error}); NCCL_DEBUG=INFO says more, and --gpu-comm staged "
                           "does without it") from None


class Nccl:
    """`Averager` over NCCL. Collective to construct: rank 0's id is sent by MPI."""

    def __init__(self, host: Host) -> None:
        from cupy.cuda import nccl
        self.nccl = nccl
        self.types = {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64}
        with explained("starting"):
            own = list(nccl.get_unique_id()) if host.rank == 0 else None
        name = bytes(host.allgather(own)[0])
        with explained("connecting the GPUs"):
            self.communicator = nccl.NcclCommunicator(host.size, name, host.rank)

    def average(self, x: Array, stream: Any) -> None:
        with explained("averaging"):
            self.communicator.allReduce(x.data.ptr, x.data.ptr, x.size, self.types[x.dtype.name], self.nccl.NCCL_AVG,
                                        stream.ptr)


class NcclHost(StagedHost):
    """`StagedHost` whose means never leave the GPUs, except those that are sent in 16 bits."""

    way = "staged through pinned host memory, except for averages, which use NCCL"

    def __init__(self, host: Host, device: Streams, averager: Averager, reason: str = "") -> None:
        super().__init__(host, device, reason)
        self.averager = averager

    def _over(self, host: Host) -> NcclHost:
        return NcclHost(host, self.device, Nccl(host), self.reason)

    def mean(self, x: Array, half: Half | None = None) -> Pending:
        if half or not x.size or not self.device.holds(x):
            return super().mean(x, half)
        self.traffic.bytes_sent += 2 * (self.size - 1) * x.nbytes // self.size
        self.device.hold_beside(self.device.kernels_done())
        with self.device.beside() as stream:
            self.averager.average(x, stream)
        return Reduced(self, x, self.device.beside_done())


class Reduced:
    """A mean in progress on the device."""

    def __init__(self, host: NcclHost, x: Array, event: Event) -> None:
        self.host, self.x, self.event = host, x, event

    def test(self) -> bool:
        return self.event.done()

    def wait(self) -> Array:
        """Polls rather than blocks on the device: a waiting rank still notices that another asks to stop."""
        self.host.finish_computing()
        while not self.event.done():
            self.host.idle()
        self.host.device.hold_kernels(self.event)
        return self.x
