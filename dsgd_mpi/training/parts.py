"""The parts of a run, as assembled by `build`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from dsgd_mpi.algorithms import Algorithm
from dsgd_mpi.data import Batches, Course, Split
from dsgd_mpi.net.api import Host, Net
from dsgd_mpi.nn import Model
from dsgd_mpi.optim.api import Optimizer
from dsgd_mpi.optim.schedule import Schedule
from dsgd_mpi.training.checkpoint import Checkpoints
from dsgd_mpi.training.inject import Faults
from dsgd_mpi.training.record import Record

STEPS = Course(batch=1, epoch=1, first=1)   # counted as they are
NO_FAULTS = Faults()


class Meeting(NamedTuple):
    """What all ranks do together between two steps: `stopped`, since one was asked to stop."""

    stopped: bool
    evaluated: bool
    saved: bool


class Survival(Protocol):
    """What the loop asks of `training.survive`, for whom a rank that dies does not end the run."""

    def keep(self, run: Training, record: Record, step: int, meeting: Meeting | None = None) -> None:
        """At the beginning of a step, or of a meeting: this is what the run would go on from."""

    def went_on(self, run: Training, record: Record, failure: BaseException) -> tuple[Training, int, Meeting]:
        """Collective, after `Host.lost`: the run without the dead, the step it goes on with, and what is done first."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """All parts of a run."""

    host: Host
    net: Net                                # what the algorithm sees of it
    model: Model
    batches: Batches
    test: Split
    algorithm: Algorithm
    optimizer: Optimizer
    schedule: Schedule
    checkpoints: Checkpoints
    steps: int                              # of the whole run
    steps_per_epoch: int
    ranks_per_step: int                     # that compute a gradient in it; 1 if steps are distributed
    eval_every: int                         # steps, of the batch with which the run began
    course: Course = STEPS                  # what its steps mean in images
    eval_own: int = 0                       # test images on which each rank evaluates its own model as well
    checkpoint_every: int = 0               # steps; 0: none but the last
    threads: int = 1                        # that this rank computes with
    workers: int                            # ranks that train a model; the others only serve
    works: bool                             # whether this rank is one of them
    bn: Literal["average", "recalibrate", "local"] = "average"  # whose batch norm statistics the answer gets
    on_nonfinite: Literal["stop", "skip", "restore"] = "stop"  # what becomes of a loss or gradient that is not finite
    delay_s: Callable[[int], float] | None = None       # added to the time of the gradient at a step
    faults: Faults = NO_FAULTS              # of this rank, for a drill
    survival: Survival | None = None        # of the run, where it may go on without ranks that die

    @property
    def saves(self) -> bool:
        """Whether there are checkpoints before the last one."""
        return bool(self.checkpoint_every or self.on_nonfinite == "restore")

    @property
    def shared_out(self) -> bool:
        """Whether each step is taken by one rank, any of them, rather than by all."""
        return self.ranks_per_step < self.workers
