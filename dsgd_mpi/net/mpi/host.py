"""The verbs over MPI. Importing this module starts MPI.

Every wait is a loop of tests, never a blocking MPI call: a waiting rank still notices that another asks to stop.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from mpi4py import MPI

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.half import Half, wire_bytes
from dsgd_mpi.errors import RunError
from dsgd_mpi.net.api import Done, Letter, Traffic
from dsgd_mpi.net.launch import forwarded, on_this_node
from dsgd_mpi.net.mpi import ulfm
from dsgd_mpi.net.mpi.alarm import Alarm
from dsgd_mpi.net.mpi.ring import RingMean
from dsgd_mpi.net.mpi.stop import Stop
from dsgd_mpi.net.mpi.window import Numbers, Window
from dsgd_mpi.net.places import cpu

EXCHANGE = 1
LETTER = 100                                # + the index of the dtype on the wire
WIRE_DTYPES = ("float32", "float64", "uint16", "int32", "int64")
RING, RINGS = 1000, 1000                    # tags of the rings in progress, used in turn
RING_PART_BYTES = 1 << 15                   # below, latency dominates, and MPI's own tree is faster
CROWDED = on_this_node()[1] > (os.cpu_count() or 1)     # more ranks than cores
SPIN_S, NAP_S = 2e-4, 5e-5                  # where they are crowded: how long a wait spins, and sleeps from then on
IDLE_S = 2e-4                               # of sleep between two reads of shared memory
IDLE_GAP_S = 0.1                            # after which another wait for shared memory has begun
LINGER_S = 5e-4                             # between two polls while a rank lingers, as between layers
GONE_S = 0.3                                # in which a launcher ends the job after one of its processes has ended
NOTE_BYTES = 8                              # a letter begins with its note, a float64


class Requests:
    """MPI requests, and their statuses once they are complete."""

    def __init__(self, requests: list[MPI.Request]) -> None:
        self.requests, self.statuses = requests, [MPI.Status() for _ in requests]

    def test(self) -> bool:
        return MPI.Request.Testall(self.requests, self.statuses)


class Arrivals:
    """Letters to come, until there are enough of them."""

    def __init__(self, host: MpiHost, letters: list[Letter], least: int) -> None:
        self.host, self.letters, self.least = host, letters, least

    def test(self) -> bool:
        self.letters += self.host._arrived()
        return len(self.letters) >= self.least


class Waiting:
    """Work in progress, and the function that makes its result once it is complete."""

    def __init__(self, host: MpiHost, what: str, work: Requests | RingMean | Arrivals,
                 finish: Callable[[], Any]) -> None:
        self.host, self.what, self.work, self.finish = host, what, work, finish
        self.complete = False
        host.under_way.append(self)

    def test(self) -> bool:
        if not self.complete:
            try:
                self.complete = self.work.test()
            except MPI.Exception as error:
                if self.host.lost(error):
                    raise
                raise self.host.failed(self.what, error) from error
        return self.complete

    def wait(self) -> Any:
        start = time.perf_counter()
        while not self.test():
            self.host.stop.listen()
            self.host.pause(self.what, start)
        self.host.under_way = [waiting for waiting in self.host.under_way if not waiting.complete]
        waited = time.perf_counter() - start
        self.host.traffic.wait_s += waited
        self.host.traffic.comm_s += waited
        if self.host.watch:
            self.host.watch.ended(waited)
        return self.finish()


class MpiHost:
    """This rank's end of the cluster: `Host` over an MPI communicator (by default the world)."""

    ranks_per_node = 0                      # that many in a row are taken for a node; 0: those that share memory

    def __init__(self, comm: MPI.Intracomm | None = None) -> None:
        self.traffic = Traffic()
        self.watch: Any = None              # `training.watch.Watch`, if there is one
        self.survives = False               # whether `lost` and `shrink` are of use
        self.abandoned: list[Any] = []      # requests that no longer matter, with the memory that MPI may still touch
        self.idle_since = self.idle_until = 0.0
        self.windows: list[Window | Numbers] = []
        self.groups: list[Group] = []
        self.settle_sums: Callable[[], None] = lambda: None     # waits for sums that a device may still compute
        self._begin((comm or MPI.COMM_WORLD).Dup())
        self.members = list(range(self.size))

    def _begin(self, comm: MPI.Intracomm) -> None:
        """Collective: with nothing under way, among the ranks of `comm`."""
        self.comm, self.rank, self.size = comm, comm.rank, comm.size
        self.under_way: list[Waiting] = []
        self.free: list[Array] = []         # receive buffers: fresh pages would cost as much as the transfer
        self.handed_out: list[Array] = []   # those that exchanges have returned and that are still valid
        self.outbox: list[tuple[MPI.Request, Array]] = []
        self.inbox: list[Letter] = []
        self.posted = self.received = self.means = 0
        self.least_ring_bytes = self.size * RING_PART_BYTES
        self.mail = self.comm.Dup()         # letters are received from any source: nothing else may be sent here
        self._attend()

    def _attend(self) -> None:
        self.stop = Stop(self.comm, self.pause)
        self.alarm = Alarm(self.comm)

    # collective

    def mean(self, x: Array, half: Half | None = None) -> Waiting | Done:
        if self.size == 1:
            return Done(x)
        self.traffic.bytes_sent += 2 * (self.size - 1) * wire_bytes(x, half) // self.size
        self.means += 1
        what = f"mean of {x.nbytes} bytes"
        with self._timed():
            if half or x.nbytes >= self.least_ring_bytes:
                ring = RingMean(self.comm, x, RING + self.means % RINGS, self.settle_sums, half)
                return Waiting(self, what, ring, lambda: x)
            request = self.comm.Iallreduce(MPI.IN_PLACE, x, MPI.SUM)
            return Waiting(self, what, Requests([request]), lambda: np.divide(x, self.size, out=x))

    def settle(self) -> None:
        while True:
            with self._timed():
                self.inbox += self._arrived()
            posted, received = self._total("settle", self.posted, self.received)
            if posted == received:
                MPI.Request.Waitall([request for request, _ in self.outbox])
                self.outbox.clear()
                return

    def broadcast(self, x: Array, root: int = 0) -> None:
        self.traffic.bytes_sent += (self.size - 1) * x.nbytes // self.size
        Waiting(self, "broadcast", Requests([self.comm.Ibcast(x, root)]), lambda: x).wait()

    def allgather(self, item: Any) -> list[Any]:
        return self._allgather(self.comm, item)

    def nodes(self) -> list[list[int]]:
        if each := self.ranks_per_node:
            return [list(range(first, min(first + each, self.size))) for first in range(0, self.size, each)]
        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED, self.rank)
        first = self._allgather(self.comm, self._allgather(node, self.rank)[0])
        node.Free()
        return [[rank for rank, each in enumerate(first) if each == one] for one in sorted(set(first))]

    def group(self, ranks: Sequence[int]) -> Group:
        comm = MPI.Intracomm(self.comm.Split(min(ranks), self.rank))
        assert comm.size == len(ranks), "all ranks of a group name the same ranks"
        self.groups.append(group := Group(self, comm, ranks))
        comm.Free()
        return group

    def _allgather(self, comm: MPI.Comm, item: Any) -> list[Any]:
        own = np.frombuffer(json.dumps(item).encode(), np.uint8)
        lengths = np.empty(comm.size, np.int64)
        request = comm.Iallgather(np.array([own.size]), lengths)
        Waiting(self, "allgather", Requests([request]), lambda: None).wait()
        every = np.empty(lengths.sum(), np.uint8)
        request = comm.Iallgatherv(own, (every, lengths))
        Waiting(self, "allgather", Requests([request]), lambda: None).wait()
        ends = np.cumsum(lengths)
        return [json.loads(every[end - length : end].tobytes()) for end, length in zip(ends, lengths, strict=True)]

    # pairwise

    def exchange(self, x: Array, peer: int) -> Waiting | Done:
        if peer == self.rank:
            return Done(x)
        with self._timed():
            arrival = self._buffer(x)
            requests = Requests([self.comm.Irecv(arrival, peer, EXCHANGE), self.comm.Isend(x, peer, EXCHANGE)])
            self.traffic.bytes_sent += x.nbytes

        def finish() -> Array:
            found = requests.statuses[0].Get_count(MPI.BYTE)
            if found != x.nbytes:
                raise RuntimeError(f"rank {self.rank}: exchange with rank {peer} failed: {x.nbytes} bytes were sent "
                                   f"and {found} received; both must pass arrays of equal length")
            self.handed_out.append(arrival)
            return arrival

        return Waiting(self, f"exchange of {x.nbytes} bytes with rank {self.members[peer]}", requests, finish)

    # one-sided

    def post(self, x: Array, peer: int, note: float = 0.0) -> None:
        with self._timed():
            self.outbox = [(request, kept) for request, kept in self.outbox if not request.Test()]
            letter = np.empty(NOTE_BYTES + x.nbytes, np.uint8)
            letter[:NOTE_BYTES].view(np.float64)[0] = note
            letter[NOTE_BYTES:].view(x.dtype)[:] = x
            tag = LETTER + WIRE_DTYPES.index(x.dtype.name)
            self.outbox.append((self.mail.Isend(letter, peer, tag), letter))
            self.posted += 1
            self.traffic.bytes_sent += letter.nbytes

    def collect(self, least: int = 0) -> Iterator[Letter]:
        letters, self.inbox = self.inbox, []
        with self._timed():
            letters += self._arrived()
        if len(letters) < least:
            Waiting(self, f"collect of {least} letters", Arrivals(self, letters, least), lambda: None).wait()
        yield from letters

    def share(self, x: Array) -> Window:
        self.windows.append(window := Window(self.comm, x, self.traffic))
        return window

    def counters(self, count: int) -> Numbers:
        self.windows.append(numbers := Numbers(self.comm, count))
        return numbers

    def idle(self) -> None:
        start = time.perf_counter()
        self._advance()
        self.stop.listen()
        if start > self.idle_until + IDLE_GAP_S:
            self.idle_since = start
        self.pause("a change in shared memory", self.idle_since)
        time.sleep(IDLE_S)
        self.idle_until = time.perf_counter()
        waited = time.perf_counter() - start
        self.traffic.wait_s += waited
        self.traffic.comm_s += waited

    def _arrived(self) -> Iterator[Letter]:
        status = MPI.Status()
        while (message := self.mail.Improbe(status=status)) is not None:
            letter = np.empty(status.Get_count(MPI.BYTE), np.uint8)
            tag = status.tag
            message.Recv(letter)
            self.received += 1
            note = float(letter[:NOTE_BYTES].view(np.float64)[0])
            yield Letter(status.source, letter[NOTE_BYTES:].view(WIRE_DTYPES[tag - LETTER]), note)

    # for the training loop

    def compute(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return f(*args, **kwargs)

    def progress(self) -> None:
        if self.watch:
            self.watch.moving()
        if self.under_way or self.outbox or self.windows or self.groups or self.survives:
            # the last: to hear that others have lost a rank
            with self._timed():
                self._advance()

    def until(self, done: Callable[[], bool], what: str) -> None:
        start = time.perf_counter()
        while not done():
            self._advance()
            self.stop.listen()
            self.pause(what, start)
            time.sleep(IDLE_S)
        if self.watch:
            self.watch.ended(time.perf_counter() - start)

    def pause(self, what: str, since: float) -> None:
        """Between two looks at what this rank waits for."""
        if self.watch:
            self.watch.waiting(what, since)
        if CROWDED and time.perf_counter() > since + SPIN_S:
            time.sleep(NAP_S)               # one that only yields still takes its share from ranks that have work
        else:
            os.sched_yield()

    def failed(self, what: str, error: BaseException) -> Exception:
        """The error to raise where MPI has failed: that of another rank, if that has ended."""
        end, gone = time.perf_counter() + GONE_S, ""
        while self.watch and not gone and time.perf_counter() < end:    # MPI may know before the system does
            gone = self.watch.gone()
        if gone:
            time.sleep(GONE_S if self.rank > 1 else 0)      # a lower one says it
            return RunError(f"{gone} has ended, and with it the job", 1)
        return RuntimeError(f"rank {self.rank}: {what} failed: {error}")

    def before_waiting(self, act: Callable[[], None]) -> None:
        pass                                # arrays in host memory are complete

    def linger(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            self.progress()
            time.sleep(LINGER_S)

    def _advance(self) -> None:
        self.under_way = [waiting for waiting in self.under_way if not waiting.test()]
        self.mail.Iprobe()                  # whatever its result: letters and others' additions progress
        for group in self.groups:
            group._advance()

    def now(self) -> float:
        return time.perf_counter()

    def stop_agreed(self, step: int, asked: bool) -> bool:
        return self.stop.agreed(step, asked)

    def forget_stop(self) -> None:
        self.stop.forget()

    def told_to_stop(self, asked: bool) -> bool:
        """Before the first step: whether any rank was asked to stop, as far as is known here. All then stop there."""
        if asked:
            self.stop.ask()
        self.stop.listen()
        return self.stop.bidding is not None

    def prepare_to_survive(self) -> None:
        """From now on `shrink` is possible. UsageError if it never will be."""
        ulfm.require(self.size)
        self.survives = True

    def lost(self, error: BaseException) -> bool:
        return self.survives and isinstance(error, MPI.Exception)      # of whatever class: `shrink` finds out

    def shrink(self) -> None:
        self.abandoned += ulfm.revoke(self._comms(), self._requests())
        with suppress(MPI.Exception):
            self.comm.Agree(0)              # for those who are in `complete`
        before = self.comm
        self.comm = MPI.Intracomm(before.Shrink())      # at once: if another rank dies now, all shrink this one
        living = ulfm.living(before, self.comm)
        if self.watch:
            self.watch.shrunk(living)
        self.members = [self.members[rank] for rank in living]
        self._begin(self.comm)
        if len(living) == before.size:
            raise RuntimeError(f"rank {self.rank}: MPI has failed, though no rank is gone")

    def complete(self) -> None:
        if self.survives and not self.comm.Agree(1):
            raise MPI.Exception(MPI.ERR_REVOKED)        # somebody is in `shrink`

    def _comms(self) -> list[MPI.Comm]:
        return [self.alarm.comm, self.stop.comm, self.stop.between, self.mail, self.comm]

    def _requests(self) -> list[MPI.Request]:
        """All that may be under way."""
        works = [waiting.work for waiting in self.under_way if not isinstance(waiting.work, Arrivals)]
        sent = [*self.outbox, *self.alarm.sent]
        return [request for work in works for request in work.requests] + [request for request, _ in sent]

    def close(self, status: int = 0) -> None:
        """Collective: frees the communicators, with nothing left in them that a later one could receive.

        Where ranks may die this process ends here, with `status`: in MPI_Finalize it would wait for the dead for ever.
        """
        if self.survives:
            forwarded()
            os._exit(status)
        for group in self.groups:
            group.close()
        self.settle()
        self.stop.listen()
        for window in self.windows:
            window.free()
        for _ in self.alarm.heard():
            pass
        for comm in self._comms():
            comm.Free()

    def cores(self) -> int:
        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        mine = sorted(os.sched_getaffinity(0))
        sharing = self._allgather(node, mine).count(mine)
        node.Free()
        return max(1, len(mine) // sharing)

    def local_rank(self) -> int:
        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        local: int = node.rank
        node.Free()
        return local

    def place(self) -> dict[str, Any]:
        return cpu()

    @staticmethod
    def abort(status: int) -> None:
        """Ends all ranks of the job at once."""
        try:
            forwarded()
            MPI.COMM_WORLD.Abort(status)
        finally:                            # it may return while the launcher ends the others
            os._exit(status)

    def library(self) -> str:
        first = MPI.Get_library_version().strip("\0").splitlines()[0].partition(",")[0]
        return " ".join(first.replace("Version:", "").split())

    def _total(self, what: str, *numbers: int) -> Array:
        total = np.array(numbers)
        request = self.comm.Iallreduce(MPI.IN_PLACE, total, MPI.SUM)
        return Waiting(self, what, Requests([request]), lambda: total).wait()

    def _buffer(self, like: Array) -> Array:
        """Where an exchange may receive: what earlier ones have returned is no longer valid."""
        self.free += self.handed_out
        self.handed_out.clear()
        for place, buffer in enumerate(self.free):
            if type(buffer) is type(like) and buffer.shape == like.shape and buffer.dtype == like.dtype:
                return self.free.pop(place)
        return np.empty_like(like)

    def _timed(self) -> Timed:
        return Timed(self.traffic)


class Group(MpiHost):
    """Some ranks of a host: its verbs among these alone. Who waits here still hears a request to stop."""

    def __init__(self, host: MpiHost, comm: MPI.Intracomm, ranks: Sequence[int]) -> None:
        self.host = host
        super().__init__(comm)
        self.traffic, self.members = host.traffic, [host.members[rank] for rank in sorted(ranks)]

    def _attend(self) -> None:
        self.stop, self.alarm = self.host.stop, self.host.alarm

    def pause(self, what: str, since: float) -> None:
        self.watch = self.host.watch        # it may have begun, or ended, meanwhile
        super().pause(what, since)

    def _comms(self) -> list[MPI.Comm]:
        return [self.mail, self.comm]


class Timed:
    """Adds the seconds spent inside to `comm_s`."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.traffic.comm_s += time.perf_counter() - self.start
