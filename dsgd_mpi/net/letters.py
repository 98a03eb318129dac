"""Letters in an order that the receiver chooses: from one sender at a time, whoever else has posted meanwhile."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Literal, overload

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Letter, Net


class Letters:
    """Letters that have arrived here and wait for their turn. Nothing else may collect from `net` meanwhile."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.waiting: defaultdict[int, deque[Letter]] = defaultdict(deque)      # by sender, in the order sent

    @overload
    def next_from(self, sender: int, wait: Literal[True] = True) -> Letter: ...
    @overload
    def next_from(self, sender: int, wait: bool) -> Letter | None: ...
    def next_from(self, sender: int, wait: bool = True) -> Letter | None:
        """The sender's next letter; None if it has not arrived and `wait` is false."""
        self._sort(0)
        while wait and not self.waiting[sender]:
            self._sort(1)
        return self.waiting[sender].popleft() if self.waiting[sender] else None

    def from_all(self, own: Array) -> Iterator[Array]:
        """Collective: sends a copy of `own` to all others; yields what each rank has sent, in rank order."""
        for peer in range(self.net.size):
            if peer != self.net.rank:
                self.net.post(own, peer)
        for rank in range(self.net.size):
            yield own if rank == self.net.rank else self.next_from(rank).array

    def _sort(self, least: int) -> None:
        for letter in self.net.collect(least):
            self.waiting[letter.source].append(letter)

    def __len__(self) -> int:
        return sum(map(len, self.waiting.values()))
