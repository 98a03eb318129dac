"""Vectors of which only some entries are sent, with their indices, in one array of integers."""

from __future__ import annotations

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.letters import Letters


class Sparse:
    """Means of such vectors. Nothing else may collect letters from `net` meanwhile."""

    def __init__(self, net: Net) -> None:
        self.net, self.letters = net, Letters(net)

    def mean(self, u: Array, places: Array, of_senders: bool = False) -> None:
        """Collective: u becomes the mean of all ranks' u, 0 but at each one's own `places`; bitwise equal on all.

        `places`: int (k,), no index twice; k may differ from rank to rank. `of_senders`: each entry's mean is that over
        the ranks among whose places it is, 0 if there are none.
        """
        own, senders = pack(u, places), 0 * u
        u[:] = 0
        for packed in self.letters.from_all(own):   # in the same order everywhere
            add(packed, into=u)
            if of_senders:
                senders[packed[: packed.size // 2]] += 1
        u /= np.maximum(senders, 1) if of_senders else self.net.size


def largest(u: Array, k: int) -> Array:
    """The indices of the k entries of u that are largest in magnitude: int (k,), in no particular order."""
    return np.argpartition(abs(u), u.size - k)[u.size - k :]


def largest_share(u: Array, share: float) -> Array:
    """The indices of that share of u's entries, of at least one."""
    return largest(u, min(max(1, round(share * u.size)), u.size))


def pack(u: Array, places: Array) -> Array:
    """The entries of u at those indices, to be sent: int32 or int64 (2 k,), as wide as u's; indices first."""
    k = places.size
    packed = np.empty_like(u, dtype=f"int{8 * u.itemsize}", shape=2 * k)
    packed[:k], packed[k:] = places, u[places].view(packed.dtype)
    return packed


def add(packed: Array, into: Array, weight: float = 1.0) -> None:
    """into[places] += weight * values."""
    k = packed.size // 2
    into[packed[:k]] += weight * packed[k:].view(into.dtype)
