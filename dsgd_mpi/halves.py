"""Floats as 16 bits: float16, with 11 significant bits and up to 65,504, or bfloat16, with 8 and float32's range."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from dsgd_mpi.flat import Array

HALF_BYTES = 2
Half = Literal["float16", "bfloat16"]


def narrow(x: Array, kind: Half) -> Array:
    """The bits, uint16 and contiguous, of float numbers rounded to nearest, ties to even."""
    x = x.astype(np.float32, order="C", copy=False)
    if kind == "float16":
        with np.errstate(over="ignore"):    # what is too large becomes infinite, as on any processor
            return x.astype(np.float16).view(np.uint16)
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widen(bits: Array, kind: Half, dtype: Any = np.float32) -> Array:
    """The numbers, exactly."""
    if kind == "float16":
        return bits.view(np.float16).astype(dtype)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(dtype, copy=False)
