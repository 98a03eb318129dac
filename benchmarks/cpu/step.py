"""Whole training steps and inference, ours against PyTorch's: `python -m benchmarks.cpu.step`, or `make bench`.

A training step is forward, backward and SGD with Nesterov momentum and weight decay, repeated on one batch. Ours also
copies the batch in, and inference copies the logits out. Nothing is timed unless the first losses agree: the one at the
initial weights closely, later ones as closely as rounding allows (in float32, ResNet-50's first gradient is 4 % away
from the float64 one, ours and PyTorch's alike).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from itertools import product
from typing import Any

import click

from benchmarks.shared import contest, provenance
from benchmarks.shared.cases import (
    CASES,
    DECAY,
    FIRST,
    LR,
    MOMENTUM,
    OURS,
    Case,
    batch_of,
    first_of,
    ours,
    weights,
)
from benchmarks.shared.contest import Contestant, Work, compare, summary, take_turns, timing
from dsgd_mpi.nn import models

TORCH = {"eager channels_last": (True, False), "eager contiguous": (False, False), "torch.compile": (True, True)}
AGREE = {"float32": (1e-5, 3e-2), "bfloat16": (2e-2, 1e-1)}     # relative: the first loss, and those after it


def torchs(case: Case, training: bool, dtype: str, channels_last: bool, compiled: bool,
           started: Callable[[], None]) -> tuple[Work, list[float]]:
    import torch

    from benchmarks.shared import torch_nets

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


def measure(case: Case, threads: int, training: bool, dtype: str, rivals: tuple[str, ...]) -> dict[str, Any]:
    """One table row's worth: who failed and why, seconds a step, peak memory."""
    with ExitStack() as stack:
        everyone = [stack.enter_context(Contestant(OURS, threads, ours, case, training, dtype))]
        for name in rivals:
            everyone.append(stack.enter_context(
                Contestant(name, threads, torchs, case, training, dtype, *TORCH[name])))
        working = [contestant for contestant in everyone if not contestant.failure]
        for contestant in working[1:]:
            compare(contestant, working[0], limits(training, dtype))
        seconds = take_turns(working, "step", case.rounds, case.times)
        return {"case": asdict(case), "threads": threads, "mode": "training" if training else "inference",
                "dtype": dtype, "processor": provenance.vectors(),
                "failed": {contestant.name: contestant.failure for contestant in everyone if contestant.failure},
                "peak_bytes": {each.name: each.peak_bytes() for each in working if not each.failure},
                "seconds": seconds,
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
@provenance.saving
def main(nets: str, threads: str, modes: str, dtypes: str, rivals: str, save: bool) -> None:
    """Time the steps of networks, all contestants taking turns."""
    for dtype, count in product(contest.usable(dtypes), map(int, threads.split(","))):
        peak = contest.gemm_peak(count, dtype)
        for name, mode in product(nets.split(","), modes.split(",")):
            found = measure(CASES[name], count, mode == "training", dtype, tuple(filter(None, rivals.split(","))))
            click.echo(line(found, peak))
            if save:
                provenance.save(f"step-{name}-{mode}-{dtype}-{count}-{provenance.vectors()}",
                                {**found, "gemm_gflops": peak})


if __name__ == "__main__":
    main()
