"""A vector sharded over some of the ranks in shared memory: a parameter server without a server."""

from __future__ import annotations

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net, Weigh


class Sharded:
    """The vector x over the first `owners` ranks (0: all), to be read and added to by all ranks, part by part.

    With `max_delay`, `flush` leaves out an addition once so many by others have come since this rank's last read.
    """

    def __init__(self, net: Net, x: Array, owners: int = 0, max_delay: int = 0) -> None:
        owners = min(owners or net.size, net.size)
        bounds = [x.size * rank // owners for rank in range(owners + 1)] + [x.size] * (net.size - owners)
        self.parts = [slice(bounds[rank], bounds[rank + 1]) for rank in range(owners)]
        self.max_delay, self.known, self.added = max_delay, 0, 0
        self.flushed = net.counters(2) if max_delay else None       # by all ranks: begun, and done; none left out
        self.net, self.shared = net, net.share(x[bounds[net.rank] : bounds[net.rank + 1]])

    def read(self, out: Array, glance: bool = False) -> Array:
        """One-sided: fills `out` (the whole vector) and returns it. Staleness does not count a `glance`."""
        if self.flushed and not glance:
            self.known = int(self.flushed.values()[1])      # first: rather too few than too many
        return self.shared.read_parts(self.parts, out, glance)

    def add(self, delta: Array, weigh: Weigh | None = None) -> None:
        """One-sided: adds `delta` (the whole vector), each part weighed by its own staleness, if at all."""
        self.shared.add_parts(self.parts, delta, weigh)

    def flush(self, delta: Array, weigh: Weigh | None = None, gradients: int = 1) -> int | None:
        """Adds `delta`, a sum of so many gradients, unless that is too late, and sets it to zero.

        How many this rank has added so far; None if nothing is ever too late.
        """
        if self.in_time():
            self.add(delta, weigh)
            self.added += gradients
            if self.flushed:
                self.flushed.add(1)
        delta[:] = 0
        return self.added if self.flushed else None

    def in_time(self) -> bool:
        """Whether an addition now is not too late: it then has its place among all."""
        if not self.flushed:
            return True
        late = self.known + self.max_delay
        if self.flushed.values()[0] >= late:
            return False
        if self.flushed.add(0) >= late:     # by others, just now
            self.flushed.add(0, -1)
            return False
        self.known += 1
        return True

    def whole(self, like: Array) -> Array:
        """Collective: a copy of the vector after all additions are complete; the same on all ranks."""
        self.net.settle()                   # nobody adds any more
        whole = self.read(np.empty_like(like))
        self.net.settle()                   # nobody continues before all have read
        return whole
