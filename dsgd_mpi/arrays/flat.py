"""One flat vector with named views: everything trained is in one array, so that one message can carry it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray: this code works on both
Shape = tuple[int, ...]
Hear = Callable[[Array, slice], None]        # takes a vector and a part of it that is final


def to_numpy(x: Array) -> Array:
    """`x` in host memory: itself, or a copy if it is on a device, once all work on it is done."""
    return x.get() if hasattr(x, "get") else x


def fill(x: Array, values: Array) -> None:
    """x[...] = values, a NumPy array, wherever x is."""
    if hasattr(x, "set"):                   # CuPy does not assign from host memory
        x.set(np.ascontiguousarray(np.broadcast_to(values, x.shape), x.dtype))
    else:
        x[...] = values


def finite(x: Array) -> bool:
    """Whether all elements are. Waits for the device that x is on."""
    return not x.size or bool(np.isfinite(x.min()) and np.isfinite(x.max()))     # both are NaN if an element is


def beside(x: Array, values: Array) -> Array:
    """A copy of `values`, a NumPy array, in the same kind of memory as x."""
    copy = np.empty_like(x, dtype=values.dtype, shape=values.shape)
    fill(copy, values)
    return copy


class Layout:
    """Where each name is in the flat vector.

    `trained` come first and are what SGD's momentum and weight decay act on; `statistics` (batch norm's running mean
    and variance) follow as the tail, so that every message that carries a model carries them too. `parameters` is the
    length of the first part, `size` the whole.
    """

    def __init__(self, trained: Mapping[str, Shape], statistics: Mapping[str, Shape] | None = None) -> None:
        self.shapes: dict[str, Shape] = {**trained, **(statistics or {})}
        self.slices: dict[str, slice] = {}
        self.size = 0
        for name, shape in self.shapes.items():
            self.slices[name] = slice(self.size, self.size + prod(shape))
            self.size += prod(shape)
        self.trained = list(trained)
        self.parameters = sum(prod(shape) for shape in trained.values())

    def views(self, vector: Array) -> dict[str, Array]:
        """Name -> view into `vector` (length `size`): writing to a view writes to the vector."""
        return {name: vector[part].reshape(self.shapes[name]) for name, part in self.slices.items()}


class Buckets:
    """Joins finished parts of a vector into ones worth a message: many small messages cost more than a few large ones.

    A backward pass finishes its gradient from the back to the front. It calls this with each part that is final, next
    to the previous one; `hear` is called with at least `least` elements at a time, and with the rest once the front is
    reached.
    """

    def __init__(self, least: int, hear: Callable[[slice], None]) -> None:
        self.least, self.hear = least, hear
        self.end: int | None = None         # from the last part to here the vector is finished but not yet announced

    def __call__(self, part: slice) -> None:
        end = part.stop if self.end is None else self.end
        told = end - part.start >= self.least or part.start == 0
        if told:
            self.hear(slice(part.start, end))
        self.end = (part.start or None) if told else end
