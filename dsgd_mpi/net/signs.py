"""Vectors of which only the signs are sent, and for each part one size, the mean magnitude there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dsgd_mpi.arrays.flat import Array


def pack(u: Array, parts: Sequence[slice]) -> Array:
    """To be sent: int32 or int64, as wide as u's elements; first the sizes of the parts, then 1 bit for each element.

    `parts` cover u; 0 counts as positive.
    """
    bits = np.zeros_like(u, dtype="uint8", shape=-(-u.size // (8 * u.itemsize)) * u.itemsize)
    bits[: -(-u.size // 8)] = np.packbits(u >= 0)
    sizes = np.stack([abs(u[part]).mean() for part in parts])
    return np.concatenate([each.view(f"int{8 * u.itemsize}") for each in (sizes, bits)])


def add(packed: Array, parts: Sequence[slice], into: Array) -> None:
    """into += signs times sizes, of a vector packed with the same parts."""
    sizes, bits = packed[: len(parts)].view(into.dtype), packed[len(parts) :].view("uint8")
    signs = 2 * np.unpackbits(bits)[: into.size].astype(into.dtype) - 1
    for number, part in enumerate(parts):
        into[part] += sizes[number : number + 1] * signs[part]
