"""Means of a vector in fragments that take turns, each under way for some steps while the ranks compute."""

from __future__ import annotations

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net, Pending


class Fragments:
    """Of a vector d: `count` of equal length, each sent once in `period` steps and awaited `delay` < `period` later.

    Until it is sent again, a fragment that has been awaited holds the mean; before that, it may only be read by `net`.
    What was sent at step `lost` or before never arrives.
    """

    def __init__(self, net: Net, d: Array, count: int, period: int, delay: int, lost: int = 0) -> None:
        self.net, self.d, self.period, self.delay, self.lost = net, d, period, delay, lost
        bounds = [d.size * each // count for each in range(count + 1)]
        self.turns = [(turn * period // count, slice(bounds[turn - 1], bounds[turn])) for turn in range(1, count + 1)]
        self.under_way: dict[int, Pending] = {}     # by the fragment's beginning

    def due(self, step: int) -> list[slice]:
        """Whose turn is at that step; none at step 0."""
        return [part for at, part in self.turns if step > self.lost and (step - at) % self.period == 0]

    def send(self, part: slice) -> None:
        """Collective; d[part] is this rank's."""
        self.under_way[part.start] = self.net.mean(self.d[part])

    def arrived(self, step: int) -> list[slice]:
        """Those whose delay ends at that step, and d holds their means; waits for them."""
        parts = self.due(step - self.delay)
        for part in parts:
            if part.start in self.under_way:        # else `rest` has waited for it
                self.under_way.pop(part.start).wait()
        return parts

    def rest(self) -> None:
        """Waits for all that is under way: d is then all that is to be kept."""
        while self.under_way:
            self.under_way.popitem()[1].wait()
