"""What a run is made of, and what the model that it has come to is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dsgd_mpi.algorithms import Algorithm
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.data import Batches, Split, evaluation_batches
from dsgd_mpi.net.api import Host, Net
from dsgd_mpi.nn import Model
from dsgd_mpi.optim.api import Optimizer
from dsgd_mpi.optim.schedule import Schedule
from dsgd_mpi.training.checkpoint import Checkpoints

RECALIBRATION_STEPS = 16                    # batches a rank that statistics are measured on


@dataclass
class Training:
    """All that takes part in a run, as `build` puts it together."""

    host: Host
    net: Net                                # what the algorithm sees of it
    model: Model
    batches: Batches
    test: Split
    algorithm: Algorithm
    sgd: Optimizer
    schedule: Schedule
    checkpoints: Checkpoints
    steps: int                              # of the whole run
    steps_per_epoch: int
    ranks_per_step: int                     # that compute a gradient in it; 1 where the steps are shared out
    eval_every: int                         # steps
    checkpoint_every: int                   # steps; 0: none but the last
    threads: int                            # that this rank computes with
    workers: int                            # ranks that train a model; the others only serve
    works: bool                             # whether this rank is one of them
    bn: Literal["average", "recalibrate", "local"] = "average"      # whose statistics the answer gets
    delay_s: float = 0.0                    # by which each gradient is made slower

    @property
    def shared_out(self) -> bool:
        """Whether a step is done by one rank, any of them, and not by all."""
        return self.ranks_per_step < self.workers


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
    distance = consensus_distance(host, x[: model.parameters], host.size / run.workers if run.works else 0.0)
    take_answer(run, step)
    predict = model.predictor()
    right = seen = 0
    for images, labels in evaluation_batches(run.test, model.batch, host.rank, host.size, model.kernels.byte_memory):
        right += int((predict(images).argmax(1) == labels).sum())
        seen += len(labels)
    x[:] = own
    share = host.mean(np.array([right, seen], np.float64)).wait()
    return {"accuracy": float(share[0] / share[1]), "consensus_distance": distance}


def consensus_distance(host: Host, x: Array, weight: float = 1.0) -> float:
    """Everyone: mean over the ranks of ||x_i - mean x||, divided by ||mean x||; the weights have a mean of 1."""
    mean = host.mean(weight * x).wait()
    distance = host.mean(np.array([weight * float(np.linalg.norm(x - mean))])).wait()
    return float(distance[0]) / float(np.linalg.norm(mean))
