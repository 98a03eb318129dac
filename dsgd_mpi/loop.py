"""The training loop, the only one: the same for every algorithm, on every net."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

from dsgd_mpi.evaluate import Training, evaluate, take_answer
from dsgd_mpi.flat import Array
from dsgd_mpi.run.record import Record

BETWEEN_S = 5e-4                            # of a slowed computation between two polls, as between two layers


def train(run: Training, record: Record, first: int, stop_asked: Callable[[], bool]) -> int:
    """Everyone, from step `first` on: the step reached, short of the last where all agreed to stop. Checkpointed."""
    host, model, x = run.host, run.model, run.model.flat
    run.algorithm.start(host, x, run.sgd)

    with closing(run.batches.stream(first)) as batches:
        def gradient(at: Array, /, ready: Callable[[Array, slice], None] | None = None) -> Array:
            if at is not x:
                x[:] = at
            with record.data:
                images, labels = next(batches)
            g = model.flat_gradient
            handed_out = partial(ready, g) if ready else None
            with record.compute:
                record.loss(host.compute(model.loss_and_gradient, images, labels, handed_out, host.progress))
                linger(run.delay_s, host.progress)
            return g

        for step in range(first, run.steps):
            if host.stop_agreed(step, stop_asked()):
                run.checkpoints.save(step, x, run.sgd, run.algorithm, record.totals())
                return step
            run.algorithm.step(x, gradient, run.schedule(step))
            record.step(step + 1, run.schedule(step))
            if (step + 1) % run.eval_every == 0 or step + 1 == run.steps:
                with record.evaluating:
                    found = evaluate(run, step + 1)
                record.evaluation(step + 1, **found)
            if (run.checkpoint_every and (step + 1) % run.checkpoint_every == 0) or step + 1 == run.steps:
                run.checkpoints.save(step + 1, x, run.sgd, run.algorithm, record.totals())
    take_answer(run, run.steps)
    return run.steps


def linger(seconds: float, between: Callable[[], None]) -> None:
    """Takes time as a slow computation would: messages move on meanwhile."""
    end = time.perf_counter() + seconds
    while seconds and time.perf_counter() < end:
        between()
        time.sleep(BETWEEN_S)
