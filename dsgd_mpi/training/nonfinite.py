"""Numbers that are not finite end a run before they are saved; or all ranks go back and try again at half the rate.

What is not finite is noticed in the loss, which is read anyway, and asks for a stop as a signal does: all ranks end at
the same step. Where they meet, before an evaluation or a checkpoint, each looks at its model too, and all learn what
any has found.

`stop`: one line names the first rank, its step and rate; status 3. `skip`: an update whose gradient is not finite is
left out, on every rank that has it; once the model itself is not finite, or after PATIENCE such updates in a row, the
run ends as with `stop`. `restore`: all go back to the newest checkpoint, at half the rate from there to the end; the
third time that does not help, the run ends. A run that is resumed keeps its halved rate unless --lr is another.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, cast

from dsgd_mpi.arrays.flat import finite
from dsgd_mpi.errors import RunError, UsageError
from dsgd_mpi.training.parts import Training
from dsgd_mpi.training.record import Record

STATUS = 3
RESTORES = 3                                # the most
log = logging.getLogger("dsgd_mpi")


class Diverged(RunError):
    """What was found, on which rank, and the way out. `step`: at which all ranks ended."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message, STATUS)
        self.step = step


def noticed(run: Training, record: Record) -> bool:
    """Whether this rank has met what ends the run, as far as it knows without looking."""
    return run.optimizer.stuck or (record.lost is not None and run.on_nonfinite != "skip")


def check(run: Training, record: Record, step: int) -> None:
    """Collective: Diverged on all ranks if one has noticed something, or its model is not finite."""
    record.updates_skipped = run.optimizer.skipped
    everyone = run.host.allgather(own_trouble(run, record, step))
    found = [(*trouble, rank) for rank, trouble in enumerate(everyone) if trouble]
    if found:
        run.checkpoints.finish()            # it may be the newest, to be named and to go back to
        _, _, text, rank = min(found)       # the first step; of one step a loss, which is a rank's own
        raise Diverged(f"rank {rank}: {text}; {way_out(run)}", step)


def own_trouble(run: Training, record: Record, step: int) -> tuple[int, bool, str] | None:
    """Its step, whether it is of the model, which others may have spoilt, and in words."""
    tried = f", after {record.restores} restore{'s'[: record.restores > 1]}" if record.restores else ""
    if run.on_nonfinite == "skip":
        tried = f", and {run.optimizer.skipped} updates were left out"
    elif record.lost:
        return record.lost[0], False, record.lost[1] + tried
    if not finite(run.model.flat):
        return step, True, f"the model after step {step} is not finite at rate {run.schedule(step - 1):g}{tried}"
    if run.optimizer.stuck:
        return step, False, (f"the last {run.optimizer.in_a_row} gradients before step {step} are not finite at rate "
                             f"{run.schedule(step - 1):g}{tried}")
    return None


def way_out(run: Training) -> str:
    """Collective."""
    newest, lower = run.checkpoints.newest(), "with a lower --lr or a longer --warmup"
    if newest is None:
        return f"no checkpoint was written before; start again {lower}"
    folder = run.checkpoints.folder
    return f"the newest finite checkpoint is of step {newest}; continue with --resume {folder} or start again, {lower}"


def slowed(run: Training, record: Record) -> Training:
    """The run at the rate that its restores so far have left."""
    if record.peak_lr != run.schedule.lr:   # another was asked for
        record.restores, record.peak_lr = 0, run.schedule.lr
    share = 0.5 ** record.restores
    schedule = dataclasses.replace(run.schedule, lr=share * run.schedule.lr, start=share * run.schedule.start)
    return dataclasses.replace(run, schedule=schedule)


def restored(run: Training, record: Record, problem: Diverged) -> tuple[Training, int]:
    """Collective: the run at its newest checkpoint, as if resumed from there, and the step; or raises the problem."""
    if run.on_nonfinite != "restore" or record.restores == RESTORES:
        raise problem
    run.algorithm.rest(run.model.flat)      # nothing is in flight any more
    run.host.forget_stop()
    algorithm = dataclasses.replace(cast(Any, run.algorithm))       # as it is before it starts
    try:
        step, totals = run.checkpoints.restore(run.model.flat, run.optimizer, algorithm)
    except UsageError:                      # a full disk has let none be written
        raise problem from None
    run.host.traffic.reset()
    record.rewind(step, {**totals, "restores": record.restores + 1, "peak_lr": run.schedule.lr}, algorithm)
    if run.host.rank == 0:
        log.warning("restore %d of %d, to step %d and rate %g; %s", record.restores, RESTORES, step,
                    run.schedule.lr / 2**record.restores, problem.message.partition(";")[0])
    return dataclasses.replace(run, algorithm=algorithm), step

