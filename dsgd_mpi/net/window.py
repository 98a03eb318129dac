"""One-sided memory: every rank lends a part of its own to all, who read it and add to it without its help.

Only what MPI makes dependable is used: windows that MPI allocates itself, one passive epoch for their whole life, and
the accumulate calls, which are atomic for each number; a plain Get beside an Accumulate would be undefined. Beside each
part lies the count of what has been added to it so far, so that staleness is measured and not guessed.
"""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from dsgd_mpi.flat import Array
from dsgd_mpi.net.api import Traffic

COUNT_BYTES = 64                            # the count is an int64; the part begins on a cache line of its own


class Window:
    """`Shared` over MPI. Collective to make and to free; parts may differ in length from rank to rank."""

    def __init__(self, comm: MPI.Intracomm, x: Array, traffic: Traffic) -> None:
        self.comm, self.dtype, self.traffic = comm, x.dtype, traffic
        self.lengths: list[int] = comm.allgather(x.size)
        self.seen = [0] * comm.size         # the owner's count when this rank last read
        self.window = MPI.Win.Allocate(COUNT_BYTES + x.nbytes, 1, comm=comm)
        memory: Array = np.asarray(self.window.tomemory(), np.uint8)
        memory[:COUNT_BYTES] = 0
        memory[COUNT_BYTES:].view(x.dtype)[:] = x
        comm.Barrier()                      # nobody reads before all have written
        self.window.Lock_all(MPI.MODE_NOCHECK)

    def read(self, owner: int) -> Array:
        part = np.empty(self.lengths[owner], self.dtype)
        self.seen[owner] = self._count(owner)
        self.window.Get_accumulate(np.empty_like(part), part, owner, (COUNT_BYTES,), MPI.NO_OP)
        self.window.Flush(owner)
        return part

    def add(self, owner: int, delta: Array) -> int:
        assert delta.size == self.lengths[owner], "MPI would write beyond the end of a window without a word"
        self.window.Accumulate(np.ascontiguousarray(delta, self.dtype), owner, (COUNT_BYTES,), MPI.SUM)
        stale = self._count(owner, add=1) - self.seen[owner]    # its flush completes the addition too
        self.traffic.staleness[stale] += 1
        if owner != self.comm.rank:
            self.traffic.bytes_sent += delta.nbytes
        return stale

    def age(self, owner: int) -> int:
        return self._count(owner) - self.seen[owner]

    def free(self) -> None:
        """Everyone."""
        self.window.Unlock_all()
        self.window.Free()

    def _count(self, owner: int, add: int = 0) -> int:
        before = np.zeros(1, np.int64)
        operation = MPI.SUM if add else MPI.NO_OP
        self.window.Fetch_and_op(np.array([add]), before, owner, 0, operation)
        self.window.Flush(owner)
        return int(before[0])
