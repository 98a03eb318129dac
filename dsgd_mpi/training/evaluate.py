"""Evaluation of a run's current model."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.data import evaluation_batches
from dsgd_mpi.net.api import Host
from dsgd_mpi.training.parts import Training
from dsgd_mpi.training.record import Record

RECALIBRATION_STEPS = 16                    # batches per rank from which statistics are computed,
RECALIBRATION_BATCHES = 256                 # and at most of all ranks, but one of each


def take_answer(run: Training, step: int, record: Record) -> None:
    """Collective: x becomes the model that the algorithm offers, with the batch norm statistics requested.

    To recalibrate costs each rank RECALIBRATION_STEPS gradients at most.
    """
    model, x = run.model, run.model.flat
    statistics = slice(model.parameters, None)
    own = x[statistics].copy()
    with record.answering:
        x[:] = run.algorithm.answer(x)
    if run.bn == "local":
        x[statistics] = own
    elif run.bn == "recalibrate":           # the gradient of running statistics is their difference from a batch's
        with record.recalibrating:
            distance, batches = 0 * own, run.batches.of_all()
            count = max(1, min(RECALIBRATION_STEPS, RECALIBRATION_BATCHES // run.host.size))
            for batch in range(step, step + count):
                model.loss_and_gradient(*batches.at(batch), between=run.host.progress)
                distance += model.flat_gradient[statistics] / count
            x[statistics] -= run.host.mean(distance).wait()


def evaluate(run: Training, step: int, record: Record) -> tuple[dict[str, Any], Array]:
    """Collective: evaluates the algorithm's answer on the test set, each rank on its share; x is left unchanged.

    The figures, and the answer.
    """
    host, model, x = run.host, run.model, run.model.flat
    own = x.copy()
    distances = consensus_distances(host, x[: model.parameters], host.size / run.workers if run.works else 0.0)
    take_answer(run, step, record)          # soon after all have met: no rank waits for another in it
    right, seen = counted(run, host.rank, host.size)
    answer = x.copy()
    x[:] = own
    alone = own_accuracy(run)
    share = host.mean(np.array([right, seen], np.float64)).wait()
    return {"accuracy": float(share[0] / share[1]), **spread(host.allgather(alone)),
            "consensus_distance": sum(filter(None, distances)) / run.workers,
            "rank_consensus_distance": distances}, answer


def counted(run: Training, rank: int, size: int, most: int | None = None) -> tuple[int, int]:
    """How many of a rank's share of test images the model recognises, and how many these are."""
    model = run.model
    predict = model.predictor()
    right = seen = 0
    for images, labels in evaluation_batches(run.test, model.batch, rank, size, model.kernels.byte_memory, most):
        right += int((predict(images).argmax(1) == labels).sum())
        seen += len(labels)
        run.host.progress()
    return right, seen


def own_accuracy(run: Training) -> float | None:
    """Of this rank's model as it is, with its own running statistics, on the same images as on all other ranks.

    None where there is no model that differs from the answer: the algorithm keeps all alike, or the rank only serves;
    and where it is not asked for.
    """
    if run.algorithm.one_model or not run.works or not run.eval_own:
        return None
    right, seen = counted(run, 0, 1, run.eval_own)
    return right / seen


def spread(accuracies: list[float | None]) -> dict[str, float | None]:
    """Of the ranks' own models; None if there is none."""
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return {f"own_accuracy_{name}": float(of(known)) if known else None
            for name, of in (("min", np.min), ("mean", np.mean), ("max", np.max))}


def consensus_distances(host: Host, x: Array, weight: float = 1.0) -> list[float | None]:
    """Collective: each rank's ||x_i - mean x|| / ||mean x||; None where it weighs nothing. The weights average to 1."""
    mean = host.mean(weight * x).wait()
    own = float(np.linalg.norm(x - mean)) / float(np.linalg.norm(mean))
    found: list[float | None] = host.allgather(own if weight else None)
    return found
