"""The verbs over a simulated cluster: every rank is a greenlet, and a virtual clock decides which runs next.

The algorithms run unchanged; only time is simulated. Simultaneous events are processed in the order of their creation,
so runs are bitwise reproducible.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import greenlet
import numpy as np

from dsgd_mpi.arrays.flat import Array, Buckets
from dsgd_mpi.arrays.half import Half, rounded, wire_bytes
from dsgd_mpi.net.api import Letter, Shared, Traffic, Weigh
from dsgd_mpi.net.places import cpu
from dsgd_mpi.net.simulated.clock import Clock, Event
from dsgd_mpi.net.simulated.gradients import Gradients
from dsgd_mpi.net.simulated.machine import Death, Machine
from dsgd_mpi.net.simulated.wires import Among, Wires

Reason = str | tuple[str, tuple[int, ...], int]     # in words; or a verb, its ranks, and which call of it
IDLE_S = 1e-3                               # between two reads of shared memory
OUTSIDE_S = 1e-4                            # between two looks at what is not simulated


class Deadlock(RuntimeError):
    """Some ranks wait for something that will never happen; the message names them."""


class RankLost(RuntimeError):
    """A rank of the cluster has ended (`SimulatedHost.die`)."""


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

    def serves(self, owner: int) -> float:
        """How long a one-sided call that has reached `owner` waits until it is served, in seconds."""
        now, every, least = self.clock.now, self.machine.enters_mpi_s, self.machine.one_sided_s
        gone = self.absent.back(owner, now) - now
        if gone > 0 or not every or self.ends[owner] <= now:
            return gone + least
        entered = self.begun[owner] + every * math.ceil((now - self.begun[owner]) / every)
        return float(min(entered, self.ends[owner])) - now + least


def in_words(rank: int, reason: Reason) -> str:
    """For whom a rank waits, and in what."""
    if isinstance(reason, str):
        return reason
    verb, ranks, call = reason
    others = "all ranks" if len(ranks) > 2 else " and ".join(f"rank {each}" for each in ranks if each != rank)
    return f"{others or 'itself'} in {verb} (its call {call})"


def averaged(half: Half | None, arrays: dict[int, Array]) -> dict[int, Array]:
    """All arrays, by rank, as their mean, which is taken in the order of the ranks."""
    def arriving(values: Array) -> Array:
        return rounded(values, half) if half else values
    total = 0 + arriving(arrays[0])
    for rank in range(1, len(arrays)):
        total += arriving(arrays[rank])
    mean = arriving(total / len(arrays))
    for array in arrays.values():
        array[:] = mean
    return arrays


class Absences:
    """Which ranks are dead, and when."""

    def __init__(self, deaths: tuple[Death, ...]) -> None:
        self.by_rank: dict[int, list[tuple[float, float]]] = {}
        for death in sorted(deaths, key=lambda death: death.at_s):
            self.by_rank.setdefault(death.rank, []).append((death.at_s, death.back_s or math.inf))

    def back(self, rank: int, now: float) -> float:
        """When a rank that is dead comes back; now, if it is not."""
        return next((back for at, back in self.by_rank.get(rank, ()) if at <= now < back), now)

    def since(self, rank: int, now: float) -> float:
        return next((at for at, back in self.by_rank.get(rank, ()) if at <= now < back), now)

    def done(self, rank: int, begin: float, seconds: float) -> float:
        """When a computation that begins then has taken its seconds."""
        end = begin + seconds
        for at, back in self.by_rank.get(rank, ()):
            if begin < back and at < end:
                end = back + (end - max(at, begin))
        return end


class Parcel:
    """A letter on its way."""

    def __init__(self, letter: Letter) -> None:
        self.letter, self.arrived = letter, False


class Span(NamedTuple):
    """What a rank did for a time."""

    rank: int
    what: str                               # "compute", "wait", "one-sided", or "dead", meanwhile
    begin: float
    end: float
    last: tuple[float, int] | None = None   # when the last of those that it met came, and who that was


class Travel(NamedTuple):
    """A message from one rank to another, or what all of them averaged, or got from one, together."""

    together: bool
    ranks: tuple[int, ...]
    begin: float
    end: float


class Meeting:
    """An operation of several ranks: its answers exist once all have joined, and are delivered when `done`."""

    def __init__(self, clock: Clock) -> None:
        self.arrays: dict[int, Any] = {}
        self.answers: dict[int, Any] = {}
        self.last: tuple[float, int] | None = None      # when the last joined, and who
        self.done = Event(clock)


class Waiting:
    """This rank's view of a meeting, or of anything else that ends with an event."""

    def __init__(self, host: SimulatedHost, meeting: Meeting, reason: Reason) -> None:
        self.host, self.meeting, self.reason = host, meeting, reason

    def test(self) -> bool:
        return self.meeting.done.done

    def wait(self) -> Any:
        self.host._wait(self.meeting.done, self.reason, self.meeting)
        return self.meeting.answers[self.host.rank]


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


