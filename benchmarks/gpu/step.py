"""Whole training steps on one GPU, ours against PyTorch's: `python -m benchmarks.gpu.step`, or `make bench-gpu`.

A step is forward, backward and SGD with Nesterov momentum and weight decay, on one batch that is already on the GPU;
`whole_seconds`, measured for ours only, starts from bytes in host memory and waits for each loss. The contestants run
one after another in separate processes. One whose first losses disagree with those of the first is not timed, and like
one that fails it does not end the others. The roofline is the time that the GPU takes to copy, at the rate measured
here, as many bytes as our step has to move.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click
import numpy as np

from benchmarks.gpu.bytes import bytes_moved
from benchmarks.shared import provenance
from benchmarks.shared.cases import DECAY, FIRST, LR, MOMENTUM, OURS, Case, batch_of, weights
from benchmarks.shared.contest import Contestant, Failed, Work, compare, summary, timing
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.kernels.api import Bytes
from dsgd_mpi.kernels.gpu import device as devices
from dsgd_mpi.nn import models, resnet
from dsgd_mpi.optim.sgd import Sgd

TORCH = {"eager": (False, False), "eager, CUDA graph": (False, True), "torch.compile": (True, False),
         "torch.compile, CUDA graph": (True, True)}
IMAGE = (224, 224, 3)
STEPS = 10                                  # in one sample
AGREE = 5e-2
SCALE = 65536.0                             # of the loss in float16, ours and theirs at the start
COPIED_BYTES = 4 << 30


def ours(case: Case, dtype: str, started: Callable[[], None]) -> tuple[Work, list[float]]:
    images, labels = batch_of(case)
    started()
    model = resnet(case.name, case.classes, case.image, case.batch, "cudnn", dtype)
    sgd = Sgd(MOMENTUM, weight_decay=DECAY).start(model.layout, model.flat, model.kernels)

    def step(images: Array | Bytes) -> float:
        loss = model.loss_and_gradient(images, labels)
        sgd.update(model.flat, model.flat_gradient, LR)
        return loss

    first = [step(images) for _ in range(FIRST)]
    plan, stored = model.plan(case.batch), stored_images(case, model.kernels)

    def steps() -> float:
        for _ in range(STEPS):
            plan.program(None, None)
            sgd.update(model.flat, model.flat_gradient, LR)
        return plan.loss.get()              # waits

    return {"steps": steps, "whole": lambda: step(stored), "bytes": gpu_bytes,
            "name": lambda: model.kernels.device.name}, first


def stored_images(case: Case, kernels: Any) -> Bytes:
    """A batch as the training loop supplies it."""
    images = kernels.byte_memory((case.batch, *case.image))
    images[...] = np.random.default_rng(0).integers(0, 256, images.shape)
    channels = np.full(case.image[-1], 1 / 128, np.float32)
    return Bytes(images, None, channels, -128 * channels, 0)


def gpu_bytes() -> int:
    import cupy
    return int(cupy.get_default_memory_pool().total_bytes())


def torchs(case: Case, dtype: str, compiled: bool, graphed: bool,
           started: Callable[[], None]) -> tuple[Work, list[float]]:
    import torch

    from benchmarks.shared import torch_nets

    images, labels = batch_of(case)
    started()
    torch.backends.cudnn.benchmark = True
    model = torch_nets.loaded(case.name, case.classes, case.image[-1], weights(case))
    model = model.to("cuda", memory_format=torch.channels_last)
    mode = "max-autotune-no-cudagraphs" if graphed else "default"
    net: Any = torch.compile(model, mode=mode) if compiled else model
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to("cuda", memory_format=torch.channels_last)
    truth = torch.from_numpy(labels).to("cuda")
    sgd = torch.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=DECAY, nesterov=True, fused=True)
    half = dtype == "float16"
    scaler = torch.amp.GradScaler("cuda", init_scale=SCALE, enabled=half)       # with fused SGD it never waits

    def gradient() -> Any:
        with torch.autocast("cuda", getattr(torch, dtype)):
            loss = torch.nn.functional.cross_entropy(net(x), truth)
        scaler.scale(loss).backward()
        return loss

    def update() -> None:
        scaler.step(sgd)
        scaler.update()

    def eager() -> Any:
        sgd.zero_grad(set_to_none=True)
        loss = gradient()
        update()
        return loss

    step, first = captured(torch, sgd, gradient, update, eager, half) if graphed else (
        eager, [eager().item() for _ in range(FIRST)])

    def steps() -> float:
        for _ in range(STEPS):
            loss = step()
        return float(loss.item())           # waits

    return {"steps": steps, "bytes": torch.cuda.max_memory_reserved}, first


def captured(torch: Any, sgd: Any, gradient: Callable[[], Any], update: Callable[[], None], eager: Callable[[], Any],
             scaled: bool) -> tuple[Callable[[], Any], list[float]]:
    """A step as a CUDA graph, as PyTorch's documentation has it, and the losses of the first steps, which warm up.

    Gradients do not exist when the capture begins, so that it allocates them in its own pool; replays overwrite them.
    With a scaled loss the update stays outside. https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        first = [eager().item() for _ in range(FIRST)]
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    sgd.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss = gradient()
        if not scaled:
            update()

    def replay() -> Any:
        graph.replay()
        if scaled:
            update()
        return loss
    return replay, first


