"""A simulated cluster: ranks that share a clock and wires, and groups of them.

The algorithms run unchanged; only time is simulated. Simultaneous events are processed in the order of their creation,
so runs are bitwise reproducible.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Letter
from dsgd_mpi.net.simulated.absences import Absences
from dsgd_mpi.net.simulated.clock import Clock, Event
from dsgd_mpi.net.simulated.gradients import Gradients
from dsgd_mpi.net.simulated.host import SimulatedHost
from dsgd_mpi.net.simulated.machine import Machine
from dsgd_mpi.net.simulated.meetings import Meeting, in_words
from dsgd_mpi.net.simulated.memory import Memory
from dsgd_mpi.net.simulated.spans import Span, Travel
from dsgd_mpi.net.simulated.wires import Among, Wires


class Deadlock(RuntimeError):
    """Some ranks wait for something that will never happen; the message names them."""


class Cluster:
    """`size` ranks that share a clock, and nothing else that is visible to them. The seed is that of their speeds."""

    def __init__(self, size: int, machine: Machine | None = None, seed: int = 0) -> None:
        self.machine, self.clock = machine or Machine(), Clock()
        self.wires: Wires | Among = Wires(self.clock, self.machine, size)
        self.gradients = Gradients(self.machine, size, seed)
        self.absent = Absences(self.machine.death)
        self.begun, self.ends = np.zeros(size), np.zeros(size)      # the computation that each rank is in, or was
        self.shrunk = 0                     # how often they were numbered anew
        self._begin(size)
        self.stop_step: int | None = None
        self.trace: list[Span] = []         # what each rank did,
        self.travels: list[Travel] = []     # and what travelled between them,
        self.traced_s = 0.0                 # as far as it began before that time
        self.hosts = [SimulatedHost(self, rank) for rank in range(size)]
        self.living = list(self.hosts)
        self.gathered: set[SimulatedHost] = set()   # those that have called `shrink`,
        self.all_gathered = Event(self.clock)       # and once these are all

    def _begin(self, size: int) -> None:
        """With nothing under way between so many ranks."""
        self.size, self.all = size, tuple(range(size))
        self.members = list(self.all)       # one for all ranks: a list each would be the square of the ranks
        self.meetings: dict[Hashable, Meeting] = {}
        self.inboxes: list[list[Letter]] = [[] for _ in range(size)]
        self.routes: defaultdict[tuple[int, int], deque[Parcel]] = defaultdict(deque)   # letters, as they were sent
        self.groups: dict[Hashable, Group] = {}
        self.memories: dict[int, Memory] = {}
        self.numbers: dict[int, Array] = {}     # values of counters,
        self.counts, self.counter_changes = 0, Event(self.clock)    # their changes so far, and the next one
        self.letters = 0                    # in flight
        self.all_arrived = Event(self.clock)
        self.all_arrived.happen()

    def run(self, main: Callable[[SimulatedHost], Any]) -> list[Any]:
        """Runs `main(host)` on every rank to its end; the results in rank order. An exception on one rank ends all."""
        self.trace += [Span(rank, "dead", at, min(back, self.traced_s)) for rank, times in self.absent.by_rank.items()
                       for at, back in times if at < self.traced_s]
        for host in self.hosts:
            host.begin(main)
        self.clock.run()
        waiting = {host.rank: host.waits_for for host in self.hosts if not host.thread.dead}
        if waiting:
            dead = "".join(f"; rank {rank} is dead since {self.absent.since(rank, self.clock.now):g} s"
                           for rank in sorted(waiting) if self.absent.back(rank, self.clock.now) == math.inf)
            rank, reason = next(iter(waiting.items()))
            raise Deadlock(f"ranks {sorted(waiting)} wait forever: rank {rank} waits for "
                           f"{in_words(rank, reason)}{dead}")
        return [host.result for host in self.hosts]

    def post(self, letter: Letter, peer: int, nbytes: float) -> None:
        """Sends it; the letters of one rank to another arrive in the order in which they were sent."""
        if not self.letters:
            self.all_arrived = Event(self.clock)
        self.letters += 1
        parcel, route, then = Parcel(letter), self.routes[letter.source, peer], self.shrunk
        route.append(parcel)

        def arrive() -> None:
            if then != self.shrunk:
                return
            parcel.arrived = True
            while route and route[0].arrived:
                self.inboxes[peer].append(route.popleft().letter)
                self.letters -= 1
                self.hosts[peer].heard()
            if not self.letters:
                self.all_arrived.happen()
        self.send(letter.source, peer, nbytes).then(arrive)

    def send(self, source: int, target: int, nbytes: float) -> Event:
        """Happens when the message has arrived."""
        sent = self.wires.send(source, target, nbytes)
        return self.noted(False, (source, target), sent) if nbytes and source != target else sent

    def noted(self, together: bool, ranks: tuple[int, ...], arrived: Event) -> Event:
        """The same event, by which something will have travelled."""
        begin = self.clock.now
        if begin < self.traced_s:
            arrived.then(lambda: self.travels.append(Travel(together, ranks, begin, self.clock.now)))
        return arrived

    def lose(self, dead: SimulatedHost) -> None:
        """Wherever the others are, they are told now."""
        self.living.remove(dead)
        self.gathered, self.all_gathered = set(), Event(self.clock)
        for host in self.living:
            self.clock.at(self.clock.now, partial(host.interrupt, self.shrunk))

    def renumber(self) -> None:
        """Those that live go on with nothing under way, and what still travels is for nobody."""
        self.shrunk += 1
        self.hosts, self.gathered, self.stop_step = list(self.living), set(), None
        self._begin(len(self.living))
        self.members = [host.number for host in self.hosts]
        for rank, host in enumerate(self.hosts):
            host.rank, host.size, host.members = rank, self.size, self.members
            host.calls.clear()

    def count(self) -> None:
        """A counter has changed."""
        self.counts += 1
        before, self.counter_changes = self.counter_changes, Event(self.clock)
        before.happen()

    def part(self, name: tuple[int, tuple[int, ...]]) -> Group:
        """The group of that number and those ranks, which the first of them makes."""
        if name not in self.groups:
            self.groups[name] = Group(self, name[1])
        return self.groups[name]

    def serves(self, owner: int) -> float:
        """How long a one-sided call that has reached `owner` waits until it is served, in seconds."""
        now, every, least = self.clock.now, self.machine.enters_mpi_s, self.machine.one_sided_s
        gone = self.absent.back(owner, now) - now
        if gone > 0 or not every or self.ends[owner] <= now:
            return gone + least
        entered = self.begun[owner] + every * math.ceil((now - self.begun[owner]) / every)
        return float(min(entered, self.ends[owner])) - now + least


class Parcel:
    """A letter on its way."""

    def __init__(self, letter: Letter) -> None:
        self.letter, self.arrived = letter, False


class Group(Cluster):
    """Some ranks of a cluster, numbered anew: its time and wires, but letters, meetings and memory of their own."""

    def __init__(self, cluster: Cluster, ranks: tuple[int, ...]) -> None:
        self.cluster, self.ranks = cluster, ranks
        self.machine, self.clock, self.absent, self.shrunk = cluster.machine, cluster.clock, cluster.absent, 0
        self.traced_s = cluster.traced_s
        self.wires = Among(cluster.wires, ranks)
        self.hosts: list[Any] = [None] * len(ranks)
        self._begin(len(ranks))

    def serves(self, owner: int) -> float:
        return self.cluster.serves(self.ranks[owner])

    def noted(self, together: bool, ranks: tuple[int, ...], arrived: Event) -> Event:
        return self.cluster.noted(together, tuple(self.ranks[rank] for rank in ranks), arrived)
