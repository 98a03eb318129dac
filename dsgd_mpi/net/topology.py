"""Who communicates with whom at a step: pure functions of (step, size, seed), so no message is needed to agree."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np

Static = Literal["ring", "torus", "exponential", "hypercube", "star", "line", "erdos-renyi", "complete"]
Graph = Literal[Static, "random", "one-peer", "base-2"]     # and those that differ from step to step
Tree = Literal["tree", "line", "star"]


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


def random_peers(step: int, rank: int, size: int, seed: int, count: int) -> list[int]:
    """So many of the other ranks, all if there are fewer: every such set is equally likely (Floyd's algorithm).

    Drawn by this rank alone; a single one is `random_peer`.
    """
    draw, found = np.random.default_rng((seed, step, rank)), []
    for most in range(max(size - count, 1), size):
        further = int(draw.integers(1, most + 1))
        found.append(most if further in found else further)
    return [(rank + further) % size for further in found]


@lru_cache(16)
def audiences(step: int, size: int, seed: int, count: int, regular: bool = False) -> list[list[int]]:
    """For every rank, the `random_peers` that it sends to at a step, `count` of them. Not to be changed.

    `regular`: every rank hears from as many, too. All are put in a random order, a circle, and each sends to those who
    follow it.
    """
    if not regular:
        return [random_peers(step, rank, size, seed, count) for rank in range(size)]
    order = np.random.default_rng((seed, step, 4)).permutation(size).tolist()
    found: list[list[int]] = [[] for _ in range(size)]
    for place, rank in enumerate(order):
        found[rank] = [order[(place + further) % size] for further in range(1, min(count, size - 1) + 1)]
    return found


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

    "ring"; "line"; "star", rank 0 and all others; "tree", rank r and 2 r, 2 r + 1; "torus", the most nearly square one
    of `size` ranks; "exponential", all ranks at distances 1, 2, 4, ...; "hypercube", ranks whose numbers differ in one
    bit; "one-peer", one such bit at a step, in turn; "random", two random matchings, new ones at each step;
    "erdos-renyi", a connected random graph of mean degree 2 ln n; "base-2", see `base_2`; "complete".
    """
    every, bits = range(size), [1 << power for power in range((size - 1).bit_length())]
    if graph == "base-2":
        rounds = base_2(size)
        return [sorted(row) for row in rounds[step % len(rounds)]]
    if graph == "erdos-renyi":
        return erdos_renyi(size, seed)
    if graph == "random":
        pairs = [matching(2 * step + turn, size, seed) for turn in (0, 1)]
        return [sorted({int(partner[rank]) for partner in pairs} - {rank}) for rank in every]
    if graph == "torus":
        rows = next(rows for rows in range(int(size**0.5), 0, -1) if size % rows == 0)
        columns = size // rows
        return [sorted({r // columns * columns + (r + 1) % columns, r // columns * columns + (r - 1) % columns,
                        (r + columns) % size, (r - columns) % size} - {r}) for r in every]
    if graph in ("hypercube", "one-peer"):
        now = bits[step % len(bits) :][:1] if graph == "one-peer" and bits else bits
        return [sorted(rank ^ bit for bit in now if rank ^ bit < size) for rank in every]
    if graph == "tree":
        return [sorted({rank // 2, *(child for child in (2 * rank, 2 * rank + 1) if child < size)} - {rank})
                for rank in every]
    if graph == "star":
        return [[*range(1, size)], *([0] for _ in range(1, size))]
    if graph == "line":
        return [[peer for peer in (rank - 1, rank + 1) if peer in every] for rank in every]
    distances = {"ring": [1], "exponential": bits, "complete": list(range(1, size))}[graph]
    return [sorted({(rank + sign * distance) % size for distance in distances for sign in (1, -1)} - {rank})
            for rank in every]


@lru_cache(4)
def behind(tree: Tree, size: int) -> list[dict[int, int]]:
    """For every rank of a tree, neighbour -> how many ranks are on that side of it. Not to be changed."""
    every, below = neighbours(tree, size, 0, 0), [1] * size
    for rank in reversed(range(1, size)):   # one neighbour of each has a lower number
        below[every[rank][0]] += below[rank]
    return [{peer: below[peer] if peer > rank else size - below[rank] for peer in every[rank]} for rank in range(size)]


@lru_cache(4)
def erdos_renyi(size: int, seed: int) -> list[list[int]]:
    """Each pair of ranks has an edge with probability 2 ln n / n; the first such graph that is connected."""
    draw = np.random.default_rng((seed, size))
    while True:
        upper = np.triu(draw.random((size, size)) < 2 * np.log(size) / size, 1)
        found = [np.flatnonzero(row).tolist() for row in upper | upper.T]
        reached, new = {0}, {0}
        while new := {peer for rank in new for peer in found[rank]} - reached:
            reached |= new
        if len(reached) == size:
            return found


@lru_cache(4)
def base_2(size: int) -> list[list[dict[int, float]]]:
    """The Base-(k+1) graph with k = 1 (Takezawa et al. 2023, arXiv:2305.11420): rounds, rank -> peer -> weight.

    After all rounds, log2 n if n is a power of 2 and at most 2 log2 n + 1 else, every rank has the exact mean. The
    ranks are split into groups by the powers of 2 that n is a sum of. Each group takes its mean, bit by bit. Then each
    in turn, the largest first, exchanges with all smaller ones, by the weight that makes its mean, and theirs, that of
    both; and takes its mean again.
    """
    groups, begin = [], 0
    for power in reversed(range(size.bit_length())):
        if size >> power & 1:
            groups.append((begin, power))
            begin += 1 << power
    most = groups[0][1]
    rounds: list[list[dict[int, float]]] = [[{} for _ in range(size)]
                                            for _ in range(2 * most + 1 if len(groups) > 1 else max(1, most))]
    for turn, (begin, power) in enumerate(groups):
        end, last = begin + (1 << power), turn == len(groups) - 1
        for first in [0] if last else [0, most + turn + 1]:
            for bit in range(power):
                for rank in range(begin, end):
                    rounds[first + bit][rank][begin + (rank - begin ^ 1 << bit)] = 0.5
        for rank, smaller in enumerate(range(end, size), start=begin):
            rounds[most + turn][rank][smaller] = rounds[most + turn][smaller][rank] = (1 << power) / (size - begin)
    return rounds


def mixing_weights(graph: str, size: int, step: int, seed: int, rank: int, lazy: bool = False) -> dict[int, float]:
    """Row `rank` of W on `neighbours`, without its diagonal, the remainder to 1: neighbour -> weight.

    W_ij = 1 / (1 + max(d_i, d_j)) for degrees d (Metropolis): symmetric, doubly stochastic; 1/n on the complete graph.
    "base-2" has weights of its own. `lazy`: half of that, so that no eigenvalue is negative.
    """
    share = 0.5 if lazy else 1.0
    if graph == "base-2":
        rounds = base_2(size)
        return {peer: share * weight for peer, weight in rounds[step % len(rounds)][rank].items()}
    every = neighbours(graph, size, step, seed)
    return {peer: share / (1 + max(len(every[rank]), len(every[peer]))) for peer in every[rank]}
