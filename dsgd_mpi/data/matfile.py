"""Arrays from MATLAB's files of version 5, as far as ImageNet's meta.mat needs: numbers, text, cells and structs.

    a file is 128 bytes of header and elements; an element is its type and length, uint32 each, and its bytes, which
    are padded to 8; one of up to 4 bytes has type and length in 16 bits each; an element of type 15 is zlib's

(MAT-File Format, MathWorks, R2024a, chapter 1.) SciPy reads the same, but nothing else here needs SciPy.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXT = {16: "utf-8", 17: "utf-16", 18: "utf-32"}
MATRIX, PACKED = 14, 15
CELL, STRUCT, CHAR = 1, 2, 4
LARGEST = 1 << 28                           # bytes unpacked; meta.mat has some 100 KB


def load(content: bytes) -> dict[str, Any]:
    """The variables of a file: numbers as arrays, text as str, cells as lists and structs as lists of dicts.

    ValueError if it is no such file, or damaged.
    """
    if len(content) < 128 or content[124:128] not in (b"\0\1IM", b"\1\0MI"):
        raise ValueError("no MATLAB file of version 5")
    try:
        order = "<" if content[126:128] == b"IM" else ">"
        return dict(_matrix(data, order) for kind, data in _elements(content[128:], order) if kind == MATRIX)
    except (struct.error, zlib.error, StopIteration, RuntimeError, TypeError, LookupError) as error:
        raise ValueError(f"damaged, {type(error).__name__}: {error}") from error


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:                      # the small form
            kind, length, start = kind & 0xffff, kind >> 16, at + 4
            at += 8
        else:
            start = at + 8
            at = start + length + (0 if kind == PACKED else -length % 8)
        if start + length > len(data):
            raise ValueError(f"damaged, cut off within an element of {length} bytes")
        if kind == PACKED:
            unpacker = zlib.decompressobj()
            yield from _elements(unpacker.decompress(data[start:start + length], LARGEST), order)
        else:
            yield kind, data[start:start + length]
    if at < len(data):
        raise ValueError("damaged, cut off between two elements")


def _values(kind: int, data: bytes, order: str) -> Any:
    if kind in TEXT:
        return data.decode(TEXT[kind] if kind == 16 else f"{TEXT[kind]}-{'le' if order == '<' else 'be'}")
    return np.frombuffer(data, order + NUMBERS[kind])


def _matrix(data: bytes, order: str) -> tuple[str, Any]:
    """Name and value."""
    parts = _elements(data, order)
    flags, shape, name = [_values(*next(parts), order) for _ in range(3)]
    found = int(flags[0]) & 0xff
    title = bytes(name).decode("latin1")
    if found == CELL:
        return title, [_matrix(each, order)[1] if each else np.empty(0) for _, each in parts]
    if found == STRUCT:
        width = int(_values(*next(parts), order)[0])
        names = bytes(_values(*next(parts), order))
        keys = [names[i:i + width].split(b"\0")[0].decode("latin1") for i in range(0, len(names), width)]
        values = [_matrix(each, order)[1] if each else np.empty(0) for _, each in parts]
        return title, [dict(zip(keys, values[i:i + len(keys)], strict=True)) for i in range(0, len(values), len(keys))]
    if found == CHAR:
        text = _values(*next(parts), order)
        return title, text if isinstance(text, str) else "".join(map(chr, text.tolist()))
    if found > 15 or found < 6:
        raise ValueError(f"an array of MATLAB's class {found}")
    return title, _values(*next(parts), order).reshape(shape.tolist(), order="F")
