"""Memory for arrays that live one after another: what one gives back, the next may borrow."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from dsgd_mpi.arrays.flat import Array, Shape


class Memory:
    """Lends arrays that `empty` allocates. `allocated_bytes`: of all of them, shared memory counted once."""

    def __init__(self, empty: Callable[[Shape], Array]) -> None:
        self.empty = empty
        self.free: list[Array] = []
        self.lent: dict[int, Array] = {}    # id of an array -> the array whose memory it borrows
        self.allocated_bytes = 0

    def borrow(self, shape: Shape) -> Array:
        """An array in the smallest free memory that is large enough, or in new memory."""
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
        """It may be overwritten from now on; the caller keeps a reference, or its id may be reused."""
        self.free.append(self.lent[id(array)])
