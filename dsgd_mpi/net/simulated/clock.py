"""Virtual time: what happens is called in the order of time, and at one time in the order in which it was scheduled."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator

Call = Callable[[], object]


class Clock:
    """`now` in seconds since the start."""

    def __init__(self) -> None:
        self.now = 0.0
        self.times: list[float] = []        # those to come, a heap
        self.future: dict[float, list[Call]] = {}       # by time
        self.due: Iterator[Call] = iter(())     # of this time, scheduled before it came
        self.present: deque[Call] = deque()     # scheduled since
        self.last: list[Call] = []          # of this time, once nothing else is left at it

    def at(self, time: float, call: Call) -> None:
        """Calls at that time; now, if it is past."""
        if time <= self.now:
            self.present.append(call)
        elif calls := self.future.get(time):
            calls.append(call)
        else:
            self.future[time] = [call]
            heapq.heappush(self.times, time)

    def run(self) -> None:
        """Until nothing is left to happen."""
        while True:
            if self.present:
                self.present.popleft()()
            elif call := next(self.due, None):
                call()
            elif self.last:
                calls, self.last = self.last, []
                for call in calls:
                    call()
            elif self.times:
                self.now = heapq.heappop(self.times)
                self.due = iter(self.future.pop(self.now))
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
        self.clock.present += self.calls
        self.calls = []
