"""All ranks agree on a step to stop at, without a message until a rank asks.

The rank that asks notifies all others. Each rank that is notified, wherever it waits, bids the first step that it has
not begun, joins a non-blocking maximum over all bids, and begins no step from its bid on before the maximum is known.
That is the step at which all stop: no rank is past it, and those behind continue to it, with all ranks they depend on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from mpi4py import MPI


class Stop:
    """This rank's part of the agreement."""

    def __init__(self, comm: MPI.Comm, pause: Callable[[str, float], None]) -> None:
        self.pause = pause                  # what this rank does between two looks, given what it waits for since when
        self.comm = comm.Dup()              # requests to stop come from any rank: nothing else may be sent here
        self.between = comm.Dup()           # for `forget`, while a maximum may still be under way on the other
        self.step = 0                       # the first step not yet begun
        self.bid = np.array([-1])
        self.highest = np.array([-1])
        self.bidding: MPI.Request | None = None
        self.asked, self.heard = False, 0   # whether this rank has asked, and how many others it has heard

    def agreed(self, step: int, asked: bool) -> bool:
        """To be called before each step: True, on every rank, at the step that all have agreed on."""
        self.step = step
        if asked:
            self.ask()
        self.listen()
        start = time.perf_counter()
        while self.bidding is not None and step >= self.bid[0] and not self.bidding.Test():
            self.pause("the agreement on a step to stop at", start)
        self.step = step + 1
        return self.bidding is not None and step >= self.bid[0] and step >= self.highest[0]

    def ask(self) -> None:
        """All ranks to stop. Called before a step, or wherever this rank waits."""
        if self.bidding is None:
            self.asked = True
            calls = [self.comm.Isend(np.empty(0, np.uint8), rank) for rank in range(self.comm.size)
                     if rank != self.comm.rank]
            self._join()
            MPI.Request.Waitall(calls)      # empty messages: they complete at once

    def settled(self) -> bool:
        """Whether the step to stop at is known."""
        return self.bidding is not None and self.bidding.Test()

    def listen(self) -> None:
        """Joins if any rank has asked. Called wherever this rank waits."""
        while self.comm.Iprobe():
            self.comm.Recv(np.empty(0, np.uint8))
            self.heard += 1
            self._join()

    def forget(self) -> None:
        """Collective, between steps: as if nobody had asked; each may ask again afterwards."""
        askers = np.array([self.asked], np.int64)
        self._until(self.between.Iallreduce(MPI.IN_PLACE, askers).Test)
        others = askers[0] - self.asked
        self._until(lambda: self.heard >= others and (self.bidding is None or self.bidding.Test()))
        self.asked, self.heard, self.bidding = False, 0, None
        self._until(self.between.Ibarrier().Test)      # nobody asks before all have forgotten

    def _until(self, there: Callable[[], bool]) -> None:
        start = time.perf_counter()
        while not there():
            self.listen()
            self.pause("the end of a stop", start)

    def _join(self) -> None:
        if self.bidding is None:
            self.bid[0] = self.step
            self.bidding = self.comm.Iallreduce(self.bid, self.highest, MPI.MAX)
