"""The Base-(k+1) graph (Takezawa et al. 2023, arXiv:2305.11420): after some rounds in small groups all ranks are equal.

A rank meets at most k others a round, and after all rounds, at most 2 log_(k+1) n + 2, every rank has the exact mean,
for any n. The rules are the paper's algorithms, as the authors' code has them. Below, `base` is k + 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import permutations

Meetings = dict[tuple[int, int], float]     # of a round: (rank, peer) -> weight, both ways


@lru_cache(4)
def base_graph(size: int, base: int) -> list[list[dict[int, float]]]:
    """Rounds, rank -> peer -> weight, peers in ascending order; the rest of its weight is the rank's own.

    Algorithm 3: n is p q, where p has no prime factor above k + 1 and q no other. p groups of q ranks come to their
    means side by side (algorithm 2), then q groups of p, one rank of each (algorithm 1). Or algorithm 2, if shorter.
    """
    base, ranks, q = min(base, max(2, size)), list(range(size)), size
    while divisors := [number for number in range(2, base + 1) if q % number == 0]:
        q //= divisors[0]
    groups = [ranks[at : at + q] for at in range(0, size, q)]
    both = (beside([in_digits(group, base) for group in groups])
            + beside([in_cubes(across, base) for across in zip(*groups, strict=True)]))
    rounds: list[list[dict[int, float]]] = []
    for meetings in min(both, in_digits(ranks, base), key=len) or [{}]:
        rounds.append([{} for _ in ranks])
        for (rank, peer), weight in sorted(meetings.items()):
            rounds[-1][rank][peer] = weight
    return rounds


def in_digits(nodes: Sequence[int], base: int) -> list[Meetings]:
    """Algorithm 2, for any number of nodes: written in base k + 1, a digit d at place p makes a group of d (k+1)^p.

    All groups take their means. Then, from the largest on, one after the other meets the later ones: each of their
    nodes one node of each part of (k+1)^p, by the weight that makes their mean that of all, and so that of each part,
    which the part then takes. Nodes of the group that nobody meets average among themselves meanwhile.
    """
    if cubes := in_cubes(nodes, base):
        return cubes
    groups: list[list[Sequence[int]]] = []      # each its parts
    at, length = 0, 1
    while length * base <= len(nodes):
        length *= base
    while at < len(nodes):
        ends = range(at + length, len(nodes) + 1, length)
        groups += [[nodes[end - length : end] for end in ends]] if ends else []
        at, length = at + length * len(ends), length // base
    whole = [[node for part in group for node in part] for group in groups]
    own = [in_cubes(group, base) for group in whole]
    rounds = [joined(cubes[turn % len(cubes)] for cubes in own if cubes) for turn in range(len(own[0]))]
    # then a part; and where its parts are single nodes, the group, for which there is nothing left to do
    last = [beside([in_cubes(part, base) for part in (group if len(group[0]) > 1 else [every])])
            for group, every in zip(groups, whole, strict=True)]
    for turn in range(1 + len(last[0])):
        now: Meetings = {}
        if turn < len(groups) - 1:
            later = [node for group in whole[turn + 1 :] for node in group]
            weight = 1 / (1 + len(later) / len(whole[turn])) / len(groups[turn])
            for part in groups[turn]:
                now |= {pair: weight for both in zip(later, part, strict=False) for pair in permutations(both, 2)}
            unmet = [node for part in groups[turn] for node in part[len(later) :]]
            now |= means(unmet[at : at + base] for at in range(0, len(unmet), base))
        for group, cubes in enumerate(last):
            since = turn - min(group + 1, len(groups) - 1)      # the last one meets nobody after the one before it
            now |= cubes[since % len(cubes)] if cubes and since >= 0 else {}
        rounds.append(now)
    return rounds


def in_cubes(nodes: Sequence[int], base: int) -> list[Meetings]:
    """Algorithm 1, a hypercube of k + 1 nodes a side: n is a product of numbers up to k + 1, of the fewest; [] if not.

    These are the bases of the digits of a node's place, and at a round those nodes average that differ in one digit.
    """
    rounds, step = [], 1
    for factor in factors(len(nodes), base) or ():
        firsts = [place for place in range(len(nodes)) if place // step % factor == 0]
        rounds.append(means([nodes[first + step * digit] for digit in range(factor)] for first in firsts))
        step *= factor
    return rounds


@lru_cache
def factors(number: int, most: int) -> tuple[int, ...] | None:
    """The fewest numbers up to `most` whose product it is, in ascending order; None if there are none."""
    if number == 1:
        return ()
    ways = [(*rest, factor) for factor in range(2, min(number, most) + 1)
            if number % factor == 0 and (rest := factors(number // factor, factor)) is not None]
    return min(ways, key=len, default=None)


def means(groups: Iterable[Sequence[int]]) -> Meetings:
    """Those of a group take its mean."""
    return {pair: 1 / len(group) for group in groups for pair in permutations(group, 2)}


def beside(ways: Sequence[list[Meetings]]) -> list[Meetings]:
    """Several at once, of disjoint nodes and as many rounds."""
    return [joined(meetings) for meetings in zip(*ways, strict=True)]


def joined(parts: Iterable[Meetings]) -> Meetings:
    return {pair: weight for meetings in parts for pair, weight in meetings.items()}
