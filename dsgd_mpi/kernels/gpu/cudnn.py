"""The kernels on an NVIDIA GPU: convolutions by cuDNN, the rest by our own CUDA kernels; float32, bfloat16 or float16.

Everything but the copies of images is enqueued on one stream, in order, and only `get` and `Later.wait` wait. Each
operation is bound once to its arrays; forward and backward pass are recorded as CUDA graphs and replayed, the update as
another. Sums are taken in a fixed order, so that results are reproducible to the bit. With float16 the loss is scaled
so that small gradients survive (Micikevicius et al. 2018, arXiv:1710.03740): a step whose gradient overflows is skipped
and the scale halved, all on the device; what leaves the kernels is not scaled.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dsgd_mpi.arrays.flat import Array, Buckets, Shape
from dsgd_mpi.arrays.half import widen
from dsgd_mpi.kernels import api
from dsgd_mpi.kernels.api import STATISTICS_RATE, Arrays, Between, Bytes, Kernels, Later, Loss, Rule, Step, Tensor, Work
from dsgd_mpi.kernels.gpu.convolve import Convolution, FoldedConvolution, Linear
from dsgd_mpi.kernels.gpu.device import Device, Format, Launch, Vec, width
from dsgd_mpi.kernels.gpu.tools import Tools, i32, run

SHARE_UNITS = np.float64(2**24)             # of a mixed label's share, in loss.cu too


class CuDNN(Tools, Kernels):
    """GPU kernels in float32 ("tf32": rounded to 11 bits before they are multiplied), bfloat16 or float16.

    `device` makes the device, by default a Gpu: the one that is current when the first array is made. For one thread.
    """

    name = "cudnn"
    takes_term = (api.BatchNorm, api.MaxPool)

    def __init__(self, dtype: str = "float32", device: Callable[[Format], Device] | None = None) -> None:
        super().__init__(dtype, device)

    @cached_property
    def rate(self) -> Array:
        """On the device: the learning rate of the next update."""
        return self.zeros(1)

    @property
    def state(self) -> dict[str, Array]:
        return {"loss_scaling": self.scaling} if self.dtype == "float16" else {}

    def set_threads(self, threads: int) -> None:
        pass                                # of the CPU alone

    def zeros(self, size: int) -> Array:
        return self.device.zeros((size,), np.float32)

    def empty(self, shape: Shape) -> Array:
        return self.device.empty(shape, self.storage)

    def byte_memory(self, shape: Shape) -> Array:
        return self.device.page_locked(shape)

    def image_channels(self, channels: int) -> int:
        return self.padded(channels)

    def spare_bytes(self) -> int:
        return self.device.spare_bytes()

    def program(self, work: Work) -> Work:
        return Recorded(self.device, work)

    def send(self, images: Array | Bytes) -> Any:
        return self.sent("ahead", images) if isinstance(images, Bytes) else images

    def put(self, values: Array | Bytes | Sent, into: Array) -> None:
        if isinstance(values, Bytes):
            values = self.sent("put", values)    # not where a batch may be that was sent ahead
        if isinstance(values, Sent):
            return self.put_sent(values, into)
        channels, kept = self.image_shapes(values, into)
        values = np.asarray(values, np.float32)
        if self.storage == np.float32 and channels == kept:
            return self.device.put(values, into)
        return self.each("narrowed", into.size, self.vec(kept), self.staged("images", values), into,
                         np.uint32(into.size // kept), i32(channels), i32(kept))()

    def image_shapes(self, values: Array, into: Array) -> tuple[int, int]:
        """The channels of images, and those of the array that they are put into."""
        (*size, channels), (*room, kept) = values.shape, into.shape
        assert size == room, (values.shape, into.shape)
        assert kept in (channels, self.image_channels(channels)), (values.shape, into.shape)
        return channels, kept

    def sent(self, name: str, values: Bytes) -> Sent:
        per_channel = np.stack([values.scale, values.shift]).astype(np.float32)
        images, numbers = self.room(f"images {name}", values.images), self.room(f"per channel {name}", per_channel)
        copies, places = [(values.images, images), (per_channel, numbers)], None
        if values.places is not None:
            places = self.room(f"places {name}", values.places)
            copies.append((values.places, places))
        return Sent(images, numbers, places, values.pad, self.device.send(copies))

    def put_sent(self, values: Sent, into: Array) -> None:
        channels, kept = self.image_shapes(values.images, into)
        self.device.read(values.arrival, self.each(
            "images_in", into.size, self.vec(kept), values.images, values.places, values.numbers[0], values.numbers[1],
            into, *map(i32, (*into.shape[:-1], channels, kept, values.pad))))

    def get(self, x: Array) -> Array:
        found = self.device.get(x)
        return widen(found, "bfloat16") if self.dtype == "bfloat16" else found.astype(np.float32)

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


@dataclass
class Sent:
    """`Bytes` on the device, or on their way."""

    images: Array
    numbers: Array                          # float32 (2, C): scale, shift
    places: Array
    pad: int
    arrival: Any                            # for `Device.read`

    def __len__(self) -> int:
        return len(self.images)


class Recorded:
    """Work that is run directly once (which compiles and loads everything), and then replayed as CUDA graphs.

    If finished parts of the gradient are to be announced, it is recorded in pieces, one for each part.
    """

    def __init__(self, device: Device, work: Work) -> None:
        self.device, self.work = device, work
        self.done_once = False
        self.pieces: dict[int | None, list[tuple[Launch, slice | None]]] = {}     # by the least size of a part

    def __call__(self, ready: Buckets | None, between: Between | None) -> None:
        if self.done_once:
            for replay, part in self.recorded(ready.least if ready else None):
                replay()
                if ready and part:
                    ready(part)
        else:
            self.work(ready, None)
            self.done_once = True

    def recorded(self, least: int | None) -> list[tuple[Launch, slice | None]]:
        if least not in self.pieces:
            self.pieces[least] = self.record(least)
        return self.pieces[least]

    def record(self, least: int | None) -> list[tuple[Launch, slice | None]]:
        pieces: list[tuple[Launch, slice | None]] = []
        front: slice | None = None

        def cut(part: slice) -> None:
            nonlocal front
            if part.start:
                pieces.append((self.device.end(), part))
                self.device.begin()
            else:                           # its piece ends with the work
                front = part

        self.device.begin()
        try:
            self.work(None if least is None else Buckets(least, cut), None)
        finally:
            last = self.device.end()
        return [*pieces, (last, front)]


class Update:
    """An optimizer's step: one CUDA graph, as long as the vectors are the same as last time.

    The rate is read from the device, so that one recording serves all steps. With float16 a step whose gradient has
    overflowed changes only the scale of the loss. `launches(x, g)`: the step's kernels, bound to vectors; whatever else
    they need is on the device too, and they do not change it if `scaling` reports an overflow.
    """

    def __init__(self, k: CuDNN, launches: Callable[[Array, Array], list[Launch]]) -> None:
        self.k, self.launches = k, launches
        self.x: Array = None                # of the last step, the arrays themselves: a reference keeps their memory
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
        return Recorded(k.device, lambda ready, between: run(steps))    # no cycle: it would keep the vectors


def decayed_by(rule: Rule) -> Array:
    """Which of the trained parameters decay; None for all."""
    return rule.weights if rule.options()["decay"] == "weights" else None


class Simple:
    """One kernel forward and, if there is a gradient, one backward."""

    def __init__(self, forward: Launch, backward: Launch | bool) -> None:
        self.forward_step, self.backward_steps = forward, [backward] if callable(backward) else []

    def forward(self, training: bool) -> None:
        self.forward_step()

    def backward(self) -> None:
        run(self.backward_steps)


class Subsample(Simple):
    def __init__(self, k: Tools, operation: api.Subsample, arrays: Arrays) -> None:
        x, y = arrays.x, arrays.y
        (*sizes, channels), (_, *after) = x.value.shape, y.value.shape
        numbers = tuple(map(i32, (*sizes, channels, *after, (after[-1] - channels) // 2)))
        super().__init__(
            k.each("subsample", y.value.size, 1, x.value, y.value, *numbers),
            x.grad is not None and k.each("subsample_gradient", x.grad.size, 1, y.grad, x.grad, *numbers))


class MaxPool(Simple):
    def __init__(self, k: Tools, operation: api.MaxPool, arrays: Arrays) -> None:
        x, y, vec = arrays.x, arrays.y, k.vec(arrays.x.value.shape[-1])
        winner = None if y.grad is None else k.own(y.value.shape, np.uint8)
        numbers = tuple(map(i32, (*x.value.shape, *y.value.shape[1:3], operation.window, operation.stride,
                                  operation.pad)))
        super().__init__(
            k.lines("max_pool", y.value, vec, x.value, y.value, winner, *numbers),
            x.grad is not None and k.lines("max_pool_gradient", x.grad, vec, y.grad, arrays.term, winner, x.grad,
                                           *numbers))


class AveragePool(Simple):
    def __init__(self, k: Tools, operation: api.AveragePool, arrays: Arrays) -> None:
        x, y = arrays.x, arrays.y
        n, height, width, channels = x.value.shape
        vec, numbers = k.vec(channels), tuple(map(i32, (n, height * width, channels)))
        super().__init__(
            k.each("average_pool", y.value.size, vec, x.value, y.value, *numbers),
            x.grad is not None and k.each("average_pool_gradient", x.grad.size, vec, y.grad, x.grad, *numbers))


class BatchNorm:
    """Two passes over x forward, two over x and dy backward; the gradient of `add` is what the ReLU passes of dy.

    `vec`: which build of the kernels to use, by default the fastest for these sizes.
    """

    def __init__(self, k: Tools, operation: api.BatchNorm, arrays: Arrays, vec: Vec | None = None) -> None:
        x, (gamma, beta, mean, var), y = arrays.x, arrays.weights, arrays.y
        self.k, self.x, self.y, self.gamma, self.beta, self.mean, self.var = k, x, y, gamma, beta, mean, var
        self.relu, self.add = operation.relu, arrays.add
        channels = gamma.value.size
        rows = x.value.size // channels
        self.numbers = i32(rows), i32(channels)
        self.vec = vec or self.fastest(operation, arrays, rows, channels)
        self.grid, self.block = k.rows(rows, channels, self.vec)
        self.partial = k.scratch("sums", 4 * 2 * self.grid[1] * channels).view(np.float32)
        self.arrived = k.device.zeros((self.grid[0],), np.uint32)       # blocks so far, per group of channels
        self.centre, self.inverse, self.scale, self.offset, self.slope = (
            k.own((channels,), np.float32) for _ in range(5))
        self.term = arrays.term
        self.signs = None                   # of y, unless the backward pass can compute them from x
        if self.add and self.relu and y.grad is not None:
            self.signs = k.own((y.value.size // width(self.vec),), np.uint8)
        self.inference_steps = [k.each("batch_norm_running", channels, 1, gamma.value, mean.value, var.value,
                                       self.centre, self.scale, i32(channels)), self.apply(None)]
        self.training_steps = [*self.statistics(), self.apply(self.signs)] if mean.grad is not None else []
        self.backward_steps = self.gradients() if y.grad is not None else []

    def fastest(self, operation: api.BatchNorm, arrays: Arrays, rows: int, channels: int) -> Vec:
        """The build that takes least for a forward and a backward pass; their results do not matter yet."""
        def passes(vec: Vec) -> Launch:
            tried = BatchNorm(self.k, operation, arrays, vec)
            return lambda: run([*tried.training_steps, *tried.backward_steps])

        builds = self.k.row_builds(channels)
        if arrays.y.grad is None:           # for inference
            return builds[0]
        words = "relu" * self.relu, "add" * bool(self.add), "term" * (arrays.term is not None)
        key = "-".join(map(str, ("batch_norm", self.k.dtype, rows, channels, *filter(None, words))))
        return self.k.chosen(key, builds, passes)

    def forward(self, training: bool) -> None:
        run(self.training_steps if training else self.inference_steps)

    def backward(self) -> None:
        run(self.backward_steps)

    def over_rows(self, name: str, *arguments: Any) -> Launch:
        return self.k.device.kernel(name, self.vec, self.grid, self.block, *arguments)

    def apply(self, signs: Array | None) -> Launch:
        return self.k.affine(self.x.value, self.centre, self.scale, self.beta.value, self.add and self.add.value,
                             self.y.value, self.relu, signs, self.vec)

    def statistics(self) -> list[Launch]:
        return [self.over_rows("batch_norm_statistics", self.x.value, self.gamma.value, self.mean.value, self.var.value,
                               self.mean.grad, self.var.grad, self.centre, self.inverse, self.scale, self.partial,
                               self.arrived, *self.numbers)]

    def gradients(self) -> list[Launch]:
        per_channel = self.centre, self.scale, self.beta.value
        kept = self.y.grad if self.term is not None else None       # dy as the ReLU passes it, for the second pass
        if self.add:
            kept = self.add.grad
        steps = [self.over_rows("batch_norm_gradient_statistics", self.y.grad, self.term, self.x.value, self.signs,
                                *per_channel, self.inverse, self.k.scaling, kept, self.gamma.grad, self.beta.grad,
                                self.offset, self.slope, self.partial, self.arrived, *self.numbers, i32(self.relu))]
        if self.x.grad is not None:
            dy, relu = (self.y.grad, self.relu) if kept is None else (kept, False)
            steps.append(self.over_rows("batch_norm_gradient", dy, self.x.value, *per_channel, self.offset, self.slope,
                                        self.x.grad, *self.numbers, i32(relu)))
        return steps


class CrossEntropy:
    """The loss of each image by a block of threads, then their mean."""

    def __init__(self, k: Tools, logits: Tensor, smoothing: float) -> None:
        self.k = k
        self.under_way: deque[Fetched] = deque()    # the last two: who drops one leaves its copy the memory it needs
        batch, self.classes = logits.value.shape
        self.labels = k.device.empty((3, batch), np.int32)      # of each image two, and the share of the first
        self.mean = k.device.empty((1,), np.float32)
        losses = k.device.empty((batch,), np.float32)
        self.steps = [k.device.kernel("cross_entropy", 1, (batch,), (128,), logits.value, self.labels, k.scaling,
                                      logits.grad, losses, i32(self.classes), np.float32(smoothing)),
                      k.device.kernel("mean_loss", 1, (1,), (128,), losses, self.mean, i32(batch))]

    def put(self, labels: Array | api.Mixed) -> None:
        mixed = labels if isinstance(labels, api.Mixed) else api.Mixed(labels, labels, np.ones(len(labels), np.float32))
        both = np.stack([mixed.labels, mixed.others])
        if not 0 <= both.min() <= both.max() < self.classes:
            raise IndexError(f"labels from {both.min()} to {both.max()}, but there are {self.classes} classes")
        packed = np.concatenate([both, np.rint(SHARE_UNITS * mixed.share)[None]]).astype(np.int32)
        self.k.device.put(packed, self.labels)

    def forward(self) -> None:
        run(self.steps)

    def get(self) -> float:
        return float(self.k.device.get(self.mean)[0])

    def later(self) -> Later:
        self.under_way.append(Fetched(self.k.device, self.mean))
        if len(self.under_way) > 2:
            self.under_way.popleft().wait()
        return self.under_way[-1]


class Fetched:
    """`Later`: a number on its way to page-locked memory, which must live until it has arrived."""

    def __init__(self, device: Device, x: Array) -> None:
        self.memory = device.page_locked((x.nbytes,))
        device.fetch(x, self.memory.view(x.dtype))
        self.done, self.dtype = device.mark(), x.dtype

    def wait(self, between: Between | None = None) -> float:
        while not self.done():
            if between:
                between()
            time.sleep(0)                   # releases the GIL, for the thread that makes batches
        return float(self.memory.view(self.dtype)[0])


CuDNN.operations = {
    api.Convolution: Convolution, api.BatchNorm: BatchNorm, api.FoldedConvolution: FoldedConvolution,
    api.Subsample: Subsample, api.MaxPool: MaxPool, api.AveragePool: AveragePool, api.Linear: Linear}
