"""What an algorithm may ask of the cluster. The verbs are sorted by who must take part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.half import Half


class Letter(NamedTuple):
    """What one rank posted to another: a copy of its array and a number beside it."""

    source: int
    array: Array
    note: float


class Shared(Protocol):
    """Memory that every rank may read and add to without its owner's help; each number is read and added atomically."""

    def read(self, owner: int, out: Array | None = None) -> Array:
        """A copy of the owner's part, in `out` (contiguous) where it is given."""

    def add(self, owner: int, delta: Array) -> int:
        """part += delta; complete when it returns. How many additions have come between since this rank's last read."""

    def age(self, owner: int) -> int:
        """Additions to the owner's part since this rank last read it: what `add` would return now."""


class Counters(Protocol):
    """Whole numbers that every rank may read and add to, atomically and without anybody's help."""

    def add(self, which: int, amount: int = 1) -> int:
        """What the number was before."""

    def values(self) -> Array:
        """A copy of all: int64."""


class Pending(Protocol):
    """Communication under way. The array that was handed in is left alone until `wait` has returned."""

    def test(self) -> bool:
        """Goes on as far as it can without waiting: whether `wait` would return at once."""

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

    `comm_s`: seconds inside any verb; `wait_s`: the part of it spent blocked until others had done theirs;
    `bytes_sent`: payload, where a mean over n ranks counts as the 2 (n - 1) / n times its bytes that a ring sends;
    `staleness`: how many one-sided additions met how many others since this rank had last read.
    """

    comm_s: float = 0.0
    wait_s: float = 0.0
    bytes_sent: int = 0
    staleness: Counter[int] = field(default_factory=Counter)


class Net(Protocol):
    """All that an algorithm sees."""

    rank: int
    size: int

    def mean(self, x: Array, half: Half | None = None) -> Pending:
        """Collective, in the same order: the mean over all ranks. In place: `wait` returns x. Bitwise equal on all.

        Where `half` is given, numbers travel in it: what a rank hands in, sums on their way and the mean are rounded.
        """

    def exchange(self, x: Array, peer: int) -> Pending:
        """Two ranks: x goes to `peer`; `wait` returns its counterpart, valid until an `exchange` is begun after that.

        With oneself it is x itself. Two arrays of unequal length raise an error that names the ranks.
        """

    def post(self, x: Array, peer: int, note: float = 0.0) -> None:
        """One-sided, by the sender: a copy of x and a number, to be collected by `peer` some time later."""

    def collect(self, least: int = 0) -> Iterator[Letter]:
        """One-sided, by the receiver: what has arrived, at least so many; each sender's in the order sent."""

    def share(self, x: Array) -> Shared:
        """Collective, once: lends a copy of x to all. The parts of the ranks may differ in length."""

    def counters(self, count: int) -> Counters:
        """Collective, once: so many counters, at zero, in the memory of rank 0."""

    def idle(self) -> None:
        """One rank, again and again while it waits for a change in shared memory: sleeps for a moment."""

    def settle(self) -> None:
        """Collective: when it returns, all that was posted has arrived and can be collected."""


class Host(Net, Protocol):
    """What the training loop sees in addition."""

    traffic: Traffic

    def compute(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls f. On a simulated cluster the clock then runs on by what it would have cost there."""

    def progress(self) -> None:
        """Lets messages move on; called between layers, since nothing moves while MPI is not entered."""

    def now(self) -> float:
        """Seconds since some fixed moment by this rank's clock."""

    def broadcast(self, x: Array, root: int = 0) -> None:
        """Collective: x becomes the root's, in place."""

    def allgather(self, item: Any) -> list[Any]:
        """Collective: small Python objects, in rank order."""

    def cores(self) -> int:
        """Collective: the cores this rank may use, divided among the ranks of its node that may use the same ones."""

    def local_rank(self) -> int:
        """Collective: this rank's number among the ranks of its node."""

    def library(self) -> str:
        """What carries the messages, with its version, in one line."""

    def place(self) -> dict[str, Any]:
        """Where this rank computes: `host`, `cores`, `device`, and of a GPU `uuid`."""

    def stop_agreed(self, step: int, asked: bool) -> bool:
        """At every step boundary: True on all ranks at the same step, soon after one of them `asked`."""
