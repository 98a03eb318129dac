"""One-sided memory: every rank exposes a part to all ranks, which read it and add to it without its involvement.

Only what MPI guarantees is used: windows that MPI allocates itself, one passive epoch for their whole lifetime, and the
accumulate calls, which are atomic per element; a plain Get concurrent with an Accumulate would be undefined. A counter
of additions is stored next to each part, so that staleness is measured rather than estimated.
"""

from __future__ import annotations

import numpy as np
from mpi4py import MPI
from mpi4py.util.dtlib import from_numpy_dtype

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Shared, Traffic, Weigh
from dsgd_mpi.net.mpi.room import require

COUNT_BYTES = 64                            # the counter is an int64; the part starts on a cache line of its own
NOTHING = [None, 0, MPI.BYTE]               # what MPI.NO_OP adds


class Window(Shared):
    """`Shared` over MPI. Collective to construct and to free; parts may differ in length from rank to rank."""

    def __init__(self, comm: MPI.Intracomm, x: Array, traffic: Traffic) -> None:
        self.comm, self.dtype, self.traffic = comm, x.dtype, traffic
        self.datatype = from_numpy_dtype(x.dtype)
        self.lengths: Array = np.empty(comm.size, np.int64)
        comm.Allgather(np.array([x.size]), self.lengths)
        self.seen = [0] * comm.size         # the owner's count when this rank last read
        require(comm, COUNT_BYTES + x.nbytes)
        self.window = MPI.Win.Allocate(COUNT_BYTES + x.nbytes, 1, comm=comm)
        memory: Array = np.asarray(self.window.tomemory(), np.uint8)
        memory[:COUNT_BYTES] = 0
        memory[COUNT_BYTES:].view(x.dtype)[:] = x
        comm.Barrier()                      # nobody reads before all have written
        self.window.Lock_all(MPI.MODE_NOCHECK)

    def read(self, owner: int, out: Array | None = None, glance: bool = False) -> Array:
        part = np.empty(self.lengths[owner], self.dtype) if out is None else out
        assert (part.size, part.dtype) == (self.lengths[owner], self.dtype), "MPI would read beyond the end of a window"
        if not glance:
            self.seen[owner] = fetch(self.window, owner, 0)
        self.window.Get_accumulate(NOTHING, part, owner, (COUNT_BYTES, part.size, self.datatype), MPI.NO_OP)
        self.window.Flush(owner)
        self._moved(owner, part)
        return part

    def add(self, owner: int, delta: Array, weigh: Weigh | None = None) -> int:
        assert delta.size == self.lengths[owner], "MPI would silently write beyond the end of a window"
        if weigh:
            stale = self.counted(owner)     # first: the count is its place in the order of all additions
            self.accumulate(owner, weigh(stale) * delta)
            self.window.Flush(owner)
        else:
            self.accumulate(owner, delta)
            stale = self.counted(owner)     # its flush completes the addition too
        self.traffic.staleness[stale] += 1
        self._moved(owner, delta)
        return stale

    def _moved(self, owner: int, part: Array) -> None:
        if owner != self.comm.rank:
            self.traffic.bytes_sent += part.nbytes

    def counted(self, owner: int) -> int:
        """Counts an addition by this rank; how many by others came before it since this rank's last read."""
        stale = fetch(self.window, owner, 0, add=1) - self.seen[owner]
        self.seen[owner] += 1
        return stale

    def accumulate(self, owner: int, delta: Array) -> None:
        self.window.Accumulate(np.ascontiguousarray(delta, self.dtype), owner, (COUNT_BYTES,), MPI.SUM)

    def free(self) -> None:
        """Collective."""
        self.window.Unlock_all()
        self.window.Free()


class Numbers:
    """`Counters` over MPI, on rank 0. Collective to construct and to free."""

    def __init__(self, comm: MPI.Intracomm, count: int) -> None:
        self.count = count
        self.window = MPI.Win.Allocate(8 * count if comm.rank == 0 else 0, 8, comm=comm)
        if comm.rank == 0:
            np.asarray(self.window.tomemory(), np.uint8)[:] = 0
        comm.Barrier()                      # nobody counts before they are zero
        self.window.Lock_all(MPI.MODE_NOCHECK)

    def add(self, which: int, amount: int = 1) -> int:
        assert which < self.count
        return fetch(self.window, 0, which, amount)

    def values(self) -> Array:
        found = np.empty(self.count, np.int64)
        self.window.Get_accumulate(NOTHING, found, 0, (0, self.count, MPI.INT64_T), MPI.NO_OP)
        self.window.Flush(0)
        return found

    def free(self) -> None:
        """Collective."""
        self.window.Unlock_all()
        self.window.Free()


def fetch(window: MPI.Win, owner: int, place: int, add: int = 0) -> int:
    """The int64 at an offset in the owner's window; `add` is added to it in the same atomic operation."""
    before = np.zeros(1, np.int64)
    window.Fetch_and_op(np.array([add]), before, owner, place, MPI.SUM if add else MPI.NO_OP)
    window.Flush(owner)
    return int(before[0])
