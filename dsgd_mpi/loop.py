"""The training loop, the only one: the same for every algorithm, on every net."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from dsgd_mpi.algorithms import Algorithm
from dsgd_mpi.data import Batches, Split, evaluation_batches
from dsgd_mpi.flat import Array
from dsgd_mpi.net.api import Host
from dsgd_mpi.nn import Model
from dsgd_mpi.run.checkpoint import Checkpoints
from dsgd_mpi.run.record import Record
from dsgd_mpi.schedule import Schedule
from dsgd_mpi.sgd import LocalSgd

BETWEEN_S = 5e-4                            # of a slowed computation between two polls, as between two layers
RECALIBRATION_STEPS = 16                    # batches a rank that statistics are measured on


@dataclass
class Training:
    """All that takes part in a run, as `build` puts it together."""

    host: Host
    model: Model
    batches: Batches
    test: Split
    algorithm: Algorithm
    sgd: LocalSgd
    schedule: Schedule
    checkpoints: Checkpoints
    steps: int                              # of the whole run
    eval_every: int                         # steps
    checkpoint_every: int                   # steps; 0: none but the last
    bn: Literal["average", "recalibrate", "local"] = "average"      # whose statistics the answer gets
    delay_s: float = 0.0                    # by which each gradient is made slower


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


def take_answer(run: Training, step: int) -> None:
    """Everyone: x becomes the model that the algorithm offers, with the statistics that were asked for."""
    model, x = run.model, run.model.flat
    statistics = slice(model.parameters, None)
    own = x[statistics].copy()
    x[:] = run.algorithm.answer(x)
    if run.bn == "local":
        x[statistics] = own
    elif run.bn == "recalibrate":           # the gradient of running statistics is their distance from a batch's
        distance = 0 * own
        for batch in range(step, step + RECALIBRATION_STEPS):
            model.loss_and_gradient(*run.batches.at(batch), between=run.host.progress)
            distance += model.flat_gradient[statistics] / RECALIBRATION_STEPS
        x[statistics] -= run.host.mean(distance).wait()


def evaluate(run: Training, step: int) -> dict[str, Any]:
    """Everyone: what the algorithm's answer does on the test set, each rank taking its share; x stays as it was."""
    host, model, x = run.host, run.model, run.model.flat
    own = x.copy()
    distance = consensus_distance(host, x[: model.parameters])
    take_answer(run, step)
    right = seen = 0
    for images, labels in evaluation_batches(run.test, model.batch, host.rank, host.size):
        right += int((model.predict(images).argmax(1) == labels).sum())
        seen += len(labels)
    x[:] = own
    share = host.mean(np.array([right, seen], np.float64)).wait()
    return {"accuracy": float(share[0] / share[1]), "consensus_distance": distance}


def consensus_distance(host: Host, x: Array) -> float:
    """Everyone: mean over the ranks of ||x_i - mean x||, divided by ||mean x||."""
    mean = host.mean(x.copy()).wait()
    distance = host.mean(np.array([np.linalg.norm(x - mean)], np.float64)).wait()
    return float(distance[0] / np.linalg.norm(mean))
