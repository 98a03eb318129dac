"""The networks and batches that are timed, and a training step of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.shared.contest import Work
from dsgd_mpi.arrays.flat import Layout
from dsgd_mpi.nn import models, resnet
from dsgd_mpi.nn.init import initialise
from dsgd_mpi.optim.sgd import Sgd

LR, MOMENTUM, DECAY = 0.01, 0.9, 1e-4
OURS = "dsgd_mpi"
FIRST = 3                                   # steps whose losses are compared


@dataclass(frozen=True)
class Case:
    """A network and a batch, the number of rounds, and of steps in one turn."""

    name: str
    image: tuple[int, int, int]
    batch: int
    classes: int
    rounds: int
    times: int


CASES = {case.name: case for case in (
    Case("resnet8", (28, 28, 1), 32, 10, 25, 10), Case("resnet20", (32, 32, 3), 128, 10, 15, 2),
    Case("resnet18", (224, 224, 3), 16, 1000, 9, 1), Case("resnet50", (224, 224, 3), 16, 1000, 5, 1))}


def batch_of(case: Case) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((case.batch, *case.image)).astype("float32"),
            rng.integers(0, case.classes, case.batch))


def ours(case: Case, training: bool, dtype: str, started: Callable[[], None]) -> tuple[Work, list[float]]:
    images, labels = batch_of(case)
    started()
    model = resnet(case.name, case.classes, case.image, case.batch, "onednn", dtype)
    sgd = Sgd(MOMENTUM, weight_decay=DECAY).start(model.layout, model.flat, model.kernels)

    def step() -> float:
        loss = model.loss_and_gradient(images, labels)
        sgd.update(model.flat, model.flat_gradient, LR)
        return loss

    if training:
        return {"step": step}, [step() for _ in range(FIRST)]
    predict = model.predictor()
    return {"step": lambda: predict(images)}, first_of(predict(images))


def weights(case: Case) -> dict[str, Any]:
    """What our model starts from."""
    graph = models.graph(case.name, case.classes, case.image)
    layout = Layout(graph.trained, graph.statistics)
    state = layout.views(np.zeros(layout.size, "float32"))
    initialise(graph, state, 0)
    return state


def first_of(logits: Any) -> list[float]:
    """The first image's logits, relative to the largest of all."""
    return [float(value) for value in logits[0, :FIRST] / np.abs(logits).max() + 1]
