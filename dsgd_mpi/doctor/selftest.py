"""Each verb for a short time on all ranks at once: are messages and one-sided memory correct, and how fast are they?

Every rank works with the one half the job away, which is on another host wherever there are several. Times are medians
over the repetitions of a rank; the median over ranks and the slowest rank are reported.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Host

LARGE, SMALL = 1 << 21, 1                   # float32 numbers: 8 MiB, of which 128 ranks fit on one host; 4 bytes
TURNS = 5000                                # at most, for one verb and size


class Timing(NamedTuple):
    """A verb with one size, over all ranks."""

    verb: str
    numbers: int
    turns: int
    median_s: float
    slowest_s: float
    slowest_rank: int

    @property
    def bytes(self) -> int:
        return self.numbers * 4

    @property
    def bytes_per_s(self) -> float:
        return self.bytes / self.median_s


def selftest(host: Host, seconds: float, stage: Callable[[str], None]) -> Iterator[Timing]:
    """Collective: the timings one by one. RuntimeError names the rank and the verb with a wrong result."""
    trials = [trial for numbers in (LARGE, SMALL) for trial in verbs(host, numbers)]
    for verb, numbers, act in trials:
        stage(f"{verb} of {numbers * 4:,} bytes")
        yield timed(host, verb, numbers, act, seconds / len(trials))


def verbs(host: Host, numbers: int) -> Iterator[tuple[str, int, Callable[[], None]]]:
    """Collective: each verb as a call that checks its result."""
    peer = partner(host.rank, host.size)
    own, out = np.full(numbers, host.rank, np.float32), np.empty(numbers, np.float32)
    ones, shared = np.ones(numbers, np.float32), host.share(np.zeros(numbers, np.float32))
    added = 0

    def mean() -> None:
        out[:] = own
        check(host.mean(out).wait(), (host.size - 1) / 2, "mean")

    def exchange() -> None:
        check(host.exchange(own, peer).wait(), peer, f"exchange with rank {peer}")

    def add() -> None:
        nonlocal added
        shared.add(peer, ones)              # only this rank adds there
        added += 1

    def read() -> None:
        check(shared.read(peer), added, f"window of rank {peer}")

    def check(found: Array, expected: float, what: str) -> None:
        if found[0] != np.float32(expected) or found[-1] != np.float32(expected):
            raise RuntimeError(f"rank {host.rank}: {what}: expected {expected}, found {found[0]} ... {found[-1]}")

    for act in (mean, exchange, add, read):
        yield act.__name__ if act in (mean, exchange) else f"window {act.__name__}", numbers, act


def partner(rank: int, size: int) -> int:
    """The rank half the job away, and vice versa; an odd one out works with itself."""
    half = size // 2
    return (rank + half) % (2 * half) if rank < 2 * half else rank


def timed(host: Host, verb: str, numbers: int, act: Callable[[], Any], budget_s: float) -> Timing:
    """Collective: repetitions for about that long, the same number on each rank."""
    seconds(host, [act, act])                   # the first ones open connections
    slowest = max(host.allgather(sum(seconds(host, [act]))))
    turns = int(min(TURNS, max(3, budget_s / slowest)))
    host.settle()
    median = statistics.median(seconds(host, [act] * turns))
    host.settle()                           # windows make progress while their owners wait here
    medians = host.allgather(median)
    return Timing(verb, numbers, turns, statistics.median(medians), max(medians), int(np.argmax(medians)))


def seconds(host: Host, acts: list[Callable[[], Any]]) -> list[float]:
    found = []
    for act in acts:
        start = host.now()
        act()
        found.append(host.now() - start)
    return found
