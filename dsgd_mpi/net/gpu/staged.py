"""The verbs over arrays on a device: copied out to pinned host memory, carried by another host, and copied in again.

    kernels  ->  x copied to a buffer  ->  MPI  ->  the buffer copied to x  ->  kernels

Copies have streams of their own, and each verb advances from stage to stage whenever `progress` is called, so all of it
overlaps with the kernels. Communication starts in the order of the calls, as MPI's collectives must, and never before
the copy is complete: MPI gets buffers only through `StagedHost._settled`. Arrays in host memory are passed on
unchanged; letters arrive on the device; windows of shared memory stay in host memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.half import Half
from dsgd_mpi.net.api import Counters, Done, Host, Letter, Pending, Shared, Weigh
from dsgd_mpi.net.places import Place


class Event(Protocol):
    """A point in a stream: the end of what was enqueued on it before."""

    def done(self) -> bool: ...

    def synchronise(self) -> None:
        """Waits until it is done."""


class Streams(Protocol):
    """What nets need of a device: its current stream, in which kernels run, and two more for copies, out and in.

    With one for both directions, copies in would wait for results yet to be computed and copied out. What kernels need
    of a device is `dsgd_mpi.kernels.gpu.device.Device`.
    """

    place: Place                            # `device`, its name, and `uuid`

    def holds(self, x: Array) -> bool:
        """Whether x is on the device."""

    def empty(self, size: int, dtype: Any) -> Array:
        """Uninitialised memory on the device."""

    def pinned(self, size: int, dtype: Any) -> Array:
        """Uninitialised host memory that the device can copy from and to while kernels run."""

    def copy_out(self, x: Array, into: Array) -> Event:
        """Enqueues a copy to pinned memory after all kernels enqueued so far; the event of its completion."""

    def copy_in(self, values: Array, into: Array) -> Event:
        """Enqueues a copy from pinned memory, which waits for no kernel; the event of its completion."""

    def beside(self) -> AbstractContextManager[Any]:
        """Inside, arithmetic is enqueued in the stream of copies in, which it gives, not in that of the kernels."""

    def beside_done(self) -> Event:
        """The event at which everything enqueued so far in the stream of copies in is done."""

    def kernels_done(self) -> Event:
        """The event at which the kernels enqueued so far are done."""

    def hold_beside(self, event: Event) -> None:
        """What is enqueued from now on in the stream of copies in waits for that event; the caller does not."""

    def hold_kernels(self, event: Event) -> None:
        """Kernels enqueued from now on wait for that event; the caller does not."""


class Never:
    """An event that is always done."""

    def done(self) -> bool:
        return True

    def synchronise(self) -> None:
        pass


@dataclass
class Buffer:
    """Memory that the host below may use once the last copy from or to it is complete."""

    array: Array
    copy: Event = field(default_factory=Never)


class Pool:
    """Pinned buffers for reuse: pinning memory takes far longer than copying it."""

    def __init__(self, device: Streams) -> None:
        self.device = device
        self.free: defaultdict[tuple[int, str], list[Buffer]] = defaultdict(list)

    def take(self, size: int, dtype: Any) -> Buffer:
        """One without a copy in progress."""
        free = self.free[size, dtype.name]
        place = next((place for place, buffer in enumerate(free) if buffer.copy.done()), None)
        return Buffer(self.device.pinned(size, dtype)) if place is None else free.pop(place)

    def give_back(self, buffer: Buffer) -> None:
        self.free[buffer.array.size, buffer.array.dtype.name].append(buffer)


class Carried:
    """A verb in progress: `begin` passes a buffer to the host below, `finish` enqueues what follows its result.

    `wait` returns `result`. `x` is what the buffer is copied from; it is held so that its memory is not reused.
    """

    def __init__(self, host: StagedHost, x: Array, result: Array, buffer: Buffer,
                 begin: Callable[[Array], Pending], finish: Callable[[Array], Event]) -> None:
        self.host, self.x, self.result, self.buffer, self.begin, self.finish = host, x, result, buffer, begin, finish
        self.carried: Pending | None = None
        self.back: Event | None = None      # when the result is in place
        host.under_way.append(self)

    def test(self) -> bool:
        self.host._advance()
        return self.back is not None

    def wait(self) -> Array:
        self.host.finish_computing()
        if self.carried is None:
            self.host._start_all(self)
        with self.host.device.beside():
            back = self.conclude()
        self.host.device.hold_kernels(back)
        return self.result

    def start(self) -> Pending:
        if self.carried is None:
            self.carried = self.begin(self.host._settled(self.buffer))
        return self.carried

    def advance(self) -> bool:
        """Progresses as far as possible without waiting; False if it cannot even start."""
        if self.carried is None and not self.buffer.copy.done():
            return False
        if self.start().test():
            self.conclude()
        return True

    def conclude(self) -> Event:
        if self.back is None:
            self.back = self.finish(self.start().wait())
        return self.back


class StagedHost:
    """This rank's end of the cluster for arrays on a device: `Host` over another `Host` for host memory.

    `reason`: what `library` adds to `way`, e.g. why it is not a faster one.
    """

    way = "staged through pinned host memory"

    def __init__(self, host: Host, device: Streams, reason: str = "") -> None:
        self.host, self.device, self.reason, self.pool = host, device, reason, Pool(device)
        self.rank, self.size, self.traffic = host.rank, host.size, host.traffic
        self.members = host.members
        self.under_way: list[Carried] = []  # in the order of the calls
        self.finish_computing: Callable[[], None] = lambda: None
        self.groups: list[StagedHost] = []

    # collective

    def mean(self, x: Array, half: Half | None = None) -> Pending:
        if not self.device.holds(x):
            self._start_all()
            return self.host.mean(x, half)
        if self.size == 1:
            return Done(x)
        buffer = self._copied_out(x)
        return Carried(self, x, x, buffer, partial(self.host.mean, half=half), lambda _: self._copied_in(buffer, x))

    def settle(self) -> None:
        self._start_all()
        self.host.settle()

    def broadcast(self, x: Array, root: int = 0) -> None:
        self._start_all()
        if not self.device.holds(x):
            return self.host.broadcast(x, root)
        buffer = self._copied_out(x)
        self.host.broadcast(self._settled(buffer), root)
        self.device.hold_kernels(self._copied_in(buffer, x))

    def allgather(self, item: Any) -> list[Any]:
        self._start_all()
        return self.host.allgather(item)

    def nodes(self) -> list[list[int]]:
        self._start_all()
        return self.host.nodes()

    def group(self, ranks: Sequence[int]) -> StagedHost:
        self._start_all()
        group = self._over(self.host.group(ranks))
        group.finish_computing = lambda: self.finish_computing()
        self.groups.append(group)
        return group

    def _over(self, host: Any) -> StagedHost:
        return type(self)(host, self.device, self.reason)

    def share(self, x: Array) -> Shared:
        self._start_all()
        if not self.device.holds(x):
            return self.host.share(x)
        with self.on_host(x) as copy:
            return StagedMemory(self, self.host.share(copy), x.dtype)

    def counters(self, count: int) -> Counters:
        self._start_all()
        return self.host.counters(count)

    # pairwise

    def exchange(self, x: Array, peer: int) -> Pending:
        if not self.device.holds(x):
            self._start_all()
            return self.host.exchange(x, peer)
        if peer == self.rank:
            return Done(x)
        buffer, arrival = self._copied_out(x), self.device.empty(x.size, x.dtype)

        def finish(theirs: Array) -> Event:
            with self._timed():
                buffer.array[:] = theirs    # theirs may be overwritten before a copy of it is complete
            return self._copied_in(buffer, arrival)
        return Carried(self, x, arrival, buffer, lambda mine: self.host.exchange(mine, peer), finish)

    # one-sided

    def post(self, x: Array, peer: int, note: float = 0.0) -> None:
        if not self.device.holds(x):
            return self.host.post(x, peer, note)
        with self.on_host(x) as copy:
            self.host.post(copy, peer, note)

    def collect(self, least: int = 0) -> Iterator[Letter]:
        if least:
            self._start_all()
        for letter in self.host.collect(least):
            on_device = self.device.empty(letter.array.size, letter.array.dtype)
            yield letter._replace(array=self.to_device(letter.array, on_device))

    def idle(self) -> None:
        self._advance()
        with self.device.beside():
            self.host.idle()

    # for the training loop

    def compute(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.host.compute(f, *args, **kwargs)

    def linger(self, seconds: float) -> None:
        self.host.linger(seconds)

    def progress(self) -> None:
        self._advance()
        with self.device.beside():
            self.host.progress()

    def until(self, done: Callable[[], bool], what: str) -> None:
        def advanced() -> bool:
            self._advance()
            return done()
        with self.device.beside():
            self.host.until(advanced, what)

    def before_waiting(self, act: Callable[[], None]) -> None:
        self.finish_computing = act

    def now(self) -> float:
        return self.host.now()

    def cores(self) -> int:
        return self.host.cores()

    def local_rank(self) -> int:
        return self.host.local_rank()

    def place(self) -> Place:
        return {**self.host.place(), **self.device.place}

    def library(self) -> str:
        return f"{self.host.library()}; arrays on the GPU {self.way}{self.reason}"

    def stop_agreed(self, step: int, asked: bool) -> bool:
        return self.host.stop_agreed(step, asked)

    def forget_stop(self) -> None:
        self.host.forget_stop()

    def lost(self, error: BaseException) -> bool:
        return False                        # its copies under way would be

    def shrink(self) -> None:
        raise NotImplementedError("a host with a device cannot go on without a rank")

    def complete(self) -> None:
        self.host.complete()

    # copies

    @contextmanager
    def on_host(self, x: Array) -> Iterator[Array]:
        """A copy of x in host memory, complete."""
        self.finish_computing()
        buffer = self._copied_out(x)
        yield self._settled(buffer)
        self.pool.give_back(buffer)

    def to_device(self, values: Array, into: Array) -> Array:
        """`into`, which holds `values` for all kernels from now on."""
        buffer = self.pool.take(values.size, values.dtype)
        with self._timed():
            buffer.array[:] = values
        self.device.hold_beside(self.device.kernels_done())     # they may still read the old content of `into`
        self.device.hold_kernels(self._copied_in(buffer, into))
        return into

    def _copied_out(self, x: Array) -> Buffer:
        buffer = self.pool.take(x.size, x.dtype)
        buffer.copy = self.device.copy_out(x, buffer.array)
        return buffer

    def _copied_in(self, buffer: Buffer, x: Array) -> Event:
        buffer.copy = self.device.copy_in(buffer.array, x)
        self.pool.give_back(buffer)
        return buffer.copy

    def _settled(self, buffer: Buffer) -> Array:
        """The buffer for the host below, once its last copy is complete."""
        with self._timed():
            buffer.copy.synchronise()
        return buffer.array

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Adds the seconds spent inside to `comm_s`; the host below adds its own."""
        start = self.now()
        yield
        self.traffic.comm_s += self.now() - start

    def _advance(self) -> None:
        """Progresses as far as possible without waiting; nothing starts before what was called earlier."""
        with self.device.beside():
            for carried in self.under_way:
                if not carried.advance():
                    break
        self.under_way = [carried for carried in self.under_way if carried.back is None]
        for group in self.groups:
            group._advance()

    def _start_all(self, last: Carried | None = None) -> None:
        """Starts what has not started, up to `last`, before another collective or a wait for other ranks."""
        if self.under_way:
            self.finish_computing()
        with self.device.beside():
            for carried in self.under_way:
                carried.start()
                if carried is last:
                    break


class StagedMemory(Shared):
    """`Shared` for arrays on a device; the memory itself is host memory."""

    def __init__(self, host: StagedHost, shared: Shared, dtype: Any) -> None:
        self.host, self.shared, self.dtype = host, shared, dtype

    def read(self, owner: int, out: Array | None = None, glance: bool = False) -> Array:
        values = self.shared.read(owner, glance=glance)
        return self.host.to_device(values, self.host.device.empty(values.size, self.dtype) if out is None else out)

    def add(self, owner: int, delta: Array, weigh: Weigh | None = None) -> int:
        with self.host.on_host(delta) as copy:
            return self.shared.add(owner, copy, weigh)
