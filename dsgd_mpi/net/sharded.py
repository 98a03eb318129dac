"""A vector sharded over some of the ranks in shared memory: a parameter server without a server."""

from __future__ import annotations

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net, Weigh


class Sharded:
    """The vector x over the first `owners` ranks (0: all), to be read and added to by all ranks, part by part."""

    def __init__(self, net: Net, x: Array, owners: int = 0) -> None:
        owners = min(owners or net.size, net.size)
        bounds = [x.size * rank // owners for rank in range(owners + 1)] + [x.size] * (net.size - owners)
        self.parts = [slice(bounds[rank], bounds[rank + 1]) for rank in range(owners)]
        self.net, self.shared = net, net.share(x[bounds[net.rank] : bounds[net.rank + 1]])

    def read(self, out: Array, glance: bool = False) -> Array:
        """One-sided: fills `out` (the whole vector) and returns it. Staleness does not count a `glance`."""
        return self.shared.read_parts(self.parts, out, glance)

    def add(self, delta: Array, weigh: Weigh | None = None) -> None:
        """One-sided: adds `delta` (the whole vector), each part weighed by its own staleness, if at all."""
        self.shared.add_parts(self.parts, delta, weigh)

    def flush(self, delta: Array, weigh: Weigh | None = None) -> None:
        """Adds `delta` and sets it to zero."""
        self.add(delta, weigh)
        delta[:] = 0

    def whole(self, like: Array) -> Array:
        """Collective: a copy of the vector after all additions are complete; the same on all ranks."""
        self.net.settle()                   # nobody adds any more
        whole = self.read(np.empty_like(like))
        self.net.settle()                   # nobody continues before all have read
        return whole
