"""The training loop, the only one: the same for every algorithm, on every net."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

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
            return g

        for step in range(first, run.steps):
            if host.stop_agreed(step, stop_asked()):
                run.checkpoints.save(step, x, run.sgd, run.algorithm, record.totals())
                return step
            run.algorithm.step(x, gradient, run.schedule(step))
            record.step(step + 1, run.schedule(step))
            if (step + 1) % run.eval_every == 0 or step + 1 == run.steps:
                with record.evaluating:
                    found = evaluate(run)
                record.evaluation(step + 1, **found)
            if (run.checkpoint_every and (step + 1) % run.checkpoint_every == 0) or step + 1 == run.steps:
                run.checkpoints.save(step + 1, x, run.sgd, run.algorithm, record.totals())
    x[:] = run.algorithm.answer(x)
    return run.steps


def evaluate(run: Training) -> dict[str, Any]:
    """Everyone: what the algorithm's answer does on the test set, each rank taking its share; x stays as it was."""
    host, model, x = run.host, run.model, run.model.flat
    own = x.copy()
    distance = consensus_distance(host, x[: model.parameters])
    x[:] = run.algorithm.answer(x)
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
