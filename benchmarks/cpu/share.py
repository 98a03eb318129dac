"""The share of a training step that each kind of layer takes, with one thread: `python -m benchmarks.cpu.share`."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from typing import Any

import click
import numpy as np

from benchmarks.shared import contest, provenance
from benchmarks.shared.cases import CASES, DECAY, LR, MOMENTUM, Case, batch_of
from benchmarks.shared.contest import Contestant, Failed, Work
from dsgd_mpi.nn import resnet
from dsgd_mpi.optim.sgd import Sgd


class Stopwatch:
    """CPU seconds of the parts of a step, by name, for each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.step: dict[str, float] = defaultdict(float)

    def time(self, name: str, work: Callable[..., object], *args: Any) -> None:
        start = time.process_time()
        work(*args)
        self.step[name] += time.process_time() - start

    def next(self) -> None:
        for name, seconds in self.step.items():
            self.seconds[name].append(seconds)
        self.step.clear()


def parts(case: Case, dtype: str, started: Callable[[], None]) -> tuple[Work, list[float]]:
    """A step whose parts are timed separately; the result is the time that each part has taken so far."""
    started()
    model = resnet(case.name, case.classes, case.image, case.batch, "onednn", dtype)
    images, labels = batch_of(case)
    model.loss_and_gradient(images, labels)
    plan, k, watch = model.plans[case.batch], model.kernels, Stopwatch()
    sgd = Sgd(MOMENTUM, weight_decay=DECAY).start(model.layout, model.flat, k)
    steps = list(zip(model.graph.layers, plan.steps, strict=True))

    def step() -> None:
        watch.time("images in", k.put, images, plan.images)
        plan.loss.put(labels)
        for layer, bound in steps:
            watch.time(f"{type(layer.operation).__name__} forward", bound.operation.forward, True)
        watch.time("loss", plan.loss.forward)
        for layer, bound in reversed(steps):
            watch.time(f"{type(layer.operation).__name__} backward", bound.operation.backward)
            for total, term in bound.sums:
                watch.time("sums of gradients", k.accumulate, total, term)
        watch.time("SGD", sgd.update, model.flat, model.flat_gradient, LR)
        watch.next()

    return {"step": step, "parts": lambda: dict(watch.seconds)}, []


@click.command()
@click.option("--nets", default="resnet8,resnet20,resnet18", show_default=True, help=f"Of {', '.join(CASES)}.")
@click.option("--dtypes", default="float32,bfloat16", show_default=True)
@click.option("--rounds", default=10, show_default=True)
@provenance.saving
def main(nets: str, dtypes: str, rounds: int, save: bool) -> None:
    """Break training steps down by kind of layer."""
    for dtype, name in product(contest.usable(dtypes), nets.split(",")):
        with Contestant("dsgd_mpi", 1, parts, CASES[name], dtype) as contestant:
            try:
                contestant.time("step", rounds)
                seconds = contestant.result("parts")
            except Failed as reason:
                click.echo(f"{name} {dtype} failed: {reason}")
                continue
        total = sum(np.median(samples) for samples in seconds.values())
        for part, samples in sorted(seconds.items(), key=lambda item: -np.median(item[1])):
            click.echo(f"{name} {dtype} {part:24} {1e3 * np.median(samples):8.2f} ms "
                       f"{100 * np.median(samples) / total:5.1f} %")
        if save:
            provenance.save(f"share-{name}-{dtype}-1-{provenance.vectors()}",
                            {"case": name, "batch": CASES[name].batch, "threads": 1, "dtype": dtype,
                             "processor": provenance.vectors(), "seconds": seconds})


if __name__ == "__main__":
    main()
