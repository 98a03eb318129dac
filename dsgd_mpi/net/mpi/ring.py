"""A ring all-reduce that advances whenever it is tested.

A reduce-scatter, in which each rank completes and divides its n-th of the vector, then an all-gather: each rank sends
2 (n - 1) / n of the vector (Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002). Every part is completed on one
rank only, so the result is bitwise the same on all. Within a node it is about twice as fast as MPICH's and Open MPI's
own all-reduce, which add on one core what NumPy adds with vector instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from mpi4py import MPI

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.half import Half, narrow, rounded, widen


class RingMean:
    """The mean of x over the ranks of `comm`, in place. `tag` distinguishes it from other rings in progress.

    If `half` is given, parts are sent in it, and are widened before they are added. If x is on a device, sums are
    enqueued on its current stream; `settle_sums` waits for them.
    """

    def __init__(self, comm: MPI.Comm, x: Array, tag: int, settle_sums: Callable[[], None],
                 half: Half | None = None) -> None:
        self.comm, self.tag, self.settle_sums, self.size, self.half = comm, tag, settle_sums, comm.size, half
        bounds = [x.size * part // comm.size for part in range(comm.size + 1)]
        self.parts = [x[begin:end] for begin, end in pairwise(bounds)]
        longest = max(part.size for part in self.parts)
        self.arrival = np.empty_like(x, dtype=np.uint16 if half else x.dtype, shape=longest)
        self.turn = 0
        self._start()

    def test(self) -> bool:
        """Progresses as far as possible without waiting; True once x holds the mean."""
        while self.turn < 2 * (self.size - 1):
            if not MPI.Request.Testall(self.requests):
                return False
            self._add()
            self.turn += 1
            if self.turn < 2 * (self.size - 1):
                self._start()
        return True

    def _start(self) -> None:
        right, left = (self.comm.rank + 1) % self.size, (self.comm.rank - 1) % self.size
        outgoing = self.parts[(self.comm.rank - self.turn) % self.size]
        incoming = self._incoming()
        self.target = self.arrival[: incoming.size] if self._summing() or self.half else incoming
        if self.half:
            outgoing = narrow(outgoing, self.half)
        self.settle_sums()
        self.requests = [self.comm.Irecv(self.target, left, self.tag), self.comm.Isend(outgoing, right, self.tag)]

    def _add(self) -> None:
        incoming = self._incoming()
        arrived = widen(self.target, self.half, incoming.dtype) if self.half else self.target
        if self._summing():
            incoming += arrived
        elif self.half:
            incoming[:] = arrived
        if self.turn == self.size - 2:      # this part has visited every rank
            incoming /= self.size
            if self.half:                   # as the others will receive it
                incoming[:] = rounded(incoming, self.half)

    def _summing(self) -> bool:
        return self.turn < self.size - 1

    def _incoming(self) -> Array:
        return self.parts[(self.comm.rank - self.turn - 1) % self.size]
