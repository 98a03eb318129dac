"""Whole training steps and inference, ours against PyTorch's: `python benchmarks/step.py`, or `make bench`.

A training step is forward, backward and SGD with Nesterov momentum and weight decay, on one batch again and again.
Ours also copies the batch in, and inference copies the logits out. Nothing is timed before the first losses agree: that
of the first weights closely, those after steps as closely as rounding allows (in float32, ResNet-50's first gradient is
4 % away from the same in float64, ours and PyTorch's alike).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import click
import contest
import numpy as np
from contest import Contestant, Work, summary, take_turns, timing

from dsgd_mpi.arrays.flat import Layout
from dsgd_mpi.nn import models, resnet
from dsgd_mpi.nn.init import initialise
from dsgd_mpi.optim.sgd import LocalSgd

LR, MOMENTUM, DECAY = 0.01, 0.9, 1e-4
OURS = "dsgd_mpi"
TORCH = {"eager channels_last": (True, False), "eager contiguous": (False, False), "torch.compile": (True, True)}
FIRST = 3                                   # steps whose losses are compared
AGREE = {"float32": (1e-5, 3e-2), "bfloat16": (2e-2, 1e-1)}     # relative: the first loss, and those after it


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
    sgd = LocalSgd(model.parameters, MOMENTUM, DECAY, model.kernels.nesterov, like=model.flat)

    def step() -> float:
        loss = model.loss_and_gradient(images, labels)
        sgd.update(model.flat, model.flat_gradient, LR)
        return loss

    if training:
        return {"step": step}, [step() for _ in range(FIRST)]
    predict = model.predictor()
    return {"step": lambda: predict(images)}, first_of(predict(images))


def torchs(case: Case, training: bool, dtype: str, channels_last: bool, compiled: bool,
           started: Callable[[], None]) -> tuple[Work, list[float]]:
    import torch
    import torch_nets

    images, labels = batch_of(case)
    started()
    order = torch.channels_last if channels_last else torch.contiguous_format
    model = torch_nets.loaded(case.name, case.classes, case.image[-1], weights(case)).to(memory_format=order)
    net: Any = torch.compile(model) if compiled else model
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=order)
    truth = torch.from_numpy(labels)
    sgd = torch.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=DECAY, nesterov=True)
    cast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")

    def step() -> float:
        with cast:
            loss = torch.nn.functional.cross_entropy(net(x), truth)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        return loss.item()

    def predict() -> Any:
        with torch.inference_mode(), cast:
            return net(x)

    if training:
        return {"step": step}, [step() for _ in range(FIRST)]
    model.eval()
    return {"step": predict}, first_of(predict().float().numpy())


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


def measure(case: Case, threads: int, training: bool, dtype: str, rivals: tuple[str, ...]) -> dict[str, Any]:
    """One table row's worth: who failed and why, seconds a step, peak memory."""
    with ExitStack() as stack:
        everyone = [stack.enter_context(Contestant(OURS, threads, ours, case, training, dtype))]
        for name in rivals:
            everyone.append(stack.enter_context(
                Contestant(name, threads, torchs, case, training, dtype, *TORCH[name])))
        working = [contestant for contestant in everyone if not contestant.failure]
        for contestant in working[1:]:
            for found, expected, limit in zip(contestant.check, working[0].check, limits(training, dtype), strict=True):
                assert abs(found - expected) <= limit * abs(expected), (contestant.name, found, expected)
        return {"case": asdict(case), "threads": threads, "mode": "training" if training else "inference",
                "dtype": dtype, "processor": contest.vectors(),
                "failed": {contestant.name: contestant.failure for contestant in everyone if contestant.failure},
                "peak_bytes": {contestant.name: contestant.peak_bytes() for contestant in working},
                "seconds": take_turns(working, "step", case.rounds, case.times),
                "gflop": 2e-9 * models.graph(case.name, case.classes, case.image).macs * case.batch
                * (3 if training else 1)}


def limits(training: bool, dtype: str) -> list[float]:
    """How far apart the numbers that are compared may be: losses, or logits of the first weights."""
    first, later = AGREE[dtype]
    return [first, *[later] * (FIRST - 1)] if training else [10 * first] * FIRST


def line(result: dict[str, Any], peak: float) -> str:
    """One contest in words."""
    case, seconds = result["case"], result["seconds"]
    text = [f"{case['name']} b{case['batch']} {result['mode']} {result['dtype']}, {result['threads']} threads"]
    for name, samples in seconds.items():
        text.append(f"{timing(name, seconds, OURS)}"
                    f"   {result['gflop'] / summary(samples)[0]:4.0f} GFLOP/s of {peak:.0f}"
                    f"   {result['peak_bytes'][name] / 2**20:5.0f} MiB")
    return "\n".join(text + [f"  {name:20} failed: {why}" for name, why in result["failed"].items()])


@click.command()
@click.option("--nets", default="resnet8,resnet20,resnet18", show_default=True, help=f"Of {', '.join(CASES)}.")
@click.option("--threads", default="1,2", show_default=True)
@click.option("--modes", default="training,inference", show_default=True)
@click.option("--dtypes", default="float32,bfloat16", show_default=True)
@click.option("--rivals", default=",".join(TORCH), show_default=True)
@click.option("--save/--no-save", default=True, show_default=True, help="Keep the figures in benchmarks/results.")
def main(nets: str, threads: str, modes: str, dtypes: str, rivals: str, save: bool) -> None:
    """Time the steps of networks, all contestants taking turns."""
    for dtype, count in product(contest.usable(dtypes), map(int, threads.split(","))):
        peak = contest.gemm_peak(count, dtype)
        for name, mode in product(nets.split(","), modes.split(",")):
            found = measure(CASES[name], count, mode == "training", dtype, tuple(filter(None, rivals.split(","))))
            click.echo(line(found, peak))
            if save:
                contest.save(f"step-{name}-{mode}-{dtype}-{count}-{contest.vectors()}", {**found, "gemm_gflops": peak})


if __name__ == "__main__":
    main()
