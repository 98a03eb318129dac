"""How many images a second the host can feed a GPU: `python -m benchmarks.gpu.feeding`; no GPU needed.

One rank's loop (reading batches from an HDF5 file, transferring them, ResNet-50's passes, the update) on a device that
computes nothing but takes a given time per step, as a GPU does, while the host continues; copies take the time of their
bytes, in order with the kernels or, if they are sent, beside them. The difference from the device's own rate is what
the device waits for: the host, and copies that nothing hides.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np

from benchmarks.shared import provenance
from benchmarks.shared.contest import quartiles, summary
from dsgd_mpi.arrays.flat import Array, Shape
from dsgd_mpi.data import Batches, Split
from dsgd_mpi.kernels.api import Known, Later
from dsgd_mpi.kernels.gpu.cudnn import CuDNN
from dsgd_mpi.kernels.gpu.device import Dim, Format, Launch, PageLocked, Staging, Wait
from dsgd_mpi.net.mpi.host import MpiHost
from dsgd_mpi.nn import resnet
from dsgd_mpi.optim.sgd import Sgd

IMAGE, BATCH, IMAGES = (224, 224, 3), 64, 2560              # more than is kept in memory: read from the file
STEPS = 50                                  # in one sample
COPIED = 25e9                               # bytes a second, from page-locked memory over 16 lanes of PCI Express 4


class Idle:
    """`Device` that takes `step_s` for a recording that contains a loss, and computes nothing.

    Its two streams are the times at which what has been enqueued there will be done: `until` the kernels, `sent_until`
    what is sent, which waits for what was `read` at `read_until`.
    """

    processors = 132

    def __init__(self, given: Format) -> None:
        self.step_s = self.until = self.sent_until = self.read_until = 0.0
        self.recorded: list[str] | None = None
        self.staging, self.sending = (Staging(self.page_locked, copied) for copied in (self.copied, self.copied_beside))
        self.put = self.staging.put

    def zeros(self, shape: Shape, dtype: Any) -> Array:
        return np.zeros(shape, dtype)

    def empty(self, shape: Shape, dtype: Any) -> Array:
        return np.empty(shape, dtype)       # never touched, so it takes no memory

    def spare_bytes(self) -> int:
        return 1 << 37

    def page_locked(self, shape: Shape) -> PageLocked:
        return np.zeros(shape, np.uint8).view(PageLocked)

    def copied(self, values: Array, into: Array) -> Wait:
        self.until = max(self.until, time.perf_counter()) + values.nbytes / COPIED
        return partial(sleep_until, self.until)

    def copied_beside(self, values: Array, into: Array) -> Wait:
        self.sent_until = max(self.sent_until, self.read_until, time.perf_counter()) + values.nbytes / COPIED
        return partial(sleep_until, self.sent_until)

    def send(self, copies: list[tuple[Array, Array]]) -> float:
        for values, into in copies:
            self.sending.put(values, into)
        return self.sent_until

    def read(self, sent: float, reader: Launch) -> None:
        self.until = max(self.until, sent)
        reader()
        self.read_until = self.until

    def get(self, x: Array) -> Array:
        sleep_until(self.until)
        return np.zeros(x.shape, x.dtype)

    def fetch(self, x: Array, into: Array) -> None:
        into[...] = 0

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


def sleep_until(end: float) -> None:
    time.sleep(max(0.0, end - time.perf_counter()))


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
            def sent(batch: tuple[Array, Array]) -> tuple[Any, Array]:
                return kernels.send(batch[0]), batch[1]

            upcoming = sent(next(batches))
            for _ in range(rounds + 1):     # the first warms up
                for each, samples in seconds.items():
                    kernels.device.step_s = 1e-3 * float(each)
                    start = time.perf_counter()
                    loss: Later = Known(0.0)
                    for _ in range(STEPS):  # as in `dsgd_mpi.training.loop`
                        images, labels = upcoming
                        before, loss = loss, model.begin(images, labels)
                        before.wait(host.progress)
                        upcoming = sent(next(batches))
                        sgd.update(model.flat, model.flat_gradient, 0.1)
                    loss.wait(host.progress)
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
