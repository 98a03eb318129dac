"""The verbs over a simulated cluster: every rank is a greenlet, and SimPy's clock decides which runs next.

The algorithms run unchanged; only time is simulated. Simultaneous events are processed in the order of their creation,
so runs are bitwise reproducible.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import greenlet
import numpy as np
import simpy

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.half import Half, rounded, wire_bytes
from dsgd_mpi.net.api import Letter, Traffic, Weigh
from dsgd_mpi.net.places import cpu
from dsgd_mpi.net.simulated.costs import Costs
from dsgd_mpi.net.simulated.wires import Wires

IDLE_S = 1e-3                               # between two reads of shared memory
OUTSIDE_S = 1e-4                            # between two looks at what is not simulated


class Deadlock(RuntimeError):
    """Some ranks wait for something that will never happen; the message names them."""


class Cluster:
    """`size` ranks that share a clock, and nothing else that is visible to them."""

    def __init__(self, size: int, costs: Costs | None = None) -> None:
        self.size, self.costs = size, costs or Costs()
        self.environment = simpy.Environment()
        self.wires = Wires(self.environment, size, self.costs)
        self.meetings: dict[Hashable, Meeting] = {}
        self.inboxes: list[list[Letter]] = [[] for _ in range(size)]
        self.memories: dict[int, tuple[list[Array], list[int]]] = {}     # what was shared, and its additions so far
        self.numbers: dict[int, Array] = {}     # values of counters
        self.letters = 0                    # in flight
        self.all_arrived = simpy.Event(self.environment).succeed()
        self.stop_step: int | None = None
        self.hosts = [SimulatedHost(self, rank) for rank in range(size)]

    def run(self, main: Callable[[SimulatedHost], Any]) -> list[Any]:
        """Runs `main(host)` on every rank to its end; the results in rank order. An exception on one rank ends all."""
        for host in self.hosts:
            host.begin(main)
        self.environment.run()
        waiting = {host.rank: host.waits_for for host in self.hosts if not host.thread.dead}
        if waiting:
            rank, reason = next(iter(waiting.items()))
            raise Deadlock(f"ranks {sorted(waiting)} wait forever: rank {rank} waits for {reason}")
        return [host.result for host in self.hosts]

    def posted(self) -> None:
        if not self.letters:
            self.all_arrived = simpy.Event(self.environment)
        self.letters += 1

    def arrived(self) -> None:
        self.letters -= 1
        if not self.letters:
            self.all_arrived.succeed()


class Meeting:
    """An operation of several ranks: its answers exist once all have joined, and are delivered when `done`."""

    def __init__(self, environment: simpy.Environment) -> None:
        self.arrays: dict[int, Any] = {}
        self.answers: dict[int, Any] = {}
        self.done = simpy.Event(environment)


class Waiting:
    """This rank's view of a meeting, or of anything else that ends with an event."""

    def __init__(self, host: SimulatedHost, meeting: Meeting, reason: str) -> None:
        self.host, self.meeting, self.reason = host, meeting, reason

    def test(self) -> bool:
        return bool(self.meeting.done.triggered)

    def wait(self) -> Any:
        self.host._wait(self.meeting.done, self.reason)
        return self.meeting.answers[self.host.rank]


class SharedMemory:
    """`Shared` on a simulated cluster: reading is a request and its answer, adding one message."""

    def __init__(self, host: SimulatedHost, parts: list[Array], counts: list[int]) -> None:
        self.host, self.parts, self.counts = host, parts, counts
        self.seen = [0] * host.size

    def read(self, owner: int, out: Array | None = None, glance: bool = False) -> Array:
        out = np.empty_like(self.parts[owner]) if out is None else out
        self.host.travel(self.host.rank, owner)
        out[:] = self.parts[owner]
        if not glance:
            self.seen[owner] = self.counts[owner]
        self.host.travel(owner, self.host.rank, out.nbytes)
        return out

    def add(self, owner: int, delta: Array, weigh: Weigh | None = None) -> int:
        delta = delta.copy()
        self.host.travel(self.host.rank, owner, delta.nbytes)
        stale = self.counts[owner] - self.seen[owner]
        self.parts[owner] += weigh(stale) * delta if weigh else delta
        self.counts[owner] += 1
        self.seen[owner] += 1
        self.host.traffic.staleness[stale] += 1
        self.host.traffic.bytes_sent += round(delta.nbytes * self.host.cluster.costs.scale) * (owner != self.host.rank)
        return stale


