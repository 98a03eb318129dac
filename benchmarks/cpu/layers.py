"""Single layers, ours against PyTorch's: `python -m benchmarks.cpu.layers`, or `make bench`.

Forward, data gradient and weight gradient for each shape of convolution in a network, and batch norm with ReLU, forward
and backward, all NHWC (PyTorch's channels_last). Ours includes the reordering of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import click
import numpy as np

from benchmarks.shared import contest, provenance
from benchmarks.shared.cases import CASES, OURS, Case
from benchmarks.shared.contest import Contestant, Failed, Work, quartiles, ratio, summary, take_turns
from dsgd_mpi.kernels.api import Arrays, BatchNorm, Convolution, Tensor
from dsgd_mpi.nn import models
from dsgd_mpi.nn.layers import Graph, Layer

THEIRS = "eager channels_last"


def shapes_of(graph: Graph) -> dict[str, Layer]:
    """Name of each shape of convolution and batch norm -> the first layer with that shape."""
    found: dict[str, Layer] = {}
    for layer in graph.layers:
        h, w, c = (*graph.shapes[layer.x], 0, 0)[:3]
        o = layer.operation
        if isinstance(o, Convolution):
            found.setdefault(f"conv {h}x{w} {c}->{o.channels} {o.window}x{o.window} /{o.stride}", layer)
        elif o == BatchNorm(relu=True) and not layer.add:
            found.setdefault(f"bn+relu {h}x{w} {c}", layer)
    return found


def gflop(case: Case, graph: Graph, layer: Layer) -> float:
    """Of one pass over a convolution."""
    h, w, _ = graph.shapes[layer.y]
    return 2e-9 * case.batch * h * w * float(np.prod(graph.trained[layer.weights[0]]))


def gbyte(case: Case, graph: Graph, layer: Layer, which: str, dtype: str) -> float:
    """The least that a pass over a batch norm must move if activations do not fit into the caches.

    Forward x twice (statistics first) and y; backward x and dy twice, and dx.
    """
    size = 1e-9 * case.batch * float(np.prod(graph.shapes[layer.x])) * (4 if dtype == "float32" else 2)
    return (3 if which == "forward" else 5) * size


def ours(case: Case, dtype: str, started: Callable[[], None]) -> tuple[Work, list[float]]:
    from dsgd_mpi.kernels.cpu.onednn import OneDNN, run

    started()
    k, rng, graph = OneDNN(dtype), np.random.default_rng(0), models.graph(case.name, case.classes, case.image)

    def activation(name: str) -> Tensor:
        tensor = Tensor(*(k.empty((case.batch, *graph.shapes[name])) for _ in ("value", "grad")))
        for array in (tensor.value, tensor.grad):
            k.put(rng.random(array.shape, np.float32), array)
        return tensor

    work: dict[str, Callable[[], object]] = {}
    for name, layer in shapes_of(graph).items():
        x, y = activation(layer.x), activation(layer.y)
        shapes = [(graph.trained | graph.statistics)[weight] for weight in layer.weights]
        weights = [Tensor(*rng.random((2, *shape), np.float32)) for shape in shapes]
        operation: Any = k.bind(layer.operation, Arrays(x, weights, y))
        work[f"{name} forward"] = partial(operation.forward, True)
        if isinstance(layer.operation, Convolution):
            if layer.x != "images":
                work[f"{name} data"] = partial(run, operation.data_gradient())
            work[f"{name} weights"] = partial(run, operation.weights_gradient())
        else:
            work[f"{name} backward"] = operation.backward
    return work, []


def torchs(case: Case, dtype: str, started: Callable[[], None]) -> tuple[Work, list[float]]:
    import torch

    started()
    graph, kind = models.graph(case.name, case.classes, case.image), getattr(torch, dtype)
    work: dict[str, Callable[[], object]] = {}

    def image(which: str) -> Any:
        h, w, c = graph.shapes[which]
        return torch.rand(case.batch, c, h, w, dtype=kind).contiguous(memory_format=torch.channels_last)

    for name, layer in shapes_of(graph).items():
        x, dy = image(layer.x), image(layer.y)
        if isinstance(layer.operation, Convolution):
            w = torch.rand(graph.trained[layer.weights[0]], dtype=kind).contiguous(memory_format=torch.channels_last)
            stride, pad = [layer.operation.stride] * 2, [layer.operation.pad] * 2
            back = partial(torch.ops.aten.convolution_backward, dy, x, w, None, stride, pad, [1, 1], False, [0, 0], 1)
            work[f"{name} forward"] = partial(torch.conv2d, x, w, None, stride, pad)
            if layer.x != "images":
                work[f"{name} data"] = partial(back, [True, False, False])
            work[f"{name} weights"] = partial(back, [False, True, False])
        else:
            work |= batch_norm(name, x, dy)
    return work, []


def batch_norm(name: str, x: Any, dy: Any) -> Work:
    import torch

    module = torch.nn.BatchNorm2d(x.shape[1])
    x.requires_grad_()
    kept: list[Any] = []

    def forward() -> None:
        kept[:] = [torch.relu_(module(x))]

    return {f"{name} forward": forward,
            f"{name} backward": lambda: torch.autograd.grad(kept[0], [x, *module.parameters()], dy, retain_graph=True)}


def measure(case: Case, threads: int, rounds: int, dtype: str) -> dict[str, Any]:
    graph = models.graph(case.name, case.classes, case.image)
    rows = {}
    with (Contestant(OURS, threads, ours, case, dtype) as mine,
          Contestant(THEIRS, threads, torchs, case, dtype) as theirs):
        both = [mine, theirs]
        for name, layer in shapes_of(graph).items():
            convolution = isinstance(layer.operation, Convolution)
            passes = ("forward", "data", "weights") if convolution else ("forward", "backward")
            for which in passes[:1] + passes[1 + (layer.x == "images"):]:
                work = ({"gflop": gflop(case, graph, layer)} if convolution else
                        {"gbyte": gbyte(case, graph, layer, which, dtype)})
                piece = f"{name} {which}"
                rows[piece] = {**work, "seconds": take_turns(both, piece, rounds, 2, limit_s=20)}
                for contestant in both:
                    if contestant.failure:      # a row compares the two
                        raise Failed(f"{contestant.name}: {contestant.failure}")
    return {"case": case.name, "batch": case.batch, "threads": threads, "dtype": dtype,
            "processor": provenance.vectors(), "rows": rows}


def rate(row: dict[str, Any], gemm_gflops: float, copy_gb_s: float | None) -> str:
    """Our rate and the best that the machine can do, if that was measured."""
    middle, *_ = summary(row["seconds"][OURS])
    if "gflop" in row:
        return f"{row['gflop'] / middle:.0f} of {gemm_gflops:.0f} GFLOP/s"
    return f"{row['gbyte'] / middle:.0f} of {copy_gb_s:.0f} GB/s" if copy_gb_s else ""


def line(name: str, row: dict[str, Any], *best: float) -> str:
    mine, other = (row["seconds"][who] for who in (OURS, THEIRS))
    times = quartiles(mine, width=8, unit=" ms")
    return f"  {name:36} {times}   theirs {ratio(other, mine):5.2f} times ours   {rate(row, *best)}"


@click.command()
@click.option("--nets", default="resnet20,resnet18", show_default=True, help=f"Of {', '.join(CASES)}.")
@click.option("--threads", default="1", show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--dtypes", default="float32,bfloat16", show_default=True)
@provenance.saving
def main(nets: str, threads: str, rounds: int, dtypes: str, save: bool) -> None:
    """Time the layers of networks, both contestants taking turns."""
    copy = contest.copy_peak()
    for dtype, count in product(contest.usable(dtypes), map(int, threads.split(","))):
        peak = contest.gemm_peak(count, dtype)
        for name in nets.split(","):
            click.echo(f"{name} b{CASES[name].batch} {dtype}, {count} threads")
            try:
                found = measure(CASES[name], count, rounds, dtype)
            except Failed as reason:
                click.echo(f"  failed: {reason}")
                continue
            for row, figures in found["rows"].items():
                click.echo(line(row, figures, peak, copy))
            if save:
                provenance.save(f"kernels-{name}-{dtype}-{count}-{provenance.vectors()}",
                             {**found, "gemm_gflops": peak, "copy_gb_s": copy})


if __name__ == "__main__":
    main()
