"""A run that goes on without ranks that have died, from what each rank keeps of itself at the beginning of a step.

A rank that dies leaves the others anywhere: some have begun the next step, some wait in this one, some save. All go on
from the furthest step that one of them has begun, each from its own model as it was at the beginning of its step; who
was behind leaves out the steps between. Where all have the same model, it is that of the furthest rank. What all were
about to do together (to evaluate, to save) is done once more, by those that live.

    batch       each rank keeps its own, so that a step takes fewer images; the rest of the epoch is shared anew
    rate        stays, at the same place of its schedule, which counts images, as that of a resumed run does
    length      stays, in images: there are more steps
    weights     of push-sum: scaled so that those that are left sum to the number of ranks (`Algorithm.go_on`)

The images that the dead rank had counted, and what was under way to or from it, are lost.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.training.parts import Meeting, Training
from dsgd_mpi.training.rankfile import Saved, State, put_back
from dsgd_mpi.training.record import Record

log = logging.getLogger("dsgd_mpi")


class Survivor:
    """This rank's part. `among(run, step)`: the run from that step on, among the ranks of its host now.

    `places`: of the ranks when the job began, with `host` and `pid`.
    """

    def __init__(self, among: Callable[[Training, int], Training], places: list[dict[str, Any]]) -> None:
        self.among, self.places = among, places
        self.members = list(range(len(places)))     # as far as it was told
        self.arrays: dict[str, Array] = {}
        self.totals: dict[str, Any] = {}
        self.step, self.meeting = 0, cast("Meeting | None", None)

    def keep(self, run: Training, record: Record, step: int, meeting: Meeting | None = None) -> None:
        """At the beginning of a step, or of a meeting: a copy of this rank's state."""
        self.step, self.meeting, self.totals = step, meeting, record.totals()
        self.totals["line_losses"] = list(self.totals["line_losses"])
        for name, array in arrays_of(state_of(run, run.algorithm)).items():
            if name in self.arrays and self.arrays[name].shape == np.shape(array) != ():
                self.arrays[name][...] = array      # into the same memory
            else:
                self.arrays[name] = np.array(array)[()]

    def went_on(self, run: Training, record: Record, failure: BaseException) -> tuple[Training, int, Meeting]:
        """Collective, once ranks have died: the run without them, its step, and what all do first.

        Raises `failure`, or another that comes after it, if it is of another kind.
        """
        while True:
            if not run.host.lost(failure):
                raise failure
            try:
                return self._once(run, record)
            except Exception as another:    # one more may have died meanwhile
                failure = another

    def _once(self, run: Training, record: Record) -> tuple[Training, int, Meeting]:
        host = run.host
        host.shrink()
        run.checkpoints.abandon()
        everyone = host.allgather([self.step, self.meeting])
        step = max(each for each, _ in everyone)
        furthest = next(rank for rank, (each, _) in enumerate(everyone) if each == step)
        meeting = next((Meeting(*each) for _, each in everyone if each), Meeting(False, False, False))
        algorithm = dataclasses.replace(cast(Any, run.algorithm))       # as it is before it starts
        state = state_of(run, algorithm)
        put_back(Saved(self.step, host.size, {}, [], self.arrays), state)
        run = dataclasses.replace(self.among(run, step), algorithm=algorithm)
        algorithm.go_on(run.net, step - self.step)
        same = [getattr(algorithm, name) for name in algorithm.alike]
        same += [state.x] if algorithm.one_model or algorithm.in_step() else []
        same += state.optimizer.state.values() if algorithm.in_step() else []
        for array in same:                  # on all ranks but those that were behind
            host.broadcast(array, furthest)
        run.checkpoints.course = run.course
        run.checkpoints.header["workers"] = run.workers
        record.dead = host.allgather(record.dead)[0]
        self._told(run, record, step)
        now = record.figures()["wall_s"]
        host.traffic.reset()
        record.among(run.steps_per_epoch, run.ranks_per_step, run.course)
        record.rewind(step, {**self.totals, "wall_s": now, "dead": record.dead}, algorithm, meeting.evaluated)
        return run, step, meeting._replace(saved=meeting.saved or run.saves)    # older ones are of more ranks

    def _told(self, run: Training, record: Record, step: int) -> None:
        """Who has died, in `record.dead` and, once, in a line."""
        gone = [rank for rank in self.members if rank not in run.host.members]
        self.members = list(run.host.members)
        new = [rank for rank in gone if rank not in [each["rank"] for each in record.dead]]
        dead = [{"rank": rank, **{key: self.places[rank][key] for key in ("host", "pid")}, "step": step}
                for rank in new]
        record.dead = [*record.dead, *dead]
        if run.host.rank == 0 and dead:
            log.warning("lost %s after step %d; %d rank%s on from there: global batch %d, rate %.4g, %d steps in all",
                        ", ".join("rank {rank} (pid {pid} on {host})".format(**each) for each in dead), step,
                        run.host.size, " goes" if run.host.size == 1 else "s go", run.course.batch,
                        run.schedule(min(step, run.steps - 1)), run.steps)


def state_of(run: Training, algorithm: Any) -> State:
    return State(run.model.flat, run.optimizer, algorithm, run.checkpoints.state)


def arrays_of(state: State) -> dict[str, Any]:
    """By the names that they have in a checkpoint."""
    return {"x": state.x, **{f"optimizer/{name}": array for name, array in state.optimizer.state.items()},
            **{f"keeps/{name}": getattr(state.algorithm, name) for name in state.algorithm.keeps},
            **{f"kernels/{name}": array for name, array in state.kernels.items()}}
