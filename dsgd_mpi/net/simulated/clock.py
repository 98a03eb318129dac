"""Virtual time: what happens is called in the order of time, and at one time in the order in which it was scheduled."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count

Call = Callable[[], object]


class Clock:
    """`now` in seconds since the start."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order = count()
        self.future: list[tuple[float, int, Call]] = []     # a heap
        self.present: deque[Call] = deque()
        self.last: list[Call] = []          # of this time, once nothing else is left at it

    def at(self, time: float, call: Call) -> None:
        """Calls at that time; now, if it is past."""
        if time > self.now:
            heapq.heappush(self.future, (time, next(self.order), call))
        else:
            self.present.append(call)

    def run(self) -> None:
        """Until nothing is left to happen."""
        while True:
            if self.present:
                self.present.popleft()()
            elif self.future and self.future[0][0] <= self.now:
                heapq.heappop(self.future)[2]()
            elif self.last:
                calls, self.last = self.last, []
                for call in calls:
                    call()
            elif self.future:
                self.now = self.future[0][0]
            else:
                return


class Event:
    """Something that happens once."""

    __slots__ = ("calls", "clock", "done")

    def __init__(self, clock: Clock) -> None:
        self.clock, self.done = clock, False
        self.calls: list[Call] = []

    def then(self, call: Call) -> None:
        """Calls once it has happened; never within this call."""
        if self.done:
            self.clock.at(self.clock.now, call)
        else:
            self.calls.append(call)

    def happen(self) -> None:
        self.done = True
        for call in self.calls:
            self.clock.at(self.clock.now, call)
        self.calls = []
