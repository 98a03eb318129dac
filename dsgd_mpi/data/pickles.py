"""NumPy arrays from pickles, which may come from anywhere: nothing else is built, and nothing is called.

    Python 2 and 3, protocols 0 to 5, NumPy 1 and 2, arrays in C and in Fortran order, lists of numbers
"""

from __future__ import annotations

import io
import pickle
import re
from typing import Any, ClassVar

import numpy as np

from dsgd_mpi.arrays.flat import Array


def load(content: bytes) -> Any:
    """What was pickled, of lists, dicts, numbers and text; `array` makes arrays of those in it. May raise anything.

    Text that Python 2 wrote is bytes, that of Python 3 str; `text` makes str of both.
    """
    return _ArraysOnly(io.BytesIO(content), encoding="bytes").load()


def array(value: Any) -> Any:
    """An array if `value` stands for one, else `value`."""
    return value.array if isinstance(value, _Pickled) else value


def text(value: Any) -> str:
    """Of bytes or anything else."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


class _Kind:
    """A dtype as pickled; only of numbers."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        self.code, self.order = text(code), "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = text(state[1])

    def dtype(self) -> np.dtype[Any]:
        if not re.fullmatch("[biuf][1248]", self.code) or self.order not in ("|", "<", ">", "="):
            raise pickle.UnpicklingError(f"an array of {self.order}{self.code} in it")
        return np.dtype(self.order + self.code)


class _Pickled:
    """An array as pickled. NumPy's own parser of its state trusts it, and pickles come from anywhere."""

    array = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, kind, fortran, data = state[-4:]
        self.array = _array(data, kind, shape, "F" if fortran else "C")


def _array(data: Any, kind: _Kind, shape: Any, order: Any = "C") -> Array:
    if not isinstance(data, bytes | bytearray) or text(order) not in ("C", "F"):
        raise pickle.UnpicklingError(f"an array made of {type(data).__name__} in it")
    order = "F" if text(order) == "F" else "C"
    return np.frombuffer(data, kind.dtype()).reshape(shape, order=order)


def _reconstruct(*_: Any) -> _Pickled:
    return _Pickled()


def _from_buffer(data: Any, kind: _Kind, shape: Any, order: Any) -> _Pickled:
    """What protocol 5 calls instead."""
    pickled = _Pickled()
    pickled.array = _array(data, kind, shape, order)
    return pickled


def _scalar(kind: _Kind, data: bytes) -> Any:
    return _array(data, kind, (1,))[0].item()


def _latin1(characters: str, _encoding: str = "latin1") -> bytes:
    return characters.encode("latin1")


class _ArraysOnly(pickle._Unpickler):       # in Python, since the one in C takes 64 GB if the bytes ask it to
    """Builds arrays and nothing else: a pickle may name any function, and loading it would call it."""

    KNOWN: ClassVar = {"ndarray": _Pickled, "_reconstruct": _reconstruct, "dtype": _Kind, "encode": _latin1,
                       "_frombuffer": _from_buffer, "scalar": _scalar}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in ("numpy", "_codecs") and name in self.KNOWN:
            return self.KNOWN[name]
        raise pickle.UnpicklingError(f"{module}.{name} in it")
