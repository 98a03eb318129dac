"""The kernels on an NVIDIA GPU: convolutions by cuDNN, the rest by our own CUDA kernels; float32, bfloat16 or float16.

Everything is enqueued on one stream, in order, and only `get` waits. Each operation is bound once to its arrays;
forward and backward pass are recorded as CUDA graphs and replayed, the update as another. Sums are taken in a fixed
order: the same numbers give the same to the bit. float16 has its loss scaled so that small gradients survive
(Micikevicius et al. 2018, arXiv:1710.03740): a step whose gradient overflows is left out and the scale halved, all on
the device; what leaves the kernels is not scaled.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from dsgd_mpi.arrays.flat import Array, Shape
from dsgd_mpi.arrays.half import widen
from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.api import (
    STATISTICS_RATE,
    Between,
    Bytes,
    Folded,
    Loss,
    Operation,
    Ready,
    Rule,
    Step,
    Tensor,
    Work,
)
from dsgd_mpi.kernels.gpu import device as devices
from dsgd_mpi.kernels.gpu.convolve import Convolution, FoldedConvolution, i32, run
from dsgd_mpi.kernels.gpu.device import Device, Format, Gpu, Launch
from dsgd_mpi.kernels.gpu.plans import Geometry, Plans

FORMATS = {"float32": Format(np.float32, 32, 0), "tf32": Format(np.float32, 32, 0),
           "bfloat16": Format(np.uint16, 16, 1), "float16": Format(np.float16, 16, 0)}
THREADS = 256                               # of a block
CHANNELS_A_THREAD, ROWS_A_THREAD = 4, 8     # of kernels over rows: the first where it divides, the second at least
ROW_THREADS, BLOCKS_A_PROCESSOR = 512, 2    # THREADS and RESIDENT of cuda/batch_norm.cu: so many run at a time
FIRST_SCALE = 65536.0                       # of the loss, with float16
RECORDED_BYTES = 4_000_000                  # of gradient, before what is listened to is handed out
log = logging.getLogger("dsgd_mpi")


class CuDNN:
    """GPU kernels in float32 ("tf32": rounded to 11 bits before they are multiplied), bfloat16 or float16.

    `device`: of Gpu's kind; that is CuPy's current one when the first array is asked for. For one thread.
    """

    name = "cudnn"

    def __init__(self, dtype: str = "float32", device: Callable[[Format], Device] | None = None) -> None:
        if dtype not in FORMATS:
            raise UsageError(f"the GPU's kernels know no {dtype}; use one of {', '.join(FORMATS)}")
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
        """On the device: the loss' scale, its inverse, whether there was an overflow, steps since the last."""
        scale = FIRST_SCALE if self.dtype == "float16" else 1.0
        scaling = self.device.empty((4,), np.float32)
        self.device.put(np.array([scale, 1 / scale, 0, 0], np.float32), scaling)
        return scaling

    @cached_property
    def rate(self) -> Array:
        """On the device: the learning rate of the next update."""
        return self.zeros(1)

    @property
    def state(self) -> dict[str, Array]:
        return {"loss_scaling": self.scaling} if self.dtype == "float16" else {}

    @cached_property
    def plans(self) -> Plans | None:
        """cuDNN's, where it is there."""
        if not isinstance(self.device, Gpu):
            return None
        try:
            exact = self.kind == "float32"
            return Plans(self.device, self.dtype, exact, lambda size: self.scratch("workspace", size))
        except (ImportError, OSError, RuntimeError) as reason:
            log.warning("cuDNN cannot be used (%s); our own convolutions serve, which are slower. "
                        "pip install nvidia-cudnn-cu13 nvidia-cudnn-frontend (or -cu12)", reason)
            return None

    def set_threads(self, threads: int) -> None:
        pass                                # the GPU's are its own

    def zeros(self, size: int) -> Array:
        return self.device.zeros((size,), np.float32)

    def empty(self, shape: Shape) -> Array:
        return self.device.empty(shape, self.storage)

    def byte_memory(self, shape: Shape) -> Array:
        return self.device.page_locked(shape)

    def spare_bytes(self) -> int:
        return self.device.spare_bytes()

    def program(self, work: Work) -> Work:
        return Recorded(self.device, work)

    def put(self, host: Array | Bytes, into: Array) -> None:
        if isinstance(host, Bytes):
            return self.put_bytes(host, into)
        assert host.shape == into.shape, (host.shape, into.shape)
        host = np.asarray(host, np.float32)
        if self.storage == np.float32:
            return self.device.put(host, into)
        return self.each("narrowed", host.size, 1, self.staged("images", host), into, np.uint32(host.size))()

    def put_bytes(self, host: Bytes, into: Array) -> None:
        assert host.images.shape == into.shape, (host.images.shape, into.shape)
        places, per_channel = host.places, np.stack([host.scale, host.shift]).astype(np.float32)
        images = self.staged("images", host.images)
        numbers = self.staged("per channel", per_channel)
        self.each("images_in", into.size, 1, images, None if places is None else self.staged("places", places),
                  numbers[0], numbers[1], into, *map(i32, (*into.shape, host.pad)))()

    def staged(self, name: str, host: Array) -> Array:
        """A copy on the device, until the next of that name."""
        copy = self.scratch(name, host.nbytes).view(host.dtype).reshape(host.shape)
        self.device.put(host, copy)
        return copy

    def get(self, x: Array) -> Array:
        found = self.device.get(x)
        return widen(found, "bfloat16") if self.dtype == "bfloat16" else found.astype(np.float32)

    def convolution(self, x: Tensor, w: Tensor, y: Tensor, stride: int, pad: int) -> Operation:
        return Convolution(self, x, w, y, stride, pad)

    def batch_norm(self, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, y: Tensor,
                   relu: bool, add: Tensor | None = None) -> Operation:
        return BatchNorm(self, x, gamma, beta, mean, var, y, relu, add)

    def folded_convolution(self, x: Tensor, w: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor,
                           y: Tensor, stride: int, pad: int, relu: bool, add: Tensor | None = None) -> Folded:
        return FoldedConvolution(self, x, w, gamma, beta, mean, var, y, stride, pad, relu, add)

    def subsample(self, x: Tensor, y: Tensor) -> Operation:
        (*sizes, channels), (_, *after) = x.value.shape, y.value.shape
        numbers = tuple(map(i32, (*sizes, channels, *after, (after[-1] - channels) // 2)))
        return Simple(
            self.each("subsample", y.value.size, 1, x.value, y.value, *numbers),
            x.grad is not None and self.each("subsample_gradient", x.grad.size, 1, y.grad, x.grad, *numbers))

    def max_pool(self, x: Tensor, y: Tensor, window: int, stride: int, pad: int) -> Operation:
        vec = self.vec(x.value.shape[-1])
        winner = None if y.grad is None else self.own(y.value.shape, np.uint8)
        numbers = tuple(map(i32, (*x.value.shape, *y.value.shape[1:3], window, stride, pad)))
        return Simple(
            self.each("max_pool", y.value.size, vec, x.value, y.value, winner, *numbers),
            x.grad is not None and self.each("max_pool_gradient", x.grad.size, vec, y.grad, winner, x.grad, *numbers))

    def average_pool(self, x: Tensor, y: Tensor) -> Operation:
        n, height, width, channels = x.value.shape
        vec, numbers = self.vec(channels), tuple(map(i32, (n, height * width, channels)))
        return Simple(
            self.each("average_pool", y.value.size, vec, x.value, y.value, *numbers),
            x.grad is not None and self.each("average_pool_gradient", x.grad.size, vec, y.grad, x.grad, *numbers))

    def linear(self, x: Tensor, w: Tensor, b: Tensor, y: Tensor) -> Operation:
        """A 1x1 convolution of images of one pixel, the batch."""
        window = Tensor(*(z.reshape(*z.shape, 1, 1) for z in both(w)))
        return Convolution(self, pixel(x), window, pixel(y), 1, 0, bias=b)

    def cross_entropy(self, logits: Tensor, smoothing: float) -> Loss:
        return CrossEntropy(self, logits, smoothing)

    def accumulate(self, total: Array, term: Array) -> None:
        vec = self.vec(total.size)
        self.each("accumulate", total.size, vec, total, term, np.uint32(total.size // vec))()

    @property
    def fused(self) -> Mapping[str, Callable[[Rule], Step]]:
        return {"sgd": self.sgd, "adamw": self.adamw}

    def in_parts(self, count: int, work: Callable[[slice], None]) -> None:
        work(slice(0, count))

    def sgd(self, rule: Rule) -> Step:
        options, v, decayed, f32 = rule.options(), rule.state["v"], decayed_by(rule), np.float32

        def launches(x: Array, g: Array) -> list[Launch]:
            return [self.each("sgd", x.size, 1, x, v, g, np.int64(v.size), np.int64(x.size), self.rate,
                              f32(options["momentum"]), i32(options["nesterov"]), f32(options["weight_decay"]), decayed,
                              f32(STATISTICS_RATE), self.scaling)]
        return Update(self, launches)

    def adamw(self, rule: Rule) -> Step:
        options, m, v, t, decayed = rule.options(), *(rule.state[name] for name in "mvt"), decayed_by(rule)
        beta1, beta2 = options["beta1"], options["beta2"]
        logs = [np.float64(math.log(beta) if beta else -math.inf) for beta in (beta1, beta2)]
        corrections = self.device.zeros((2,), np.float32)
        numbers = [np.float32(number) for number in (beta1, 1 - beta1, beta2, 1 - beta2, options["epsilon"],
                                                     options["weight_decay"])]

        def launches(x: Array, g: Array) -> list[Launch]:
            return [self.device.kernel("adamw_count", 1, (1,), (1,), t, corrections, *logs, self.scaling),
                    self.each("adamw", x.size, 1, x, m, v, g, np.int64(v.size), np.int64(x.size), self.rate,
                              corrections, *numbers, decayed, np.float32(STATISTICS_RATE), self.scaling)]
        return Update(self, launches)

    # What the operations are made of

    def vec(self, size: int) -> int:
        """Elements that are moved at a time: 16 bytes, where `size` divides."""
        most = 128 // self.format.bits
        return most if size % most == 0 else 1

    def padded(self, channels: int) -> int:
        """As many channels as cuDNN's engines for tensor cores want."""
        most = 128 // self.format.bits
        return -(-channels // most) * most if self.plans else channels

    def own(self, shape: Shape, storage: Any) -> Array:
        """Memory of an operation's own, for as long as it lives."""
        array = self.device.empty(shape, storage)
        self.own_bytes += int(array.nbytes)
        return array

    def scratch(self, name: str, size: int) -> Array:
        """At least `size` bytes that any operation may overwrite; it grows, and who has the smaller one keeps that."""
        if name not in self.buffers or self.buffers[name].size < size:
            before = self.buffers[name].size if name in self.buffers else 0
            self.buffers[name] = self.device.empty((max(size, 2 * before),), np.uint8)
        return self.buffers[name][:size]

    def each(self, name: str, count: int, vec: int, *arguments: Any) -> Launch:
        """A kernel with a thread for each of `count` elements, `vec` at a time."""
        assert count < 1 << 32, f"{name}: {count} elements, which do not fit its 32-bit numbers"
        blocks = min(-(-count // (vec * THREADS)), 1 << 16)
        return self.device.kernel(name, vec, (max(1, blocks),), (THREADS,), *arguments)

    def rows(self, rows: int, channels: int) -> tuple[int, tuple[int, int], tuple[int, int]]:
        """vec, grid and block of a kernel over (rows, channels): neighbouring threads take neighbouring channels."""
        vec = 1 if channels % CHANNELS_A_THREAD else CHANNELS_A_THREAD
        groups = channels // vec
        across = min(32, 1 << (groups - 1).bit_length())
        down = ROW_THREADS // across
        chunks = -(-groups // across)
        most = BLOCKS_A_PROCESSOR * self.device.processors // chunks
        slabs = max(1, min(-(-rows // (down * ROWS_A_THREAD)), most))
        return vec, (chunks, slabs), (across, down)

    def affine(self, x: Array, centre: Array | None, scale: Array | None, shift: Array, add: Array | None, y: Array,
               relu: bool) -> Launch:
        """y = scale (x - centre) + shift [+ add] [ReLU], per channel."""
        channels = x.shape[-1]
        rows = x.size // channels
        vec, grid, block = self.rows(rows, channels)
        return self.device.kernel("batch_norm_apply", vec, grid, block, x, centre, scale, shift, add, y, i32(rows),
                                  i32(channels), i32(relu))

    def planned(self, direction: str, g: Geometry, a: Array, b: Array, out: Array) -> Launch | None:
        """cuDNN's convolution, if it can; said once if it cannot."""
        if self.plans is None:
            return None
        try:
            return self.plans.step(direction, g, a, b, out)
        except (self.plans.cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError) as reason:
            if not self.said:
                log.warning("cuDNN has no plan for a convolution (%s, %s: %s); our own serves, which is slower",
                            direction, g, str(reason).splitlines()[0])
            self.said = True
            return None

    said = False


def both(x: Tensor) -> tuple[Array, ...]:
    return (x.value,) if x.grad is None else (x.value, x.grad)


def pixel(x: Tensor) -> Tensor:
    """(N, C) as images of one pixel."""
    return Tensor(*(z.reshape(z.shape[0], 1, 1, z.shape[1]) for z in both(x)))


class Recorded:
    """Work that is done once as it stands (all is compiled and loaded then), and after that replayed as CUDA graphs.

    Where somebody listens for finished stretches it is recorded in pieces, each of some megabytes of gradient.
    """

    def __init__(self, device: Device, work: Work) -> None:
        self.device, self.work = device, work
        self.done_once = False
        self.pieces: dict[bool, list[tuple[Launch, slice | None]]] = {}

    def __call__(self, ready: Ready | None, between: Between | None) -> None:
        if self.done_once:
            for replay, part in self.recorded(ready is not None):
                replay()
                if ready and part:
                    ready(part)
        else:
            self.work(ready, None)
            self.done_once = True
        if between:
            done = self.device.mark()
            while not done():
                between()
                time.sleep(0)               # lets go of Python's lock, for the thread that makes batches

    def recorded(self, listened: bool) -> list[tuple[Launch, slice | None]]:
        if listened not in self.pieces:
            self.pieces[listened] = self.record(listened)
        return self.pieces[listened]

    def record(self, listened: bool) -> list[tuple[Launch, slice | None]]:
        pieces: list[tuple[Launch, slice | None]] = []
        stretch: slice | None = None

        def hear(part: slice) -> None:
            nonlocal stretch
            stretch = slice(part.start, stretch.stop if stretch else part.stop)
            if 4 * (stretch.stop - stretch.start) >= RECORDED_BYTES and stretch.start:      # the last ends below
                pieces.append((self.device.end(), stretch))
                stretch = None
                self.device.begin()

        self.device.begin()
        try:
            self.work(hear if listened else None, None)
        finally:
            last = self.device.end()
        return [*pieces, (last, stretch)]


class Update:
    """An optimizer's step: one CUDA graph, as long as the vectors are the same as last time.

    The rate is read from the device, so that one recording serves all steps. With float16 a step whose gradient has
    overflowed changes nothing but the scale of the loss. `launches(x, g)`: the step's kernels, bound to vectors; what
    else they need lies on the device too, and they leave it alone where `scaling` tells of an overflow.
    """

    def __init__(self, k: CuDNN, launches: Callable[[Array, Array], list[Launch]]) -> None:
        self.k, self.launches = k, launches
        self.x: Array = None                # of the last step, the very arrays: while they live, so is their memory
        self.g: Array = None
        self.program: Recorded | None = None

    def __call__(self, x: Array, g: Array, lr: float) -> None:
        self.k.device.put(np.array([lr], np.float32), self.k.rate)
        if self.program is None or x is not self.x or g is not self.g:
            self.x, self.g, self.program = x, g, self.bound(x, g)
        self.program(None, None)

    def bound(self, x: Array, g: Array) -> Recorded:
        k, steps = self.k, self.launches(x, g)
        if k.dtype == "float16":
            steps = [k.each("find_overflow", x.size, 1, g, np.int64(x.size), k.scaling), *steps,
                     k.device.kernel("adjust_scale", 1, (1,), (1,), k.scaling)]
        return Recorded(k.device, lambda ready, between: run(steps))    # no cycle: it would hold the vectors


def decayed_by(rule: Rule) -> Array:
    """Which of the trained numbers decay; None for all."""
    return rule.weights if rule.options()["decay"] == "weights" else None


class Simple:
    """One kernel forward and, if there is a gradient, one backward."""

    def __init__(self, forward: Launch, backward: Launch | bool) -> None:
        self.forward_step, self.backward_steps = forward, [backward] if callable(backward) else []

    def forward(self, training: bool) -> None:
        self.forward_step()

    def backward(self) -> None:
        run(self.backward_steps)


class BatchNorm:
    """Two passes over x forward, two over x and dy backward; the gradient of `add` is what of dy passes the ReLU."""

    def __init__(self, k: CuDNN, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, y: Tensor,
                 relu: bool, add: Tensor | None) -> None:
        self.k, self.x, self.y, self.gamma, self.beta, self.mean, self.var = k, x, y, gamma, beta, mean, var
        self.relu, self.add = relu, add
        channels = gamma.value.size
        rows = x.value.size // channels
        self.numbers = i32(rows), i32(channels)
        self.vec, self.grid, self.block = k.rows(rows, channels)
        self.partial = k.scratch("sums", 4 * 2 * self.grid[1] * channels).view(np.float32)
        self.arrived = k.device.zeros((self.grid[0],), np.uint32)       # blocks of each group of channels
        self.centre, self.inverse, self.scale, self.offset, self.slope = (
            k.own((channels,), np.float32) for _ in range(5))
        apply = k.affine(x.value, self.centre, self.scale, beta.value, add and add.value, y.value, relu)
        self.inference_steps = [k.each("batch_norm_running", channels, 1, gamma.value, mean.value, var.value,
                                       self.centre, self.scale, i32(channels)), apply]
        self.training_steps = [*self.statistics(), apply] if mean.grad is not None else []
        self.backward_steps = self.gradients() if y.grad is not None else []

    def forward(self, training: bool) -> None:
        run(self.training_steps if training else self.inference_steps)

    def backward(self) -> None:
        run(self.backward_steps)

    def over_rows(self, name: str, *arguments: Any) -> Launch:
        return self.k.device.kernel(name, self.vec, self.grid, self.block, *arguments)

    def statistics(self) -> list[Launch]:
        return [self.over_rows("batch_norm_statistics", self.x.value, self.gamma.value, self.mean.value, self.var.value,
                               self.mean.grad, self.var.grad, self.centre, self.inverse, self.scale, self.partial,
                               self.arrived, *self.numbers)]

    def gradients(self) -> list[Launch]:
        per_channel = self.centre, self.scale, self.beta.value
        dy, y, relu = self.y.grad, None, self.relu
        if self.add:
            dy, y, relu = self.add.grad, self.y.value, False       # the first pass writes it there
        steps = [self.over_rows("batch_norm_gradient_statistics", self.y.grad, self.x.value, y, *per_channel,
                                self.inverse, self.k.scaling, self.add and self.add.grad, self.gamma.grad,
                                self.beta.grad, self.offset, self.slope, self.partial, self.arrived, *self.numbers,
                                i32(self.relu))]
        if self.x.grad is not None:
            steps.append(self.over_rows("batch_norm_gradient", dy, self.x.value, *per_channel, self.offset, self.slope,
                                        self.x.grad, *self.numbers, i32(relu)))
        return steps


class CrossEntropy:
    """The loss of each image by a block of threads, then their mean."""

    def __init__(self, k: CuDNN, logits: Tensor, smoothing: float) -> None:
        self.k = k
        batch, self.classes = logits.value.shape
        self.labels = k.device.empty((batch,), np.int32)
        self.mean = k.device.empty((1,), np.float32)
        losses = k.device.empty((batch,), np.float32)
        self.steps = [k.device.kernel("cross_entropy", 1, (batch,), (128,), logits.value, self.labels, k.scaling,
                                      logits.grad, losses, i32(self.classes), np.float32(smoothing)),
                      k.device.kernel("mean_loss", 1, (1,), (128,), losses, self.mean, i32(batch))]

    def put(self, labels: Array) -> None:
        if not 0 <= labels.min() <= labels.max() < self.classes:
            raise IndexError(f"labels from {labels.min()} to {labels.max()}, but there are {self.classes} classes")
        self.k.device.put(np.asarray(labels, np.int32), self.labels)

    def forward(self) -> None:
        run(self.steps)

    def get(self) -> float:
        return float(self.k.device.get(self.mean)[0])