class SimulatedHost:
    """One rank of the cluster: `Host` in simulated time."""

    def __init__(self, cluster: Cluster, rank: int) -> None:
        self.cluster, self.rank, self.size = cluster, rank, cluster.size
        self.number, self.members = rank, cluster.members
        self.traffic = Traffic()
        self.result: Any = None
        self.letter_came: Event | None = None
        self.counted = -1                   # changes of counters when this rank last read any
        self.waits_for: Reason = ""
        self.step = self.computed = self.passed = 0
        self.calls: defaultdict[Hashable, int] = defaultdict(int)   # calls so far, by verb and ranks

    # collective

    def mean(self, x: Array, half: Half | None = None) -> Waiting:
        nbytes = self._wire_bytes(x, half)
        self.traffic.bytes_sent += 2 * (self.size - 1) * nbytes // self.size
        ranks, wires = self.cluster.all, self.cluster.wires
        return self._meet("mean", ranks, x, partial(averaged, half if self.size > 1 else None),
                          lambda: self.cluster.noted(True, ranks, wires.mean(nbytes, ranks)))

    def settle(self) -> None:
        def combine(ranks: dict[int, None]) -> dict[int, Event]:
            return dict.fromkeys(ranks, self.cluster.all_arrived)
        self._wait(self._meet("settle", self.cluster.all, None, combine, self._barrier).wait(), "letters in flight")

    def broadcast(self, x: Array, root: int = 0) -> None:
        def combine(arrays: dict[int, Array]) -> dict[int, Array]:
            for array in arrays.values():
                array[:] = arrays[root]
            return arrays
        nbytes = self._wire_bytes(x)
        self.traffic.bytes_sent += (self.size - 1) * nbytes // self.size
        seconds = self.cluster.wires.broadcast_s(nbytes, self.cluster.all)
        self._meet("broadcast", self.cluster.all, x, combine, lambda: self.cluster.noted(
            True, self.cluster.all, self.cluster.wires.after(seconds))).wait()

    def allgather(self, item: Any) -> list[Any]:
        return self._from_all(json.dumps(item), json.loads)

    def nodes(self) -> list[list[int]]:
        wires = self.cluster.wires
        return [list(ranks) for _, ranks in itertools.groupby(self.cluster.all, wires.node_of)]

    def group(self, ranks: Sequence[int]) -> GroupHost:
        self.calls["group"] += 1
        name = self.calls["group"], tuple(sorted(ranks))
        group = self.cluster.groups.setdefault(name, Group(self.cluster, name[1]))
        host = group.hosts[name[1].index(self.rank)] = GroupHost(self, group, name[1].index(self.rank))
        self._from_all(None)                # nobody sends before all are there
        return host

    def _from_all(self, item: Any, read: Callable[[Any], Any] = lambda item: item) -> list[Any]:
        """All ranks get the same list: a list each would be the square of the ranks."""
        def combine(items: dict[int, Any]) -> dict[int, Any]:
            every = [read(items[each]) for each in range(self.size)]
            return {rank: every for rank in items}      # noqa: C420  the same list
        items: list[Any] = self._meet("allgather", self.cluster.all, item, combine, self._barrier).wait()
        return items

    # pairwise

    def exchange(self, x: Array, peer: int) -> Waiting:
        def combine(arrays: dict[int, Array]) -> dict[int, Array]:
            mine, theirs = arrays[self.rank], arrays[peer]
            if len(mine) != len(theirs):
                raise RuntimeError(f"rank {self.rank} passes {len(mine)} elements and rank {peer} {len(theirs)} "
                                   "to exchange; both must pass arrays of equal length")
            return {peer: mine.copy(), self.rank: theirs.copy()}
        nbytes = self._wire_bytes(x) if peer != self.rank else 0
        self.traffic.bytes_sent += nbytes

        def travel() -> Event:
            there, back = (self.cluster.send(*ends, nbytes) for ends in ((self.rank, peer), (peer, self.rank)))
            both = Event(self.cluster.clock)
            there.then(lambda: back.then(both.happen))
            return both
        return self._meet("exchange", (min(self.rank, peer), max(self.rank, peer)) if peer != self.rank else (peer,), x,
                          combine, travel)

    # one-sided

    def post(self, x: Array, peer: int, note: float = 0.0) -> None:
        nbytes = self._wire_bytes(x)
        self.traffic.bytes_sent += nbytes
        self.cluster.post(Letter(self.rank, x.copy(), note), peer, nbytes)

    def collect(self, least: int = 0) -> Iterator[Letter]:
        while len(self.cluster.inboxes[self.rank]) < least:
            self.letter_came = Event(self.cluster.clock)
            self._wait(self.letter_came, "a letter")
        letters, self.cluster.inboxes[self.rank] = self.cluster.inboxes[self.rank], []
        yield from letters

    def idle(self) -> None:
        """Until a counter changes, if this rank has read the newest values; else for a moment."""
        if self.counted == self.cluster.counts:
            self._wait(self.cluster.counter_changes, "a change of a counter")
        else:
            self._wait(self.cluster.wires.after(IDLE_S), "a change in shared memory")

    def share(self, x: Array) -> SharedMemory:
        parts = self._from_all(x)
        name = self.calls["share"] = self.calls["share"] + 1
        if name not in self.cluster.memories:
            self.cluster.memories[name] = Memory(parts)
        return SharedMemory(self, self.cluster.memories[name])

    def counters(self, count: int) -> Numbers:
        self._from_all(None)
        name = self.calls["counters"] = self.calls["counters"] + 1
        return Numbers(self, self.cluster.numbers.setdefault(name, np.zeros(count, np.int64)))

    def heard(self) -> None:
        """A letter has arrived here."""
        if self.letter_came and not self.letter_came.done:
            self.letter_came.happen()

    # for the training loop

    def compute(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls f at once. What it finishes early, `ready` hears of as late as it would there.

        Each call of `progress` stands for an equal share of the time; a part is finished at the end of its share.
        """
        begin = self.now()
        seconds = self.cluster.gradients.seconds(self.number, self.computed, begin)
        self.computed += 1
        finished: deque[tuple[int, slice]] = deque()
        ready: Buckets | None = kwargs.get("ready")
        self.passed = 0
        if ready:
            kwargs["ready"] = Buckets(int(ready.least / self.cluster.machine.scale),
                                      lambda part: finished.append((self.passed + 1, part)))

        def hear() -> None:
            try:
                if finished and ready:
                    ready.hear(finished.popleft()[1])
            except BaseException as error:
                self.thread.throw(error)
        answer = f(*args, **kwargs)
        end = self.cluster.absent.done(self.number, begin, seconds)
        self.cluster.begun[self.rank], self.cluster.ends[self.rank] = begin, end
        for passed, _ in finished:          # heard by the clock: to wake this rank for each would take as long again
            self.cluster.clock.at(begin + (end - begin) * min(1.0, passed / max(1, self.passed)), hear)
        try:
            self._until(end)
        except BaseException:
            finished.clear()                # another rank has died
            raise
        while finished:                     # those due now
            hear()
        self._traced("compute", begin)
        return answer

    def linger(self, seconds: float) -> None:
        begin = self.now()
        self.cluster.ends[self.rank] = self.cluster.absent.done(self.rank, begin, seconds)
        self._until(self.cluster.ends[self.rank])
        self._traced("compute", begin)

    def _until(self, then: float) -> None:
        if then > self.now():
            self.waits_for = "its own computation"
            if then < math.inf:
                self.cluster.clock.at(then, self.thread.switch)
            while then > self.now():        # it may be woken for what it no longer waits for
                self.scheduler.switch()

    def progress(self) -> None:
        self.passed += 1                    # a simulated network progresses by itself

    def until(self, done: Callable[[], bool], what: str) -> None:
        while not done():                   # takes none of the simulated time
            time.sleep(OUTSIDE_S)

    def before_waiting(self, act: Callable[[], None]) -> None:
        pass                                # arrays in host memory are complete

    def now(self) -> float:
        return self.cluster.clock.now

    def cores(self) -> int:
        return 1                            # all simulated ranks share this process

    def local_rank(self) -> int:
        return self.rank % self.cluster.machine.ranks_per_node

    def place(self) -> dict[str, Any]:
        return {**cpu(), "host": f"{self.cluster.machine.name}-{self.cluster.wires.node_of(self.rank)}"}

    def library(self) -> str:
        return f"a simulated cluster ({self.cluster.machine.name}) of {self.size} ranks"

    def stop_agreed(self, step: int, asked: bool) -> bool:
        self.step = step
        if asked and self.cluster.stop_step is None:
            self.cluster.stop_step = max(host.step for host in self.cluster.hosts)
        self.step = step + 1                # the first step not yet begun
        return self.cluster.stop_step is not None and step >= self.cluster.stop_step

    def forget_stop(self) -> None:
        self.allgather(None)                # all have stopped
        self.cluster.stop_step = None
        self.allgather(None)                # nobody asks before all have forgotten

    def die(self) -> None:
        """Ends this rank here, as if its process were killed."""
        self.cluster.lose(self)
        raise greenlet.GreenletExit

    def lost(self, error: BaseException) -> bool:
        return isinstance(error, RankLost)

    def shrink(self) -> None:
        cluster, all_gathered = self.cluster, self.cluster.all_gathered
        cluster.gathered.add(self)
        if len(cluster.gathered) == len(cluster.living):
            cluster.renumber()
            all_gathered.happen()
        self.sleep_until(all_gathered, "all that live")

    def complete(self) -> None:
        self.allgather(None)

    # the greenlet behind it

    def begin(self, main: Callable[[SimulatedHost], Any]) -> None:
        """Schedules `main` to start at the current time, once the cluster runs."""
        def body() -> None:
            self.result = main(self)
        self.scheduler = greenlet.getcurrent()
        self.thread = greenlet.greenlet(body, self.scheduler)
        self.cluster.clock.at(0.0, self.thread.switch)

    def sleep_until(self, event: Event, reason: Reason) -> None:
        """Lets the other ranks run until the event has happened."""
        if event.done:
            return
        if greenlet.getcurrent() is not self.thread:
            raise RuntimeError(f"rank {self.rank} would wait in what hears of a finished part of its gradient")
        self.waits_for = reason
        event.calls.append(self.thread.switch)
        while not event.done:               # likewise
            self.scheduler.switch()

    def interrupt(self, shrunk: int) -> None:
        """Wherever this rank sleeps it learns that one has died, unless all have gone on without that one meanwhile."""
        if shrunk == self.cluster.shrunk and self in self.cluster.living:
            self.thread.throw(RankLost("a rank has died"))

    def travel(self, source: int, target: int, nbytes: float = 0) -> None:
        """Sleeps while a message travels from one rank to another on this rank's behalf."""
        if source != target:
            self._on_the_way(self.cluster.send(source, target, self.cluster.machine.scale * nbytes))

    def spread(self, nbytes: int, owners: int, to_them: bool) -> None:
        """Sleeps while parts of a vector travel between this rank and their owners, the first ranks."""
        machine = self.cluster.machine
        own = nbytes / owners if self.rank < owners else 0.0        # is here already
        if wired := machine.scale * (nbytes - own) * (machine.add_factor if to_them else machine.read_factor):
            arrived = self.cluster.wires.spread(self.rank, wired, range(owners), to_them)
            for owner in range(owners if self.cluster.traced_s else 0):
                if owner != self.rank:
                    self.cluster.noted(False, (self.rank, owner) if to_them else (owner, self.rank), arrived)
            self._on_the_way(arrived)
        self.touch(own)

    def touch(self, nbytes: float) -> None:
        """Sleeps while so many bytes of its own part are read or added."""
        machine, wires = self.cluster.machine, self.cluster.wires
        if nbytes and machine.own_factor:
            rate = (machine.card if wires.nodes > 1 else machine.node).bytes_per_s
            self._on_the_way(wires.after(machine.scale * nbytes * machine.own_factor / rate))

    def be_served(self, owner: int) -> None:
        """Sleeps until `owner` lets a one-sided call take place."""
        if owner != self.rank and (seconds := self.cluster.serves(owner)):
            self._on_the_way(self.cluster.wires.after(seconds))

    def reach(self, owners: int, messages: int) -> None:
        """Sleeps as long as so many empty messages to each of the first ranks take, and their service; one by one."""
        served = self.cluster.machine.one_sided_s * owners
        if self.cluster.machine.enters_mpi_s or self.cluster.absent.by_rank:
            served = sum(self.cluster.serves(owner) for owner in range(owners) if owner != self.rank)
        if seconds := messages * self.cluster.wires.latencies_s(self.rank, range(owners)) + served:
            self._on_the_way(self.cluster.wires.after(seconds))

    def _on_the_way(self, event: Event) -> None:
        start = self.now()
        self.sleep_until(event, "shared memory")
        self.traffic.comm_s += self.now() - start
        self._traced("one-sided", start)

    def _wait(self, event: Event, reason: Reason, meeting: Meeting | None = None) -> None:
        """Sleeps, and counts it as waiting for others."""
        if event.done:
            return
        start = self.now()
        self.sleep_until(event, reason)
        waited = self.now() - start
        self.traffic.wait_s += waited
        self.traffic.comm_s += waited
        self._traced("wait", start, meeting.last if meeting else None)

    def _traced(self, what: str, start: float, last: tuple[float, int] | None = None) -> None:
        if start < self.cluster.traced_s and self.now() > start:
            self.cluster.trace.append(Span(self.rank, what, start, self.now(), last))

    def _meet(self, verb: str, ranks: tuple[int, ...], x: Any, combine: Callable[[dict[int, Any]], dict[int, Any]],
              travel: Callable[[], Event]) -> Waiting:
        """Joins the next call of this verb by these ranks; once all have joined, their data is sent."""
        key = verb, ranks if len(ranks) <= 2 else len(ranks)
        call = self.calls[key] = self.calls[key] + 1
        meeting = self.cluster.meetings.get((key, call))
        if meeting is None:
            meeting = self.cluster.meetings[key, call] = Meeting(self.cluster.clock)
        meeting.arrays[self.rank] = x
        if len(meeting.arrays) == len(ranks):
            del self.cluster.meetings[key, call]
            meeting.last = self.now(), self.rank
            then = self.cluster.shrunk
            travel().then(lambda: self._conclude(meeting, combine, then))
        return Waiting(self, meeting, (verb, ranks, call))

    def _conclude(self, meeting: Meeting, combine: Callable[[dict[int, Any]], dict[int, Any]], then: int) -> None:
        if then == self.cluster.shrunk:     # else nobody waits for it any more
            meeting.answers = combine(meeting.arrays)
            meeting.done.happen()

    def _barrier(self) -> Event:
        return self.cluster.wires.after(self.cluster.wires.barrier_s(self.cluster.all))

    def _wire_bytes(self, x: Array, half: Half | None = None) -> int:
        return round(self.cluster.machine.scale * wire_bytes(x, half))


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


class GroupHost(SimulatedHost):
    """One rank of a group: `Net` among these, on behalf of its host, which is what sleeps."""

    def __init__(self, host: SimulatedHost, group: Group, rank: int) -> None:
        super().__init__(group, rank)
        self.host, self.traffic, self.ranks = host, host.traffic, group.ranks
        self.members = [host.members[rank] for rank in group.ranks]

    def sleep_until(self, event: Event, reason: Reason) -> None:
        if not isinstance(reason, str):
            reason = reason[0], tuple(self.ranks[rank] for rank in reason[1]), reason[2]
        self.host.sleep_until(event, reason)

    def _traced(self, what: str, start: float, last: tuple[float, int] | None = None) -> None:
        self.host._traced(what, start, last and (last[0], self.ranks[last[1]]))