def copy(started: Callable[[], None]) -> tuple[Work, list[float]]:
    """Device to device: bytes read and written count."""
    import cupy
    started()
    one, other = (cupy.ones(COPIED_BYTES // 4, "float32") for _ in range(2))

    def copies() -> None:
        for _ in range(STEPS):
            cupy.copyto(other, one)
        cupy.cuda.get_current_stream().synchronize()
    return {"steps": copies}, []


def bandwidth() -> float:
    """Bytes a second."""
    with Contestant("copy", 2, copy) as contestant:
        seconds = np.median([contestant.time("steps", 1) for _ in range(5)]) / STEPS
    return 2 * COPIED_BYTES / float(seconds)


def measure(case: Case, dtype: str, rivals: tuple[str, ...], rate: float, rounds: int) -> dict[str, Any]:
    result: dict[str, Any] = {"case": case.name, "batch": case.batch, "dtype": dtype, "copy_bytes_per_s": rate,
                              "seconds": {}, "failed": {}, "gpu_bytes": {}, "first_losses": {}}
    first: Contestant | None = None
    for name in (OURS, *rivals):
        made = (ours, case, dtype) if name == OURS else (torchs, case, dtype, *TORCH[name])
        with Contestant(name, 2, *made) as contestant:
            result["first_losses"][name] = contestant.check
            if first:
                compare(contestant, first, [AGREE] * FIRST)
            elif not contestant.failure:
                first = contestant
            try:
                samples = [contestant.time("steps", 1) / STEPS for _ in range(rounds)]
                result["gpu_bytes"][name] = contestant.result("bytes")
                result["seconds"][name] = samples
                if name == OURS:
                    result["gpu"] = contestant.result("name")
                    result["whole_seconds"] = [contestant.time("whole", STEPS) for _ in range(rounds)]
            except Failed:
                result["failed"][name] = contestant.failure
    moved = bytes_moved(models.graph(case.name, case.classes, case.image), case.batch, dtype)
    return {**result, "bytes_moved": moved, "roofline_s": moved / rate}


def line(result: dict[str, Any]) -> str:
    """One contest in words."""
    text = [f"{result['case']} b{result['batch']} {result['dtype']}: roofline {1e3 * result['roofline_s']:.2f} ms, "
            f"{result['bytes_moved'] / 1e9:.1f} GB at {result['copy_bytes_per_s'] / 1e12:.2f} TB/s"]
    seconds = result["seconds"]
    for name, samples in seconds.items():
        text.append(f"{timing(name, seconds, OURS, 26)}   {result['batch'] / summary(samples)[0]:7.0f} images/s"
                    f"   {result['gpu_bytes'][name] / 2**30:5.1f} GiB")
    return "\n".join(text + [f"  {name:26} failed: {why}" for name, why in result["failed"].items()])


def file_name(net: str, batch: int, dtype: str, rivals: tuple[str, ...]) -> str:
    """With the rivals, where they are not all: each may have been measured alone."""
    chosen = [re.sub(r"\W+", "-", rival) for rival in rivals] if set(rivals) != set(TORCH) else []
    return "-".join(["gpu-step", net, str(batch), dtype, *chosen])


def known(ctx: click.Context, parameter: click.Parameter, rivals: str) -> tuple[str, ...]:
    found = tuple(filter(None, rivals.split(":")))
    if unknown := [rival for rival in found if rival not in TORCH]:
        raise click.BadParameter(f"expected some of {':'.join(TORCH)}; found {':'.join(unknown)}")
    return found


@click.command()
@click.option("--nets", default="resnet18,resnet50", show_default=True)
@click.option("--batches", default="64,128,256", show_default=True)
@click.option("--dtypes", default="bfloat16,float16", show_default=True)
@click.option("--rivals", default=":".join(TORCH), show_default=True, callback=known, help="Separated by colons.")
@click.option("--rounds", default=7, show_default=True, help=f"Samples, of {STEPS} steps each.")
@provenance.saving
def main(nets: str, batches: str, dtypes: str, rivals: tuple[str, ...], rounds: int, save: bool) -> None:
    """Time training steps on a GPU, all contestants in one run."""
    devices.check()
    try:
        rate = bandwidth()
    except Failed as reason:
        raise click.ClickException(str(reason)) from None
    for name in nets.split(","):
        for batch in map(int, batches.split(",")):
            for dtype in dtypes.split(","):
                found = measure(Case(name, IMAGE, batch, 1000, rounds, STEPS), dtype, rivals, rate, rounds)
                click.echo(line(found))
                if save:
                    provenance.save(file_name(name, batch, dtype, rivals), found)


if __name__ == "__main__":
    main()
