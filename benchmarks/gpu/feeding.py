"""How many images a second the host can feed a GPU: `python -m benchmarks.gpu.feeding`; no GPU needed.

One rank's loop (reading batches from an HDF5 file, transferring them, ResNet-50's passes, the update) on a device that
computes nothing but takes a given time per step, as a GPU does, while the host continues. The difference from the
device's own rate is the host's cost. Copies to the device are free here.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np

from benchmarks.shared import provenance
from benchmarks.shared.contest import quartiles, summary
from dsgd_mpi.arrays.flat import Array, Shape
from dsgd_mpi.data import Batches, Split
from dsgd_mpi.kernels.gpu.cudnn import CuDNN
from dsgd_mpi.kernels.gpu.device import Dim, Format, Launch, PageLocked, Staging
from dsgd_mpi.net.mpi.host import MpiHost
from dsgd_mpi.nn import resnet
from dsgd_mpi.optim.sgd import Sgd

IMAGE, BATCH, IMAGES = (224, 224, 3), 64, 2560              # more than is kept in memory: read from the file
STEPS = 50                                  # in one sample


class Idle:
    """`Device` that takes `step_s` for a recording that contains a loss, and computes nothing."""

    processors = 132

    def __init__(self, given: Format) -> None:
        self.step_s, self.until = 0.0, 0.0
        self.recorded: list[str] | None = None
        self.staging = Staging(self.page_locked, lambda values, into: lambda: None)
        self.put = self.staging.put

    def zeros(self, shape: Shape, dtype: Any) -> Array:
        return np.zeros(shape, dtype)

    def empty(self, shape: Shape, dtype: Any) -> Array:
        return np.empty(shape, dtype)       # never touched, so it takes no memory

    def spare_bytes(self) -> int:
        return 1 << 37

    def page_locked(self, shape: Shape) -> PageLocked:
        return np.zeros(shape, np.uint8).view(PageLocked)

    def get(self, x: Array) -> Array:
        time.sleep(max(0.0, self.until - time.perf_counter()))
        return np.zeros(x.shape, x.dtype)

    def kernel(self, name: str, vec: int, grid: Dim, block: Dim, *arguments: Any) -> Launch:
        def launch() -> None:
            if self.recorded is not None:
                self.recorded.append(name)
        return launch

    def begin(self) -> None:
        self.recorded = []

    def end(self) -> Launch:
        whole_step = "cross_entropy" in (self.recorded or [])
        self.recorded = None

        def replay() -> None:
            self.until = max(self.until, time.perf_counter()) + (self.step_s if whole_step else 0.0)
        return replay

    def mark(self) -> Callable[[], bool]:
        until = self.until
        return lambda: time.perf_counter() >= until


def stored(path: Path) -> h5py.File:
    """A file of random images, one chunk each."""
    draw = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        images = file.create_dataset("images", (IMAGES, *IMAGE), "u1", chunks=(1, *IMAGE))
        for start in range(0, IMAGES, BATCH):
            images[start : start + BATCH] = draw.integers(0, 256, (BATCH, *IMAGE))
    return h5py.File(path, "r")


@click.command()
@click.option("--milliseconds", default="0,5,10,20", show_default=True, help="Time that the device takes for a step.")
@click.option("--rounds", default=7, show_default=True, help=f"Samples, of {STEPS} steps each.")
@provenance.saving
def main(milliseconds: str, rounds: int, save: bool) -> None:
    """Time the loop for devices of several speeds, which take turns."""
    kernels, host = CuDNN("bfloat16", device=Idle), MpiHost()
    model = resnet("resnet50", 1000, IMAGE, BATCH, kernels)
    sgd = Sgd().start(model.layout, model.flat, kernels)
    seconds: dict[str, list[float]] = {each: [] for each in milliseconds.split(",")}
    with tempfile.TemporaryDirectory() as folder, stored(Path(folder) / "images.h5") as file:
        split = Split(file["images"], np.zeros(IMAGES), np.full(3, 0.5), np.full(3, 0.25))
        with closing(Batches(split, BATCH, byte_memory=kernels.byte_memory).stream()) as batches:
            for _ in range(rounds + 1):     # the first warms up
                for each, samples in seconds.items():
                    kernels.device.step_s = 1e-3 * float(each)
                    start = time.perf_counter()
                    for images, labels in (next(batches) for _ in range(STEPS)):
                        model.loss_and_gradient(images, labels, between=host.progress)
                        sgd.update(model.flat, model.flat_gradient, 0.1)
                    samples.append((time.perf_counter() - start) / STEPS)
    for each, samples in seconds.items():
        del samples[0]
        click.echo(f"device of {each:>4} ms a step: {quartiles(samples, width=5, unit=' ms')}, "
                   f"{BATCH / summary(samples)[0]:,.0f} images/s")
    if save:
        provenance.save(f"feeding-resnet50-{BATCH}", {"batch": BATCH, "image": IMAGE, "seconds": seconds})
    host.close()


if __name__ == "__main__":
    main()
