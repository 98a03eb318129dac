"""Vectors as sums of cosines, block by block (the type-II discrete cosine transform, orthonormal), by layer."""

from __future__ import annotations

from math import prod

import numpy as np

from dsgd_mpi.arrays.flat import Array, Shape, beside


class Cosines:
    """Of vectors like `like`, of layers of these shapes in a row.

    A layer is a matrix with a row for each channel that it makes, or for a bias a single row. It is cut into blocks
    whose sides are the largest divisors of its own that are at most `most`; of each the transform is taken along both.
    """

    def __init__(self, shapes: list[Shape], most: int, like: Array) -> None:
        self.cuts: list[tuple[slice, tuple[int, int, int, int]]] = []
        begin = 0
        for shape in shapes:
            rows, columns = (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))
            high, wide = largest_divisor(rows, most), largest_divisor(columns, most)
            self.cuts.append((slice(begin, begin + rows * columns), (rows // high, high, columns // wide, wide)))
            begin += rows * columns
        self.bases = {side: beside(like, cosines(side).astype(like.dtype))
                      for _, (_, high, _, wide) in self.cuts for side in (high, wide)}

    def of(self, u: Array) -> Array:
        """The coefficients of u, as many, in a vector of blocks."""
        found = np.empty_like(u)
        for part, (down, high, across, wide) in self.cuts:
            blocks = u[part].reshape(down, high, across, wide).transpose(0, 2, 1, 3)
            found[part] = (self.bases[high] @ blocks @ self.bases[wide].T).reshape(-1)
        return found

    def back(self, coefficients: Array) -> Array:
        """The vector that has these coefficients."""
        found = np.empty_like(coefficients)
        for part, (down, high, across, wide) in self.cuts:
            blocks = coefficients[part].reshape(down, across, high, wide)
            found[part] = (self.bases[high].T @ blocks @ self.bases[wide]).transpose(0, 2, 1, 3).reshape(-1)
        return found

    def largest(self, coefficients: Array, k: int) -> Array:
        """The indices of the k coefficients of each block that are largest in magnitude, of all if it has fewer."""
        found = []
        for part, (_, high, _, wide) in self.cuts:
            size = high * wide
            blocks = abs(coefficients[part].reshape(-1, size))
            first = size - min(k, size)
            within = np.argpartition(blocks, first, axis=1)[:, first:]
            begins = beside(within, part.start + size * np.arange(len(blocks)))
            found.append((within + begins[:, None]).reshape(-1))
        return np.concatenate(found)


def largest_divisor(number: int, most: int) -> int:
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)


def cosines(n: int) -> np.ndarray:
    """The matrix of the transform of n numbers, orthonormal: row k is cos(pi k (j + 1/2) / n), scaled."""
    k, j = np.arange(n)[:, None], np.arange(n)
    matrix: np.ndarray = (2 / n) ** 0.5 * np.cos(np.pi * k * (j + 0.5) / n)
    matrix[0] /= 2**0.5
    return matrix
