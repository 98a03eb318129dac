"""Data that flow through links and share them max-min fairly (Bertsekas and Gallager, Data Networks, 6.5.2).

No flow can be faster unless one that is no faster gets slower. A flow that is alone on its links costs one event; the
rates of all others are solved at once whenever one of them begins or ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.simulated.clock import Clock, Event

NEAR = 1e-9                                 # relative: so close to the end, a flow has ended; so near, rates are equal
NOWHERE = 0                                 # a link that all pass: fills the rows of those with fewer links than others


class Flow:
    """`size` bytes through `links`; a byte of it counts as `weights` bytes on each. `end` happens when it has arrived.
    """

    __slots__ = ("end", "links", "most", "rate", "since", "size", "slot", "weights")

    def __init__(self, end: Event, size: float, links: Sequence[int], weights: Sequence[float], most: float) -> None:
        self.end, self.size, self.links, self.weights, self.most = end, size, links, weights, most
        self.rate = self.since = 0.0        # while it is alone
        self.slot = -1                      # in the arrays, where it is not


class Flows:
    """All that flows at present. `capacities`: of each link, bytes per second; link NOWHERE is not limited."""

    def __init__(self, clock: Clock, capacities: Sequence[float]) -> None:
        self.clock = clock
        self.capacities = np.array([math.inf, *capacities[1:]])
        self.carried = np.zeros(len(self.capacities))       # bytes, by link
        self.on: list[set[Flow]] = [set() for _ in self.capacities]
        self.sharing: dict[int, Flow] = {}  # those that share a link, by slot
        self.spare: list[int] = []
        self.links, self.weights = np.zeros((0, 4), np.int64), np.zeros((0, 4))     # by slot
        self.left, self.rates, self.most, self.sizes = (np.zeros(0) for _ in range(4))
        self.solved = 0.0                   # when
        self.version = 0                    # of the rates: an end that was computed from older ones is none
        self.unsolved = False

    def begin(self, end: Event, size: float, links: Sequence[int], weights: Sequence[float] | None = None,
              most: float = math.inf) -> None:
        """Now. `end` will happen; `most`: bytes per second, whatever the links could carry."""
        flow = Flow(end, size, links, weights or [1.0] * len(links), most)
        alone = True
        for link in links:
            if there := self.on[link]:
                alone = False
                if len(there) == 1 and (other := next(iter(there))).slot < 0:       # of several, all share
                    self._share(other, other.size - other.rate * (self.clock.now - other.since))
        for link, weight in zip(links, flow.weights, strict=True):
            self.on[link].add(flow)
            self.carried[link] += weight * size
        if not alone:
            self._share(flow, size)
            return
        flow.since = self.clock.now
        flow.rate = min([most, *(self.capacities[link] / weight
                                 for link, weight in zip(links, flow.weights, strict=True) if weight)])
        self.clock.at(self.clock.now + size / flow.rate, lambda: self._end(flow) if flow.slot < 0 else None)

    def _end(self, flow: Flow) -> None:
        for link in flow.links:
            self.on[link].discard(flow)
        flow.end.happen()

    def _share(self, flow: Flow, left: float) -> None:
        """It is in the arrays from now on."""
        self._advance()
        if not self.spare:
            self._grow(max(16, len(self.left)), 0)
        if len(flow.links) > self.links.shape[1]:
            self._grow(0, len(flow.links) - self.links.shape[1])
        slot = flow.slot = self.spare.pop()
        self.links[slot], self.weights[slot] = NOWHERE, 0.0
        self.links[slot, : len(flow.links)], self.weights[slot, : len(flow.links)] = flow.links, flow.weights
        self.left[slot], self.sizes[slot], self.most[slot] = left, flow.size, flow.most
        self.sharing[slot] = flow
        self._changed()

    def _grow(self, slots: int, columns: int) -> None:
        self.spare += range(len(self.left) + slots - 1, len(self.left) - 1, -1)
        self.links = np.pad(self.links, ((0, slots), (0, columns)))
        self.weights = np.pad(self.weights, ((0, slots), (0, columns)))
        self.left, self.rates, self.most, self.sizes = (
            np.pad(array, (0, slots)) for array in (self.left, self.rates, self.most, self.sizes))

    def _changed(self) -> None:
        if not self.unsolved:
            self.unsolved = True
            self.clock.last.append(self._solve)

    def _advance(self) -> None:
        """What has flowed since the rates were solved."""
        if self.clock.now > self.solved:
            self.left -= self.rates * (self.clock.now - self.solved)
        self.solved = self.clock.now

    def _solve(self) -> None:
        self.unsolved = False
        self.version += 1
        slots = np.fromiter(self.sharing, np.int64, len(self.sharing))
        if not len(slots):
            return
        rates = fair(self.links[slots], self.weights[slots], self.capacities, self.most[slots])
        self.rates[slots] = rates
        first = self.clock.now + float((self.left[slots] / rates).min())
        version = self.version
        self.clock.at(first, lambda: self._arrive() if version == self.version else None)

    def _arrive(self) -> None:
        self._advance()
        slots = np.fromiter(self.sharing, np.int64, len(self.sharing))
        near = NEAR * self.sizes[slots] + 1e-12 * self.clock.now * self.rates[slots]    # and what time can tell apart
        for slot in slots[self.left[slots] <= near].tolist():
            self.rates[slot] = 0.0
            self.spare.append(slot)
            self._end(self.sharing.pop(slot))
        self._changed()


def fair(links: Array, weights: Array, capacities: Array, most: Array) -> Array:
    """The max-min fair rates, float64 (flows,), of flows over `links` (flows, k), each limited by `most`.

    All links that fill before any other link of their flows does are filled in one round.
    """
    rates = np.zeros(len(links))
    left = capacities.copy()
    open_ = np.arange(len(links))
    while len(open_):
        mine, weigh = links[open_], weights[open_]
        load = np.bincount(mine.ravel(), weigh.ravel(), len(left))
        with np.errstate(divide="ignore", invalid="ignore"):
            level = np.where(load > 0, left / load, np.inf)     # of all its flows, at which a link is full
        reach = np.minimum(np.where(weigh > 0, level[mine], np.inf).min(axis=1), most[open_])
        lowest = np.full(len(left), np.inf)
        np.minimum.at(lowest, mine.ravel(), np.repeat(reach, mine.shape[1]))
        full = lowest >= level * (1 - NEAR)
        ends = ((full[mine] & (weigh > 0)).any(axis=1) & (reach < np.inf)) | (reach >= most[open_] * (1 - NEAR))
        # a flow at its own limit frees its links for others, which may go on
        done = open_[ends]
        rates[done] = reach[ends]
        np.subtract.at(left, mine[ends].ravel(), (weigh[ends] * reach[ends, None]).ravel())
        np.maximum(left, 0.0, out=left)
        open_ = open_[~ends]
    return rates
