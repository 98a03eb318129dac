"""A vector sharded over some of the ranks in shared memory: a parameter server without a server."""

from __future__ import annotations

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net


class Sharded:
    """The vector x over the first `owners` ranks (0: all), to be read and added to by all ranks, part by part."""

    def __init__(self, net: Net, x: Array, owners: int = 0) -> None:
        owners = min(owners or net.size, net.size)
        bounds = [x.size * rank // owners for rank in range(owners + 1)] + [x.size] * (net.size - owners)
        self.parts = [slice(bounds[rank], bounds[rank + 1]) for rank in range(owners)]
        self.net, self.shared = net, net.share(x[bounds[net.rank] : bounds[net.rank + 1]])

    def read(self, out: Array) -> Array:
        """One-sided: fills `out` (the whole vector) and returns it."""
        for owner, part in enumerate(self.parts):
            self.shared.read(owner, out[part])
        return out

    def add(self, delta: Array) -> int:
        """One-sided: adds `delta` (the whole vector); the largest staleness over its parts."""
        return max(self.shared.add(owner, delta[part]) for owner, part in enumerate(self.parts))

    def flush(self, delta: Array) -> None:
        """Adds `delta` and sets it to zero."""
        self.add(delta)
        delta[:] = 0

    def age(self) -> int:
        """The largest number of additions to any part since this rank last read it."""
        return max(self.shared.age(owner) for owner in range(len(self.parts)))

    def whole(self, like: Array) -> Array:
        """Collective: a copy of the vector after all additions are complete; the same on all ranks."""
        self.net.settle()                   # nobody adds any more
        whole = self.read(np.empty_like(like))
        self.net.settle()                   # nobody continues before all have read
        return whole
