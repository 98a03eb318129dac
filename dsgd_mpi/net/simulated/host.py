"""The verbs over a simulated cluster: every rank is a greenlet, and a virtual clock decides which runs next."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import greenlet
import numpy as np

from dsgd_mpi.arrays.flat import Array, Buckets
from dsgd_mpi.arrays.half import Half, wire_bytes
from dsgd_mpi.net.api import Letter, Traffic
from dsgd_mpi.net.places import cpu
from dsgd_mpi.net.simulated.clock import Event
from dsgd_mpi.net.simulated.meetings import Meeting, Reason, Waiting, averaged
from dsgd_mpi.net.simulated.memory import Memory, Numbers, SharedMemory
from dsgd_mpi.net.simulated.spans import Span

if TYPE_CHECKING:
    from dsgd_mpi.net.simulated.cluster import Cluster, Group

IDLE_S = 1e-3                               # between two reads of shared memory
OUTSIDE_S = 1e-4                            # between two looks at what is not simulated


class RankLost(RuntimeError):
    """A rank of the cluster has ended (`SimulatedHost.die`)."""


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
        group = self.cluster.part(name)
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
