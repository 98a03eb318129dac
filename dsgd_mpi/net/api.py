"""The cluster's interface to algorithms. The verbs are classified by who must take part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.half import Half


class Letter(NamedTuple):
    """What one rank has posted to another: a copy of its array, and a number."""

    source: int
    array: Array
    note: float


Weigh = Callable[[int], float]              # what an addition of that staleness counts for


class Shared(Protocol):
    """Memory that every rank may read and add to without its owner's involvement, atomically for each element."""

    def read(self, owner: int, out: Array | None = None, glance: bool = False) -> Array:
        """A copy of the owner's part, in `out` (contiguous) if it is given. Staleness does not count a `glance`."""

    def add(self, owner: int, delta: Array, weigh: Weigh | None = None) -> int:
        """part += delta; complete on return. Its staleness: additions by others since this rank's last read.

        With `weigh`, weigh(staleness) times delta is added; the staleness is then that at which it is applied.
        """

    def read_parts(self, parts: Sequence[slice], out: Array, glance: bool = False) -> Array:
        """`read` from the first ranks, each into its part of `out`; returns `out`."""
        for owner, part in enumerate(parts):
            self.read(owner, out[part], glance)
        return out

    def add_parts(self, parts: Sequence[slice], delta: Array, weigh: Weigh | None = None) -> None:
        """`add` to the first ranks, to each its part of `delta`."""
        for owner, part in enumerate(parts):
            self.add(owner, delta[part], weigh)


class Counters(Protocol):
    """Integers that every rank may read and add to, atomically and without another rank's involvement."""

    def add(self, which: int, amount: int = 1) -> int:
        """The value before the addition."""

    def values(self) -> Array:
        """A copy of all: int64."""


class Pending(Protocol):
    """Communication in progress. The array passed in must not be touched until `wait` has returned."""

    def test(self) -> bool:
        """Progresses as far as possible without waiting; whether `wait` would return at once."""

    def wait(self) -> Array: ...


class Done:
    """Nothing to wait for."""

    def __init__(self, value: Array) -> None:
        self.value = value

    def test(self) -> bool:
        return True

    def wait(self) -> Array:
        return self.value


@dataclass
class Traffic:
    """What communication has cost this rank so far.

    `comm_s`: seconds inside any verb; `wait_s`: the part of it spent blocked on other ranks;
    `bytes_sent`: payload, where a mean over n ranks counts as the 2 (n - 1) / n times its bytes that a ring sends,
    and what this rank reads from another's `Shared` counts as well;
    `staleness`: histogram of how many additions by others came between this rank's read and its one-sided addition.
    """

    comm_s: float = 0.0
    wait_s: float = 0.0
    bytes_sent: int = 0
    staleness: Counter[int] = field(default_factory=Counter)

    def reset(self) -> None:
        """In place: as if nothing had been communicated."""
        self.comm_s, self.wait_s, self.bytes_sent = 0.0, 0.0, 0
        self.staleness.clear()


class Net(Protocol):
    """All that an algorithm sees."""

    rank: int
    size: int

    def mean(self, x: Array, half: Half | None = None) -> Pending:
        """Collective, in the same order: the mean over all ranks. In place: `wait` returns x. Bitwise equal on all.

        If `half` is given, elements are sent in it: a rank's input, partial sums and the mean are rounded.
        """

    def exchange(self, x: Array, peer: int) -> Pending:
        """Pairwise: x goes to `peer`; `wait` returns the peer's array, valid until the next `exchange` begins.

        With itself a rank gets x itself. Arrays of unequal length raise an error that names the ranks.
        """

    def post(self, x: Array, peer: int, note: float = 0.0) -> None:
        """One-sided, by the sender: a copy of x and a number, to be collected by `peer` at some later time."""

    def collect(self, least: int = 0) -> Iterator[Letter]:
        """One-sided, by the receiver: what has arrived, at least `least` letters; each sender's in the order sent."""

    def share(self, x: Array) -> Shared:
        """Collective, once: shares a copy of x with all ranks. The ranks' parts may differ in length."""

    def counters(self, count: int) -> Counters:
        """Collective, once: that many counters, initially zero, in the memory of rank 0."""

    def idle(self) -> None:
        """Local, called in a loop while a rank waits for a change in shared memory: sleeps briefly."""

    def settle(self) -> None:
        """Collective: when it returns, all that was posted has arrived and can be collected."""

    def broadcast(self, x: Array, root: int = 0) -> None:
        """Collective: x becomes the root's, in place, at full precision."""

    def nodes(self) -> list[list[int]]:
        """Collective: the ranks of each node, those that can share memory or are taken to; in order."""

    def group(self, ranks: Sequence[int]) -> Net:
        """Collective, once: a net of these ranks alone, which are numbered anew in the order of their old numbers.

        Every rank names the group that it is in, and all ranks of a group name the same. What is sent in a group does
        not mix with what is sent elsewhere; its traffic counts as this rank's.
        """


class Host(Net, Protocol):
    """What the training loop sees in addition."""

    traffic: Traffic
    members: list[int]                      # the ranks, by their numbers when the job began

    def compute(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls f. On a simulated cluster the clock then advances by the time it would take there.

        There, an argument `ready` (a Buckets) hears of what f finishes early as late as it would.
        """

    def linger(self, seconds: float) -> None:
        """Takes time as a slow computation would; messages progress meanwhile."""

    def progress(self) -> None:
        """Lets messages progress; called between layers, since most MPIs make no progress unless they are entered."""

    def until(self, done: Callable[[], bool], what: str) -> None:
        """Waits for something outside of the cluster, named in a report if it never comes; messages progress."""

    def before_waiting(self, act: Callable[[], None]) -> None:
        """From now on `act()` is called before this rank waits for its own device, for work that it may still do."""

    def now(self) -> float:
        """Seconds since some fixed time, by this rank's clock."""

    def allgather(self, item: Any) -> list[Any]:
        """Collective: what JSON can hold, in rank order."""

    def cores(self) -> int:
        """Collective: the cores this rank may use, divided among the ranks of its node that may use the same ones."""

    def local_rank(self) -> int:
        """Collective: this rank's number among the ranks of its node."""

    def library(self) -> str:
        """What carries the messages, with its version, in one line."""

    def place(self) -> dict[str, Any]:
        """Where this rank computes: `host`, `cores`, `device`, and of a GPU `uuid`."""

    def stop_agreed(self, step: int, asked: bool) -> bool:
        """At every step boundary: True on all ranks at the same step, soon after `asked` is true on one of them."""

    def forget_stop(self) -> None:
        """Collective, between steps: as if nobody had asked to stop."""

    def lost(self, error: BaseException) -> bool:
        """Whether it may tell that ranks have died, without which this one can go on after `shrink`."""

    def shrink(self) -> None:
        """Collective among those that live: numbers them anew. What was under way is gone, requests to stop too.

        Raises what `lost` knows if more die meanwhile, and another error if none has died.
        """

    def complete(self) -> None:
        """Collective: returns on all ranks, or raises what `lost` knows on all."""
