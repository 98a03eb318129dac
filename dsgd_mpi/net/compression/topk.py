"""The largest entries of a vector and their indices, in one array of integers: the rest is not sent."""

from __future__ import annotations

import numpy as np

from dsgd_mpi.arrays.flat import Array


def largest(u: Array, k: int) -> Array:
    """The indices of the k entries of u that are largest in magnitude: int (k,), in no particular order."""
    return np.argpartition(abs(u), u.size - k)[u.size - k :]


def pack(u: Array, places: Array) -> Array:
    """The entries of u at those indices, to be sent: int32 or int64 (2 k,), as wide as u's; indices first."""
    k = places.size
    packed = np.empty_like(u, dtype=f"int{8 * u.itemsize}", shape=2 * k)
    packed[:k], packed[k:] = places, u[places].view(packed.dtype)
    return packed


def add(packed: Array, into: Array) -> None:
    """into[places] += values."""
    k = packed.size // 2
    into[packed[:k]] += packed[k:].view(into.dtype)
