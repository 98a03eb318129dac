"""All ranks agree on one step to stop at, without a message until somebody asks.

Whoever asks tells all others. Whoever hears of it, wherever it waits, bids the first step that it has not begun, joins
a non-blocking maximum over all bids, and begins no step from its bid on before the maximum is known. That is the step
at which all stop: nobody is past it, and whoever is behind goes on to it, with everyone whose part it needs.
"""

from __future__ import annotations

import os

import numpy as np
from mpi4py import MPI


class Stop:
    """This rank's part of the agreement."""

    def __init__(self, comm: MPI.Comm) -> None:
        self.comm = comm.Dup()              # calls for a stop may come from any rank: nothing else may travel here
        self.step = 0                       # the first step not yet begun
        self.bid = np.array([-1])
        self.highest = np.array([-1])
        self.bidding: MPI.Request | None = None

    def agreed(self, step: int, asked: bool) -> bool:
        """To be called before each step: True, on every rank, at the step that all agreed on."""
        self.step = step
        if asked and self.bidding is None:
            calls = [self.comm.Isend(np.empty(0, np.uint8), rank) for rank in range(self.comm.size)
                     if rank != self.comm.rank]
            self._join()
            MPI.Request.Waitall(calls)      # empty messages: they leave at once
        self.listen()
        while self.bidding is not None and step >= self.bid[0] and not self.bidding.Test():
            os.sched_yield()
        self.step = step + 1
        return self.bidding is not None and step >= self.bid[0] and step >= self.highest[0]

    def listen(self) -> None:
        """Joins if some rank has asked. Called wherever this rank waits."""
        while self.comm.Iprobe():
            self.comm.Recv(np.empty(0, np.uint8))
            self._join()

    def _join(self) -> None:
        if self.bidding is None:
            self.bid[0] = self.step
            self.bidding = self.comm.Iallreduce(self.bid, self.highest, MPI.MAX)
