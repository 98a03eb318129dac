"""Floats as 16 bits: float16, with 11 significant bits and up to 65,504, or bfloat16, with 8 and float32's range."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from dsgd_mpi.arrays.flat import Array

BLOCK = 1 << 14                             # elements that are rounded at a time, in a processor's cache
Half = Literal["float16", "bfloat16"]


def narrow(x: Array, kind: Half) -> Array:
    """The bits, uint16 and contiguous, of floats rounded to nearest, ties to even."""
    x = x.astype(np.float32, order="C", copy=False)
    if kind == "float16":
        with np.errstate(over="ignore"):    # what is too large becomes infinite, as on any processor
            return x.astype(np.float16).view(np.uint16)
    bits, narrowed = x.reshape(-1).view(np.uint32), np.empty_like(x, dtype=np.uint16)
    upper, block = narrowed.reshape(-1), BLOCK if isinstance(x, np.ndarray) else max(x.size, 1)
    for start in range(0, x.size, block):
        part = slice(start, start + block)
        rounded = bits[part] >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits[part]
        rounded >>= 16
        upper[part] = rounded
    return narrowed


def widen(bits: Array, kind: Half, dtype: Any = np.float32) -> Array:
    """The values, exactly."""
    if kind == "float16":
        return bits.view(np.float16).astype(dtype)
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32).astype(dtype, copy=False)


def rounded(x: Array, kind: Half) -> Array:
    """A copy of x as it arrives when sent in 16 bits."""
    return widen(narrow(x, kind), kind, x.dtype)


def wire_bytes(x: Array, kind: Half | None) -> int:
    """Bytes of x when sent in 16 bits or, without a kind, as it is."""
    return int(x.nbytes) if kind is None else 2 * int(x.size)
