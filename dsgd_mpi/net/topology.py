"""Who communicates with whom at a step: pure functions of (step, size, seed), so no message is needed to agree."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import numpy as np

from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.base_graph import base_graph
from dsgd_mpi.net.graph_file import SUFFIXES, GraphFile, read

STATIC = "ring", "torus", "exponential", "hypercube", "star", "line", "erdos-renyi", "complete"
NAMES = *STATIC, "random", "one-peer"       # these differ from step to step, as base-K does
BASE = re.compile(r"base-([2-9]|[1-9]\d{1,5})")


class OneOf(NamedTuple):
    """The graphs that an option may name, or a file: how its text is read."""

    names: tuple[str, ...]
    base: bool = False                      # base-2, base-3, ... too
    push: bool = False                      # in a file, edges may go one way

    def __call__(self, text: str, what: str) -> str:
        """UsageError, which begins with `what`, if it is none of them."""
        if text in self.names or (self.base and BASE.fullmatch(text)):
            return text
        if text.endswith(SUFFIXES):
            return read(text, what, self.push)
        raise UsageError(f"{what}: expected {self}, found {text[:60]!r}")

    def __str__(self) -> str:
        base = ["base-K for a K from 2 on"] if self.base else []
        return f"{', '.join([*self.names, *base])} or a file (FILE{', FILE'.join(SUFFIXES)})"


Static = Annotated[str, OneOf(STATIC)]
Graph = Annotated[str, OneOf(NAMES, base=True)]
Push = Annotated[str, OneOf(("exponential",), push=True)]
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


def shares(graph: str, size: int, step: int, rank: int) -> tuple[float, dict[int, float]]:
    """What share of all that it has a rank keeps at a step by push-sum; and to whom it sends how many times that.

    "exponential", half of it to `exponential_peer`; or as a file says.
    """
    if isinstance(graph, GraphFile):
        kept = 1 - sum(graph.rows[rank].values())
        return kept, {peer: share / kept for peer, share in graph.rows[rank].items()}
    return (0.5, {exponential_peer(step, rank, size): 1.0}) if size > 1 else (1.0, {})


def senders(graph: str, size: int, rank: int) -> tuple[list[int], int]:
    """Who sends to a rank by push-sum, step by step, until it begins anew; and how many do so at a step."""
    if isinstance(graph, GraphFile):
        return graph.senders[rank], len(graph.senders[rank])
    return [exponential_sender(step, rank, size) for step in range((size - 1).bit_length())], min(1, size - 1)


@lru_cache(16)
def neighbours(graph: str, size: int, step: int, seed: int) -> list[list[int]]:
    """For every rank, the ranks that it exchanges with at a step; symmetric, without itself. Not to be changed.

    "ring"; "line"; "star", rank 0 and all others; "tree", rank r and 2 r, 2 r + 1; "torus", the most nearly square one
    of `size` ranks; "exponential", all ranks at distances 1, 2, 4, ...; "hypercube", ranks whose numbers differ in one
    bit; "one-peer", one such bit at a step, in turn; "random", two random matchings, new ones at each step;
    "erdos-renyi", a connected random graph of mean degree 2 ln n; "base-K", see `base_graph`; "complete".
    """
    every, bits = range(size), [1 << power for power in range((size - 1).bit_length())]
    if base := BASE.fullmatch(graph):
        rounds = base_graph(size, int(base[1]))
        return [list(row) for row in rounds[step % len(rounds)]]
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


def period(graph: str, size: int) -> int | None:
    """After how many steps `neighbours` are the same again; None if they never are."""
    if base := BASE.fullmatch(graph):
        return len(base_graph(size, int(base[1])))
    return {"one-peer": max(1, (size - 1).bit_length()), "random": None}.get(graph, 1)


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


def mixing_weights(graph: str, size: int, step: int, seed: int, rank: int, lazy: bool = False) -> dict[int, float]:
    """Row `rank` of W on `neighbours`, without its diagonal, the remainder to 1: neighbour -> weight.

    W_ij = 1 / (1 + max(d_i, d_j)) for degrees d (Metropolis): symmetric, doubly stochastic; 1/n on the complete graph.
    "base-K" and a file have weights of their own. `lazy`: half of that, so that no eigenvalue is negative.
    """
    share = 0.5 if lazy else 1.0
    if base := BASE.fullmatch(graph):
        rounds = base_graph(size, int(base[1]))
        return {peer: share * weight for peer, weight in rounds[step % len(rounds)][rank].items()}
    if isinstance(graph, GraphFile):
        return {peer: share * weight for peer, weight in graph.rows[rank].items()}
    every = neighbours(graph, size, step, seed)
    return {peer: share / (1 + max(len(every[rank]), len(every[peer]))) for peer in every[rank]}