class Numbers:
    """`Counters` on a simulated cluster, on rank 0."""

    def __init__(self, host: SimulatedHost, numbers: Array) -> None:
        self.host, self.numbers = host, numbers

    def add(self, which: int, amount: int = 1) -> int:
        self.host.travel(self.host.rank, 0)
        before = int(self.numbers[which])
        self.numbers[which] += amount
        self.host.travel(0, self.host.rank)
        return before

    def values(self) -> Array:
        self.host.travel(self.host.rank, 0)
        found = self.numbers.copy()
        self.host.travel(0, self.host.rank)
        return found


class SimulatedHost:
    """One rank of the cluster: `Host` in simulated time."""

    def __init__(self, cluster: Cluster, rank: int) -> None:
        self.cluster, self.rank, self.size = cluster, rank, cluster.size
        self.traffic = Traffic()
        self.result: Any = None
        self.letter_came: simpy.Event | None = None
        self.waits_for = ""
        self.step = self.computed = 0
        self.calls: defaultdict[Hashable, int] = defaultdict(int)   # calls so far, by verb and ranks

    # collective

    def mean(self, x: Array, half: Half | None = None) -> Waiting:
        nbytes = self._wire_bytes(x, half)

        def arriving(values: Array) -> Array:
            return rounded(values, half) if half and self.size > 1 else values

        self.traffic.bytes_sent += 2 * (self.size - 1) * nbytes // self.size

        def combine(arrays: dict[int, Array]) -> dict[int, Array]:
            mean = arriving(sum(arriving(arrays[rank]) for rank in range(self.size)) / self.size)
            for array in arrays.values():
                array[:] = mean
            return arrays
        seconds = self.cluster.costs.mean_s(nbytes, self.size)
        return self._meet("mean", range(self.size), x, combine, lambda: self.cluster.wires.occupy(seconds))

    def settle(self) -> None:
        def combine(ranks: dict[int, None]) -> dict[int, simpy.Event]:
            return dict.fromkeys(ranks, self.cluster.all_arrived)
        self._wait(self._meet("settle", range(self.size), None, combine, self._barrier).wait(), "letters in flight")

    def broadcast(self, x: Array, root: int = 0) -> None:
        def combine(arrays: dict[int, Array]) -> dict[int, Array]:
            for array in arrays.values():
                array[:] = arrays[root]
            return arrays
        seconds = self.cluster.costs.message_s(self._wire_bytes(x)) * (self.size - 1).bit_length()
        self._meet("broadcast", range(self.size), x, combine, lambda: self.cluster.wires.occupy(seconds)).wait()

    def allgather(self, item: Any) -> list[Any]:
        return [json.loads(text) for text in self._from_all(json.dumps(item))]

    def _from_all(self, item: Any) -> list[Any]:
        def combine(items: dict[int, Any]) -> dict[int, Any]:
            return {rank: [items[each] for each in range(self.size)] for rank in items}
        items: list[Any] = self._meet("allgather", range(self.size), item, combine, self._barrier).wait()
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

        def travel() -> simpy.Event:
            send = self.cluster.wires.send
            return send(self.rank, peer, nbytes) & send(peer, self.rank, nbytes)
        return self._meet("exchange", sorted({self.rank, peer}), x, combine, travel)

    # one-sided

    def post(self, x: Array, peer: int, note: float = 0.0) -> None:
        letter = Letter(self.rank, x.copy(), note)
        nbytes = self._wire_bytes(x)
        self.traffic.bytes_sent += nbytes
        self.cluster.posted()
        delivery = self.cluster.wires.send(self.rank, peer, nbytes)
        delivery.callbacks.append(lambda _: self.cluster.hosts[peer].receive(letter))

    def collect(self, least: int = 0) -> Iterator[Letter]:
        while len(self.cluster.inboxes[self.rank]) < least:
            self.letter_came = simpy.Event(self.cluster.environment)
            self._wait(self.letter_came, "a letter")
        letters, self.cluster.inboxes[self.rank] = self.cluster.inboxes[self.rank], []
        yield from letters

    def idle(self) -> None:
        self._wait(self.cluster.environment.timeout(IDLE_S), "a change in shared memory")

    def share(self, x: Array) -> SharedMemory:
        parts = self._from_all(x.copy())
        name = self.calls["share"] = self.calls["share"] + 1
        memory = self.cluster.memories.setdefault(name, (parts, [0] * self.size))
        return SharedMemory(self, *memory)

    def counters(self, count: int) -> Numbers:
        self._from_all(None)
        name = self.calls["counters"] = self.calls["counters"] + 1
        return Numbers(self, self.cluster.numbers.setdefault(name, np.zeros(count, np.int64)))

    def receive(self, letter: Letter) -> None:
        """A letter arrives here."""
        self.cluster.inboxes[self.rank].append(letter)
        self.cluster.arrived()
        if self.letter_came and not self.letter_came.triggered:
            self.letter_came.succeed()

    # for the training loop

    def compute(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        answer = f(*args, **kwargs)
        seconds = self.cluster.costs.compute_s(self.rank, self.computed)
        self.computed += 1
        self.sleep_until(self.cluster.environment.timeout(seconds), "its own computation")
        return answer

    def progress(self) -> None:
        pass                                # a simulated network progresses by itself

    def until(self, done: Callable[[], bool], what: str) -> None:
        while not done():                   # takes none of the simulated time
            time.sleep(OUTSIDE_S)

    def before_waiting(self, act: Callable[[], None]) -> None:
        pass                                # arrays in host memory are complete

    def now(self) -> float:
        return float(self.cluster.environment.now)

    def cores(self) -> int:
        return 1                            # all simulated ranks share this process

    def local_rank(self) -> int:
        return self.rank                    # and thus its node

    def place(self) -> dict[str, Any]:
        return cpu()

    def library(self) -> str:
        return f"a simulated cluster of {self.size} ranks"

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

    # the greenlet behind it

    def begin(self, main: Callable[[SimulatedHost], Any]) -> None:
        """Schedules `main` to start at the current time, once the cluster runs."""
        def body() -> None:
            self.result = main(self)
        self.scheduler = greenlet.getcurrent()
        self.thread = greenlet.greenlet(body, self.scheduler)
        start = self.cluster.environment.timeout(0)
        start.callbacks.append(lambda _: self.thread.switch())

    def sleep_until(self, event: simpy.Event, reason: str) -> None:
        """Lets the other ranks run until the event has happened."""
        if event.callbacks is None:         # SimPy's sign that it has
            return
        self.waits_for = reason
        event.callbacks.append(lambda _: self.thread.switch())
        self.scheduler.switch()

    def travel(self, source: int, target: int, nbytes: int = 0) -> None:
        """Sleeps while a message travels from one rank to another on this rank's behalf."""
        if source == target:
            return
        start = self.now()
        self.sleep_until(self.cluster.wires.send(source, target, self.cluster.costs.scale * nbytes), "shared memory")
        self.traffic.comm_s += self.now() - start

    def _wait(self, event: simpy.Event, reason: str) -> None:
        """Sleeps, and counts it as waiting for others."""
        start = self.now()
        self.sleep_until(event, reason)
        self.traffic.wait_s += self.now() - start
        self.traffic.comm_s += self.now() - start

    def _meet(self, verb: str, ranks: Any, x: Any, combine: Callable[[dict[int, Any]], dict[int, Any]],
              travel: Callable[[], simpy.Event]) -> Waiting:
        """Joins the next call of this verb by these ranks; once all have joined, their data is sent."""
        ranks = tuple(ranks)
        call = self.calls[verb, ranks] = self.calls[verb, ranks] + 1
        environment = self.cluster.environment
        meeting = self.cluster.meetings.setdefault((verb, ranks, call), Meeting(environment))
        meeting.arrays[self.rank] = x
        if len(meeting.arrays) == len(ranks):
            del self.cluster.meetings[verb, ranks, call]
            arrival = travel()
            arrival.callbacks.append(lambda _: self._conclude(meeting, partial(combine, meeting.arrays)))
        others = "all ranks" if len(ranks) > 2 else " and ".join(f"rank {rank}" for rank in ranks if rank != self.rank)
        return Waiting(self, meeting, f"{others or 'itself'} in {verb} (its call {call})")

    @staticmethod
    def _conclude(meeting: Meeting, combine: Callable[[], dict[int, Any]]) -> None:
        meeting.answers = combine()
        meeting.done.succeed()

    def _barrier(self) -> simpy.Event:
        return self.cluster.environment.timeout(self.cluster.costs.barrier_s(self.size))

    def _wire_bytes(self, x: Array, half: Half | None = None) -> int:
        return round(self.cluster.costs.scale * wire_bytes(x, half))
