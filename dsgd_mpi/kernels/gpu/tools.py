"""Building blocks of the operations on a GPU: memory, launches, cuDNN's plans, the scale of the loss."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np

from dsgd_mpi.arrays.flat import Array, Shape
from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.gpu import device as devices
from dsgd_mpi.kernels.gpu.device import Device, Format, Gpu, Launch, Vec, source, width
from dsgd_mpi.kernels.gpu.plans import Geometry, Plans
from dsgd_mpi.kernels.gpu.tuner import Choices, NothingRuns, fastest

FORMATS = {"float32": Format(np.float32, 32, 0), "tf32": Format(np.float32, 32, 0),
           "bfloat16": Format(np.uint16, 16, 1), "float16": Format(np.float16, 16, 0)}
THREADS = 256                               # per block
MOST_LINES = (1 << 16) - 1                  # of blocks in a grid
CHANNELS_A_THREAD, ROWS_A_THREAD = 4, 8     # of kernels over rows: the first by default, the second at least
ROW_THREADS = 512                           # THREADS of cuda/batch_norm.cu
ROW_BUILDS: dict[int, tuple[Vec, ...]] = {     # by bits, the default first
    16: (CHANNELS_A_THREAD, (4, 6), 8), 32: (CHANNELS_A_THREAD, (4, 1))}
FIRST_SCALE = 65536.0                       # of the loss, with float16
i32 = np.int32
log = logging.getLogger("dsgd_mpi")


class Tools:
    """For activations of `dtype` on `device()`, by default the GPU that is current when the first array is made."""

    said = False                            # whether a missing plan has been logged

    def __init__(self, dtype: str = "float32", device: Callable[[Format], Device] | None = None) -> None:
        if dtype not in FORMATS:
            raise UsageError(f"the GPU kernels do not support {dtype}; use one of {', '.join(FORMATS)}")
        if device is None:
            devices.check()
        self.kind, self.format, self.make_device = dtype, FORMATS[dtype], device or Gpu
        self.dtype, self.storage = "float32" if dtype == "tf32" else dtype, self.format.storage
        self.buffers: dict[str, Array] = {}
        self.own_bytes = 0

    @property
    def held_bytes(self) -> int:
        return self.own_bytes + sum(int(buffer.nbytes) for buffer in self.buffers.values())

    @cached_property
    def device(self) -> Device:
        return self.make_device(self.format)

    @cached_property
    def scaling(self) -> Array:
        """On the device: the loss scale, its inverse, whether there was an overflow, steps since the last."""
        scale = FIRST_SCALE if self.dtype == "float16" else 1.0
        scaling = self.device.empty((4,), np.float32)
        self.device.put(np.array([scale, 1 / scale, 0, 0], np.float32), scaling)
        return scaling

    @cached_property
    def plans(self) -> Plans | None:
        """cuDNN's, if it is available."""
        if not isinstance(self.device, Gpu):
            return None
        try:
            exact = self.kind == "float32"
            return Plans(self.device, self.dtype, exact, lambda size: self.scratch("workspace", size))
        except (ImportError, OSError, RuntimeError) as reason:
            self.device.wait()              # raises if it was not cuDNN that failed, but the device
            log.warning("cuDNN cannot be used (%s); using our own convolutions, which are slower. "
                        "pip install nvidia-cudnn-cu13 nvidia-cudnn-frontend (or -cu12)", reason)
            return None

    def vec(self, size: int) -> int:
        """Elements that are moved at a time: 16 bytes if they divide `size`, else one element."""
        most = 128 // self.format.bits
        return most if size % most == 0 else 1

    def padded(self, channels: int) -> int:
        """Channels rounded up to what cuDNN's tensor core engines need."""
        most = 128 // self.format.bits
        return -(-channels // most) * most if self.plans else channels

    def own(self, shape: Shape, storage: Any) -> Array:
        """Memory private to an operation, for as long as it lives."""
        array = self.device.empty(shape, storage)
        self.own_bytes += int(array.nbytes)
        return array

    def scratch(self, name: str, size: int) -> Array:
        """`size` bytes that any operation may overwrite; when it grows, operations bound to the smaller one keep it."""
        if name not in self.buffers or self.buffers[name].size < size:
            before = self.buffers[name].size if name in self.buffers else 0
            self.buffers[name] = self.device.empty((max(size, 2 * before),), np.uint8)
        return self.buffers[name][:size]

    def staged(self, name: str, values: Array) -> Array:
        """A copy on the device, valid until the next of that name."""
        copy = self.room(name, values)
        self.device.put(values, copy)
        return copy

    def room(self, name: str, values: Array) -> Array:
        """Memory on the device for a copy of `values`, valid until the next of that name."""
        return self.scratch(name, values.nbytes).view(values.dtype).reshape(values.shape)

    def each(self, name: str, count: int, vec: int, *arguments: Any) -> Launch:
        """A kernel with a thread for each of `count` elements, `vec` at a time."""
        assert count < 1 << 32, f"{name}: {count} elements, more than its 32-bit indices can count"
        blocks = min(-(-count // (vec * THREADS)), 1 << 16)
        return self.device.kernel(name, vec, (max(1, blocks),), (THREADS,), *arguments)

    def lines(self, name: str, images: Array, vec: int, *arguments: Any) -> Launch:
        """The same with a line of blocks for each line of pixels, which saves each thread divisions."""
        n, h, w, c = images.shape
        blocks = -(-w * c // (vec * THREADS)), min(n * h, MOST_LINES)
        return self.device.kernel(name, vec, blocks, (THREADS,), *arguments)

    @cached_property
    def choices(self) -> Choices | None:
        """Which builds of our kernels were found fastest; None where there is nothing to time."""
        if not isinstance(self.device, Gpu):
            return None
        return Choices(*self.device.versions, f"kernels{hashlib.sha256(source().encode()).hexdigest()[:12]}")

    def row_builds(self, channels: int) -> list[Vec]:
        """Those of kernels over rows that can be used, the default first."""
        return [vec for vec in ROW_BUILDS[self.format.bits] if channels % width(vec) == 0] or [1]

    def chosen(self, key: str, builds: Sequence[Vec], prepare: Callable[[Vec], Launch]) -> Vec:
        """The build of kernels that the first process to time `prepare(build)` found fastest."""
        if self.choices is None or len(builds) == 1:
            return builds[0]
        before, names = self.own_bytes, {"x".join(map(str, np.ravel(build))): build for build in builds}
        trials = [(name, partial(prepare, build)) for name, build in names.items()]
        try:
            return names[self.choices.choice(key, names.__contains__, lambda: fastest(self.device, trials))]
        except NothingRuns:
            return builds[0]                # which, when it is bound, says what is missing: memory, as a rule
        finally:
            self.own_bytes = before         # what was tried is gone

    def rows(self, rows: int, channels: int, vec: Vec) -> tuple[tuple[int, int], tuple[int, int]]:
        """Grid and block of a kernel over (rows, channels): neighbouring threads take neighbouring channels."""
        groups = channels // width(vec)
        across = min(32, 1 << (groups - 1).bit_length())
        down = ROW_THREADS // across
        chunks = -(-groups // across)
        resident = 1 if width(vec) > 4 else 2           # RESIDENT of cuda/batch_norm.cu
        most = resident * self.device.processors // chunks
        slabs = max(1, min(-(-rows // (down * ROWS_A_THREAD)), most))
        return (chunks, slabs), (across, down)

    def affine(self, x: Array, centre: Array | None, scale: Array | None, shift: Array, add: Array | None, y: Array,
               relu: bool, signs: Array | None = None, vec: Vec | None = None) -> Launch:
        """y = scale (x - centre) + shift [+ add] [ReLU], per channel; `signs`: a byte for each `vec` of elements."""
        channels = x.shape[-1]
        rows, vec = x.size // channels, vec or self.row_builds(channels)[0]
        grid, block = self.rows(rows, channels, vec)
        return self.device.kernel("batch_norm_apply", vec, grid, block, x, centre, scale, shift, add, y, signs,
                                  i32(rows), i32(channels), i32(relu))

    def planned(self, direction: str, g: Geometry, a: Array, b: Array, out: Array) -> Launch | None:
        """cuDNN's convolution; None if it has no plan, which is logged once."""
        if self.plans is None:
            return None
        try:
            return self.plans.step(direction, g, a, b, out)
        except NothingRuns as reason:
            if not self.said:
                log.warning("cuDNN has no plan for a convolution (%s, %s: %s); using our own, which is slower",
                            direction, g, str(reason).splitlines()[0])
            self.said = True
            return None


def run(steps: list[Launch]) -> None:
    for step in steps:
        step()
