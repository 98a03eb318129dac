"""What is shared one-sidedly on a simulated cluster: the memory of ranks, and counters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Shared, Weigh

if TYPE_CHECKING:
    from dsgd_mpi.net.simulated.host import SimulatedHost


class Memory:
    """What was shared: the ranks' parts, one after the other, and the additions to each so far."""

    def __init__(self, parts: list[Array]) -> None:
        self.whole = np.concatenate(parts)
        self.lengths = np.array([part.size for part in parts])
        bounds = np.concatenate([[0], np.cumsum(self.lengths)])
        self.parts = [self.whole[begin:end] for begin, end in itertools.pairwise(bounds.tolist())]
        self.counts = np.zeros(len(parts), np.int64)


class SharedMemory(Shared):
    """`Shared` on a simulated cluster: reading is a request and its answer, adding one message."""

    def __init__(self, host: SimulatedHost, memory: Memory) -> None:
        self.host, self.memory = host, memory
        self.seen = np.zeros(host.size, np.int64)

    def read(self, owner: int, out: Array | None = None, glance: bool = False) -> Array:
        part = self.memory.parts[owner]
        out = np.empty_like(part) if out is None else out
        self.host.travel(self.host.rank, owner)
        self.host.be_served(owner)
        out[:] = part
        if not glance:
            self.seen[owner] = self.memory.counts[owner]
        self.host.travel(owner, self.host.rank, out.nbytes * self.host.cluster.machine.read_factor)
        self.host.touch(out.nbytes if owner == self.host.rank else 0)
        self._moved(slice(owner, owner + 1), out)
        return out

    def add(self, owner: int, delta: Array, weigh: Weigh | None = None) -> int:
        delta = delta.copy()
        self.host.travel(self.host.rank, owner, delta.nbytes * self.host.cluster.machine.add_factor)
        self.host.be_served(owner)
        self.host.touch(delta.nbytes if owner == self.host.rank else 0)
        return self._added(slice(owner, owner + 1), self.memory.parts[owner], delta, weigh)

    def read_parts(self, parts: Sequence[slice], out: Array, glance: bool = False) -> Array:
        """One flow and one event, since the parts are one after the other."""
        assert out.size == self.memory.whole.size
        self.host.reach(len(parts), 2)
        out[:] = self.memory.whole
        if not glance:
            self.seen[: len(parts)] = self.memory.counts[: len(parts)]
        self.host.spread(out.nbytes, len(parts), to_them=False)
        self._moved(slice(0, len(parts)), out)
        return out

    def add_parts(self, parts: Sequence[slice], delta: Array, weigh: Weigh | None = None) -> None:
        delta = delta.copy()
        self.host.spread(delta.nbytes, len(parts), to_them=True)
        self.host.reach(len(parts), 1)
        self._added(slice(0, len(parts)), self.memory.whole, delta, weigh)

    def _added(self, owners: slice, to: Array, delta: Array, weigh: Weigh | None) -> int:
        """The staleness at the first of them."""
        memory, traffic = self.memory, self.host.traffic
        stale = memory.counts[owners] - self.seen[owners]
        if weigh:
            delta *= np.repeat([weigh(int(each)) for each in stale], memory.lengths[owners]).astype(delta.dtype)
        to += delta
        memory.counts[owners] += 1
        self.seen[owners] += 1
        for each, times in zip(*np.unique(stale, return_counts=True), strict=True):
            traffic.staleness[int(each)] += int(times)
        self._moved(owners, delta)
        return int(stale[0])

    def _moved(self, owners: slice, x: Array) -> None:
        """Counts the bytes of their parts of x, less this rank's own."""
        own = self.memory.lengths[self.host.rank] if owners.start <= self.host.rank < owners.stop else 0
        self.host.traffic.bytes_sent += round((x.size - int(own)) * x.itemsize * self.host.cluster.machine.scale)


class Numbers:
    """`Counters` on a simulated cluster, on rank 0."""

    def __init__(self, host: SimulatedHost, numbers: Array) -> None:
        self.host, self.numbers = host, numbers

    def add(self, which: int, amount: int = 1) -> int:
        self.host.travel(self.host.rank, 0)
        before = int(self.numbers[which])
        self.numbers[which] += amount
        self.host.cluster.count()
        self.host.travel(0, self.host.rank)
        return before

    def values(self) -> Array:
        self.host.travel(self.host.rank, 0)
        found, self.host.counted = self.numbers.copy(), self.host.cluster.counts
        self.host.travel(0, self.host.rank)
        return found
