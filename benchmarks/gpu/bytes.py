"""How many bytes a training step moves through a GPU's memory: `python -m benchmarks.gpu.bytes`; no GPU needed.

Every launch of a step is counted on a device that computes nothing, as if it read and wrote each of its arrays once, in
full, from and to memory: caches, pixels that a strided kernel skips, and cuDNN's workspaces are left out. Convolutions
are cuDNN's, as on a GPU that has a plan for each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NamedTuple

import click
import numpy as np

from benchmarks.gpu.feeding import Idle
from benchmarks.shared.cases import DECAY, LR, MOMENTUM
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.kernels.api import Bytes
from dsgd_mpi.kernels.gpu.cudnn import CuDNN
from dsgd_mpi.kernels.gpu.device import Dim, Format, Launch
from dsgd_mpi.kernels.gpu.plans import ROLES, Geometry
from dsgd_mpi.nn import models
from dsgd_mpi.nn.layers import Graph
from dsgd_mpi.nn.model import Model
from dsgd_mpi.optim.sgd import Sgd

# The pointers that each kernel takes, in order: =written, +read and written, the others read.
ARRAYS = {name: arrays.split() for name, arrays in {
    "narrowed": "from =to",
    "images_in": "bytes draws scale shift =to",
    "weights_in": "from scale =to",
    "weights_out": "from partial scaling =to",
    "copy_channels": "from =to",
    "fold": "gamma beta mean var =scale =bias",
    "convolution": "x weights =y",
    "convolution_data": "dy weights =dx",
    "convolution_weights": "dy x =partial",
    "batch_norm_statistics": "x gamma running_mean running_var =mean_gradient =var_gradient =centre =inverse =scale "
                             "+partial +arrived",
    "batch_norm_running": "gamma running_mean running_var =centre =scale",
    "batch_norm_apply": "x centre scale shift add =y =signs",
    "batch_norm_gradient_statistics": "dy term x signs centre scale shift inverse scaling =kept =gamma_gradient "
                                      "=beta_gradient =offset =slope +partial +arrived",
    "batch_norm_gradient": "dy x centre scale shift offset slope =dx",
    "max_pool": "x =y =winner",
    "max_pool_gradient": "dy term winner =dx",
    "average_pool": "x =y",
    "average_pool_gradient": "dy =dx",
    "subsample": "x =y",
    "subsample_gradient": "dy =dx",
    "cross_entropy": "logits labels scaling =gradient =losses",
    "mean_loss": "losses =mean",
    "column_sums": "x scaling =sums",
    "accumulate": "+total term",
    "sgd": "+x +v g lr decayed scaling",
    "adamw_count": "+t =corrections scaling",
    "adamw": "+x +m +v g lr corrections decayed scaling",
    "find_overflow": "g =scaling",
    "adjust_scale": "+scaling",
    **{f"convolution, {direction}": " ".join([*given, f"={result}"]) for direction, (*given, result) in ROLES.items()},
}.items()}
FROM_HOST = "images_in", "narrowed"         # the kernels that take images, before a step proper
TERA = 1e12


class Moved(NamedTuple):
    """What one launch does with one array."""

    kernel: str
    launch: int
    array: Array
    read: int                               # bytes
    written: int


class Counting(Idle):
    """`moved`: by all launches so far."""

    def __init__(self, given: Format) -> None:
        super().__init__(given)
        self.moved: list[Moved] = []
        self.launches = 0

    def kernel(self, name: str, vec: int, grid: Dim, block: Dim, *arguments: Any) -> Launch:
        return self.counted(name, [array for array in arguments if array is None or isinstance(array, np.ndarray)])

    def counted(self, name: str, arrays: list[Array]) -> Launch:
        if name not in ARRAYS:
            raise ValueError(f"{name}: which of its arrays it reads and writes is unknown; add it to {__name__}.ARRAYS")
        moves = [Moved(name, 0, array, 0 if what[0] == "=" else array.nbytes, array.nbytes if what[0] in "=+" else 0)
                 for what, array in zip(ARRAYS[name], arrays, strict=True) if array is not None]

        def launch() -> None:
            self.launches += 1
            self.moved += [move._replace(launch=self.launches) for move in moves]
        return launch


class Planned:
    """In the place of `Plans`: has a plan for every convolution."""

    cudnn = SimpleNamespace(cudnnGraphNotSupportedError=RuntimeError)

    def __init__(self, device: Counting) -> None:
        self.device = device

    def step(self, direction: str, g: Geometry, a: Array, b: Array, out: Array) -> Launch:
        return self.device.counted(f"convolution, {direction}", [a, b, out])


class Counted(CuDNN):
    """The GPU kernels on a device that counts."""

    device: Counting

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype, Counting)

    @cached_property
    def plans(self) -> Any:
        return Planned(self.device)


def counted(graph: Graph, batch: int, dtype: str) -> tuple[Model, list[Moved]]:
    """One step of training from bytes, with SGD."""
    kernels = Counted(dtype)
    model = Model(graph, batch, kernels)
    sgd = Sgd(MOMENTUM, weight_decay=DECAY).start(model.layout, model.flat, kernels)
    image = graph.shapes["images"]
    channels = np.ones(image[-1], np.float32)
    model.loss_and_gradient(Bytes(np.empty((batch, *image), np.uint8), None, channels, channels, 0),
                            np.zeros(batch, np.int32))
    sgd.update(model.flat, model.flat_gradient, LR)
    return model, kernels.device.moved


def total(moved: Iterable[Moved]) -> int:
    return sum(each.read + each.written for each in moved)


def bytes_moved(graph: Graph, batch: int, dtype: str) -> int:
    """By a step on images that are on the GPU already."""
    return total(each for each in counted(graph, batch, dtype)[1] if each.kernel not in FROM_HOST)


def kinds(model: Model) -> dict[int, str]:
    """What memory is for, by its id."""
    activations = model.plan(model.batch).activations
    named = {"activations": activations.values.values(), "their gradients": activations.memory.lent.values(),
             "weights": [model.flat], "their gradient": [model.flat_gradient]}
    return {id(whole(array)): kind for kind, arrays in named.items() for array in arrays}


def whole(array: Array) -> Array:
    """The memory that an array is part of."""
    return array if array.base is None else array.base


def table(model: Model, moved: list[Moved], rate: float) -> str:
    """By kernel and by what memory is for, largest first; `rate`: bytes a second."""
    known, reads, writes = kinds(model), Counter[str](), Counter[str]()
    launches: dict[str, set[int]] = {}
    by_kernel = Counter[str]()
    for each in moved:
        launches.setdefault(each.kernel, set()).add(each.launch)
        by_kernel[each.kernel] += each.read + each.written
        kind = known.get(id(whole(each.array)), "copies of weights, sums, the rest")
        reads[kind] += each.read
        writes[kind] += each.written
    text = [f"{'kernel':34}{'launches':>9}{'GB':>9}{'ms':>8}"]
    text += [f"{name:34}{len(launches[name]):9}{size / 1e9:9.3f}{1e3 * size / rate:8.3f}"
             for name, size in by_kernel.most_common()]
    text += ["", f"{'memory':34}{'GB read':>9}{'written':>9}"]
    text += [f"{kind:34}{reads[kind] / 1e9:9.3f}{writes[kind] / 1e9:9.3f}"
             for kind, _ in (reads + writes).most_common()]
    text += ["", f"{total(moved) / 1e9:.3f} GB in {sum(map(len, launches.values()))} launches: "
                 f"{1e3 * total(moved) / rate:.2f} ms at {rate / TERA:.2f} TB/s"]
    return "\n".join(text)


@click.command()
@click.option("--net", default="resnet50", show_default=True)
@click.option("--batch", default=256, show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--rate", default=3.0, show_default=True, help="TB/s of the memory, for the column of milliseconds.")
def main(net: str, batch: int, dtype: str, rate: float) -> None:
    """Count the bytes that a training step on images of 224 x 224 moves, by kernel and by what memory is for."""
    model, moved = counted(models.graph(net, 1000, (224, 224, 3)), batch, dtype)
    click.echo(table(model, moved, rate * TERA))


if __name__ == "__main__":
    main()
