"""Memory for arrays that live one after the other: what one gives back, the next may borrow."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from dsgd_mpi.arrays.flat import Array, Shape


class Memory:
    """Lends arrays that `empty` makes. `allocated_bytes`: what all of them take, those that share counted once."""

    def __init__(self, empty: Callable[[Shape], Array]) -> None:
        self.empty = empty
        self.free: list[Array] = []
        self.lent: dict[int, Array] = {}    # id of an array -> that which its memory was borrowed from
        self.allocated_bytes = 0

    def borrow(self, shape: Shape) -> Array:
        """An array in the smallest free memory that is large enough, or in new."""
        size = prod(shape)
        fitting = [memory for memory in self.free if memory.size >= size]
        if fitting:
            memory = min(fitting, key=lambda array: int(array.size))
            self.free = [array for array in self.free if array is not memory]
        else:
            memory = self.empty((size,))
            self.allocated_bytes += memory.nbytes
        array = memory[:size].reshape(shape)
        self.lent[id(array)] = memory
        return array

    def give_back(self, array: Array) -> None:
        """It may be overwritten from now on; the caller keeps a reference, or its id may come again."""
        self.free.append(self.lent[id(array)])
