"""The only training loop: the same for every algorithm, on every net.

All ranks take the same steps together; or, if steps do not depend on other ranks, a run's steps are distributed, and
each rank takes the next free one. Either way they synchronize when the run is evaluated, saved or ended.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np

from dsgd_mpi.arrays.flat import Array, Buckets, Hear
from dsgd_mpi.training.evaluate import evaluate, take_answer
from dsgd_mpi.training.nonfinite import Diverged, check, noticed, restored, slowed
from dsgd_mpi.training.parts import Meeting, Training
from dsgd_mpi.training.record import Record
from dsgd_mpi.training.steps import walk_of


def train(run: Training, record: Record, first: int, stop_asked: Callable[[], bool],
          conclude: Callable[[Training, int], None] = lambda run, reached: None) -> int:
    """Collective, from step `first` on: the step reached, earlier if all agreed to stop. Saved in a checkpoint.

    `conclude(run, reached)`: what is done at the end while the run may still go on without a rank that dies
    (`survive`), and then is done again; `run` has what has become of its parts.
    Diverged, on all ranks, once a number that matters is not finite and nothing can be done about it (`nonfinite`).
    """
    meeting: Meeting | None = None
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):     # noticed where it matters
        while True:
            try:
                try:
                    reached = attempt(slowed(run, record), record, first, stop_asked, meeting)
                    run.checkpoints.finish()
                    conclude(run, reached)
                    run.host.complete()
                    return reached
                except Diverged as problem:
                    run, first = restored(run, record, problem)
                    meeting = None
            except Exception as failure:
                if not (run.survival and run.host.lost(failure)):
                    raise
                run, first, meeting = run.survival.went_on(run, record, failure)


def attempt(run: Training, record: Record, first: int, stop_asked: Callable[[], bool],
            meeting: Meeting | None = None) -> int:
    """Collective: `train`, or Diverged at the first number that is not finite. It begins with a meeting, if any."""
    host, model, x = run.host, run.model, run.model.flat
    run.algorithm.start(run.net, x, run.optimizer)
    keep = run.survival.keep if run.survival else ignored
    keep(run, record, first, meeting)
    host.before_waiting(record.settle)
    run.optimizer.skipped = record.updates_skipped
    run.optimizer.leaves_out = run.on_nonfinite == "skip"
    if first == 0 and not meeting and run.saves:  # a full disk is found early, and there is always one to go back to
        run.checkpoints.save(0, x, run.optimizer, run.algorithm, record.totals())
    sent: list[tuple[Any, Array]] = []      # the next batch, once it is on its way to a device
    answer: Array | None = None             # the last that was evaluated

    with closing(run.batches.stream(record.rank_steps if run.shared_out else first)) as batches:
        def following() -> tuple[Any, Array]:
            images, labels = next(batches)
            return model.kernels.send(images), labels

        def gradient(at: Array, /, hear: Hear | None = None, least: int = 0) -> Array:
            own = None if at is x else x.copy()
            if own is not None:             # the network is bound to x
                x[:] = at
            with record.data:
                images, labels = sent.pop() if sent else following()
            g = model.flat_gradient
            ready = Buckets(least, partial(hear, g)) if hear else None
            slow_s = run.faults.delay_s + (run.delay_s(record.taking[0] - 1) if run.delay_s else 0.0)
            if slow_s:                      # first: parts of the gradient are sent as soon as they are known
                record.settle()
                with record.compute:
                    host.linger(slow_s)
            with record.compute, run.faults.spoiling(x, model.parameters):
                loss = host.compute(model.begin, images, labels, ready=ready, between=host.progress)
            record.loss(loss)
            if model.kernels.byte_memory:   # the next batch is copied to the device while that computes
                with record.data:
                    sent.append(following())
            if own is not None:
                x[:] = own
            return g

        def take(step: int) -> None:
            keep(run, record, step)
            record.taking = _, rate = step + 1, run.schedule(step)
            run.faults.before(step + 1)
            run.algorithm.step(x, gradient, rate)
            (record.step if run.works else record.line)(step + 1, rate)

        def asked() -> bool:
            return stop_asked() or noticed(run, record)

        def meet(step: int, meeting: Meeting) -> None:
            nonlocal answer
            keep(run, record, step, meeting)
            check(run, record, step)
            if meeting.evaluated:
                if step == run.steps:       # what is evaluated, saved and offered at the end is one state
                    run.algorithm.rest(x)
                answer = evaluation(run, step, record)
            if meeting.saved:
                run.checkpoints.save(step, x, run.optimizer, run.algorithm, record.totals())
                run.faults.saved(run.checkpoints.part_of(step, run.algorithm))

        if meeting:
            meet(first, meeting)
            if meeting.stopped:
                return first
        walk = walk_of(run, record, first)
        reached = first
        while reached < run.steps:
            goal = next_meeting(run, reached)
            reached = walk(reached, goal, take, asked)
            record.settle()
            stopped = reached < goal
            evaluated = not stopped and (reached == run.steps or evaluation_after(run, reached - 1) == reached)
            saved = (stopped or due(reached, run.checkpoint_every, run.steps)
                     or (evaluated and run.checkpoints.keep_best))
            meet(reached, Meeting(stopped, evaluated, saved))
            if stopped:
                return reached
    if not record.row:                      # resumed at its very end, from a checkpoint that was made to stop
        answer = evaluation(run, run.steps, record)
    if answer is None:                      # resumed there for what its folder lacks
        with record.evaluating:
            take_answer(run, run.steps, record)
    else:
        x[:] = answer
    check(run, record, run.steps)
    return run.steps


def ignored(run: Training, record: Record, step: int, meeting: Meeting | None = None) -> None:
    """Where nobody survives, nothing is kept for it."""


def evaluation(run: Training, step: int, record: Record) -> Array:
    """Collective: a row of the summary. The answer that it is of."""
    with record.evaluating:
        found, answer = evaluate(run, step, record)
    record.evaluation(step, run.schedule(step - 1), **found)
    return answer


def due(step: int, every: int, last: int) -> bool:
    return step == last or bool(every and step % every == 0)


def next_meeting(run: Training, step: int) -> int:
    """The next step after which there is something for all ranks to do together."""
    regular = [run.checkpoint_every] if run.checkpoint_every else []
    return min(run.steps, evaluation_after(run, step), *((step // every + 1) * every for every in regular))


def evaluation_after(run: Training, step: int) -> int:
    """The next step after which the run is evaluated, the end apart."""
    every = run.eval_every
    return run.course.reaches((run.course.units(step) // every + 1) * every)
