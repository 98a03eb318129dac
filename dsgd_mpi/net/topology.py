"""Who communicates with whom at a step: pure functions of (step, size, seed), so no message is needed to agree."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np

Graph = Literal["ring", "torus", "exponential", "random", "complete"]


@lru_cache(16)                              # on a simulated cluster all ranks ask for the same ones
def matching(step: int, size: int, seed: int) -> np.ndarray:
    """A random perfect matching: int (size,), the partner of every rank; with an odd size one rank is its own.

    It is an involution, matching[matching[i]] == i, and every pair is equally likely.
    """
    order = np.random.default_rng((seed, step)).permutation(size)
    partner = np.arange(size)
    left, right = order[0 : size - size % 2 : 2], order[1::2]
    partner[left], partner[right] = right, left
    partner.flags.writeable = False
    return partner


@lru_cache(16)
def partition(step: int, size: int, groups: int, seed: int) -> np.ndarray:
    """A random partition of all ranks into groups whose sizes differ by one at most: int (size,), each rank's group."""
    group = np.empty(size, np.int64)
    group[np.random.default_rng((seed, step, 2)).permutation(size)] = np.arange(size) % groups
    group.flags.writeable = False
    return group


def random_peer(step: int, rank: int, size: int, seed: int, itself: bool = False) -> int:
    """One of the other ranks, uniformly, drawn by this rank alone; itself if it may be, or if there is no other."""
    if size == 1:
        return rank
    return int((rank + np.random.default_rng((seed, step, rank)).integers(0 if itself else 1, size)) % size)


def chance(probability: float, *of: int) -> bool:
    """Whether something of that probability happens; a draw that depends on the numbers `of` alone."""
    return probability == 1 or np.random.default_rng(of).random() < probability


def exponential_peer(step: int, rank: int, size: int) -> int:
    """Whom a rank sends to on the directed exponential graph: the rank 1, 2, 4, ... further on, in turn.

    At each step every rank sends once and receives once; after log2 n steps each has received from all, if indirectly.
    """
    return (rank + (1 << step % max(1, (size - 1).bit_length()))) % size


def exponential_sender(step: int, rank: int, size: int) -> int:
    """Who sends to a rank at that step: the inverse of `exponential_peer`."""
    return (rank - (1 << step % max(1, (size - 1).bit_length()))) % size


@lru_cache(16)
def neighbours(graph: str, size: int, step: int, seed: int) -> list[list[int]]:
    """For every rank, the ranks that it exchanges with at a step; symmetric, without itself. Not to be changed.

    "ring"; "torus", the most nearly square one of `size` ranks; "exponential", all ranks at distances 1, 2, 4, ...;
    "random", two random matchings, new ones at each step; "complete".
    """
    if graph == "random":
        pairs = [matching(2 * step + turn, size, seed) for turn in (0, 1)]
        return [sorted({int(partner[rank]) for partner in pairs} - {rank}) for rank in range(size)]
    if graph == "torus":
        rows = next(rows for rows in range(int(size**0.5), 0, -1) if size % rows == 0)
        columns = size // rows
        return [sorted({r // columns * columns + (r + 1) % columns, r // columns * columns + (r - 1) % columns,
                        (r + columns) % size, (r - columns) % size} - {r}) for r in range(size)]
    distances = {"ring": [1], "exponential": [1 << power for power in range((size - 1).bit_length())],
                 "complete": list(range(1, size))}[graph]
    return [sorted({(rank + sign * distance) % size for distance in distances for sign in (1, -1)} - {rank})
            for rank in range(size)]


def metropolis(graph: str, size: int, step: int, seed: int, rank: int, lazy: bool = False) -> dict[int, float]:
    """Row `rank` of W on `neighbours`, without its diagonal, the remainder to 1: neighbour -> weight.

    W_ij = 1 / (1 + max(d_i, d_j)) for degrees d: symmetric and doubly stochastic; 1/n on the complete graph. `lazy`:
    half of that, so that no eigenvalue is negative.
    """
    every = neighbours(graph, size, step, seed)
    return {peer: (0.5 if lazy else 1.0) / (1 + max(len(every[rank]), len(every[peer]))) for peer in every[rank]}
