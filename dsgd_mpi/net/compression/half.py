"""Floats sent in 16 bits: half the bytes, with 11 (float16) or 8 (bfloat16) significant bits per element."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.half import Half, narrow, widen
from dsgd_mpi.net.api import Counters, Done, Letter, Net, Pending, Shared


class Compressed:
    """`Net` over another: floats are rounded when sent and summed at full precision. Other types are sent unchanged.

    A mean is rounded twice, before and after, and in a ring once more at each rank on its way.
    """

    def __init__(self, net: Net, half: Half) -> None:
        self.net, self.half = net, half
        self.rank, self.size = net.rank, net.size

    def mean(self, x: Array, half: Half | None = None) -> Pending:
        return self.net.mean(x, half or self.half)

    def exchange(self, x: Array, peer: int) -> Pending:
        if peer == self.rank:
            return Done(x)
        return Widened(self.net.exchange(narrow(x, self.half), peer), self.half, x.dtype)

    def post(self, x: Array, peer: int, note: float = 0.0) -> None:
        self.net.post(narrow(x, self.half) if x.dtype.kind == "f" else x, peer, note)

    def collect(self, least: int = 0) -> Iterator[Letter]:
        for letter in self.net.collect(least):
            halves = letter.array.dtype == "uint16"
            yield letter._replace(array=widen(letter.array, self.half)) if halves else letter

    def share(self, x: Array) -> Shared:
        raise NotImplementedError("shared memory is not compressed")

    def counters(self, count: int) -> Counters:
        return self.net.counters(count)

    def idle(self) -> None:
        self.net.idle()

    def settle(self) -> None:
        self.net.settle()

    def broadcast(self, x: Array, root: int = 0) -> None:
        self.net.broadcast(x, root)

    def nodes(self) -> list[list[int]]:
        return self.net.nodes()

    def group(self, ranks: Sequence[int]) -> Compressed:
        return Compressed(self.net.group(ranks), self.half)


class Widened:
    """An exchange in progress."""

    def __init__(self, pending: Pending, half: Half, dtype: object) -> None:
        self.pending, self.half, self.dtype = pending, half, dtype

    def test(self) -> bool:
        return self.pending.test()

    def wait(self) -> Array:
        return widen(self.pending.wait(), self.half, self.dtype)
