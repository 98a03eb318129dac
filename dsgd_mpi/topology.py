"""Who meets whom at a step: pure functions of (step, size, seed), so that no message is needed to agree."""

from __future__ import annotations

import numpy as np


def matching(step: int, size: int, seed: int) -> np.ndarray:
    """A random perfect matching: int (size,), the partner of every rank; with an odd size one rank meets itself.

    It is an involution, matching[matching[i]] == i, and every pair is equally likely.
    """
    order = np.random.default_rng((seed, step)).permutation(size)
    partner = np.arange(size)
    left, right = order[0 : size - size % 2 : 2], order[1::2]
    partner[left], partner[right] = right, left
    return partner


def random_peer(step: int, rank: int, size: int, seed: int) -> int:
    """One of the other ranks, uniformly, drawn by this rank alone; itself only where there is no other."""
    if size == 1:
        return rank
    return int((rank + np.random.default_rng((seed, step, rank)).integers(1, size)) % size)
