"""Operations of several ranks of a simulated cluster: each joins, and all get their answers once these have arrived."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.half import Half, rounded
from dsgd_mpi.net.simulated.clock import Clock, Event

if TYPE_CHECKING:
    from dsgd_mpi.net.simulated.host import SimulatedHost

Reason = str | tuple[str, tuple[int, ...], int]     # in words; or a verb, its ranks, and which call of it


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
