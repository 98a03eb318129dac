"""The kernels in NumPy, written to be read: each forward pass is its formula, each backward pass the derivative.

They are the oracle that all other kernels are tested against, and they run on any machine, slowly. `dy` is the gradient
of the loss with respect to `y`, as everywhere in the literature; convolution and pooling visit the taps t = (k, l) of
their window one by one, so that the code for one tap is the formula itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from dsgd_mpi.arrays.flat import Array, Shape
from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels import api
from dsgd_mpi.kernels.api import EPSILON, Arrays, Kernels, Known, Loss, Mixed, Rule, Step, Tensor, Work

BLOCK = 1 << 14                             # elements of each vector of an update, so that all fit in a level 2 cache
PIXELS = (0, 1, 2)                          # the axes of NHWC that batch norm averages over


class Reference(Kernels):
    """NumPy kernels in float32 or float64; other dtypes raise UsageError."""

    name = "reference"
    byte_memory = None
    held_bytes = 0                          # operations allocate memory as they run, and free it

    def __init__(self, dtype: str = "float32") -> None:
        if dtype not in ("float32", "float64"):
            raise UsageError(f"the reference kernels do not support {dtype}; use float32 or float64")
        self.dtype = dtype

    @property
    def state(self) -> dict[str, Array]:
        return {}

    def set_threads(self, threads: int) -> None:
        pass                                # NumPy's BLAS read OPENBLAS_NUM_THREADS when it was loaded

    def zeros(self, size: int) -> Array:
        return np.zeros(size, self.dtype)

    def empty(self, shape: Shape) -> Array:
        return np.empty(shape, self.dtype)

    def spare_bytes(self) -> int:
        return spare_bytes()

    def program(self, work: Work) -> Work:
        return work

    def put(self, values: Array, into: Array) -> None:
        assert values.shape == into.shape, (values.shape, into.shape)
        into[...] = values

    def get(self, x: Array) -> Array:
        return x.copy()

    def cross_entropy(self, logits: Tensor, smoothing: float) -> Loss:
        return CrossEntropy(logits, smoothing)

    def accumulate(self, total: Array, term: Array) -> None:
        total += term

    @property
    def fused(self) -> Mapping[str, Callable[[Rule], Step]]:
        return {}

    def in_parts(self, count: int, work: Callable[[slice], None]) -> None:
        in_blocks(0, count, work)


def in_blocks(start: int, stop: int, work: Callable[[slice], None], block: int = BLOCK) -> None:
    """Calls `work(part)` on one part after another, each small enough to stay in the cache."""
    for first in range(start, stop, block):
        work(slice(first, min(first + block, stop)))


def spare_bytes() -> int:
    """Available main memory."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def framed(x: Array, pad: int, fill: float = 0.0) -> Array:
    """NHWC `x` padded by `pad` pixels of value `fill` on each side."""
    return np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill) if pad else x


def unframed(x: Array, pad: int) -> Array:
    return x[:, pad:-pad, pad:-pad] if pad else x


def taps(window: int, stride: int, y: Array) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Every tap t = (k, l) of a window, row by row, and the index of its inputs in a padded array.

    For output pixel (i, j) that is pixel (i s + k, j s + l).
    """
    def seen(first: int, count: int) -> slice:
        return slice(first, first + stride * (count - 1) + 1, stride)

    for t in range(window * window):
        row, column = divmod(t, window)
        yield t, (slice(None), seen(row, y.shape[1]), seen(column, y.shape[2]))


class Convolution:
    """y[n,i,j,o] = sum x[n, i s + k - p, j s + l - p, c] w[o,c,k,l]."""

    def __init__(self, k: Kernels, operation: api.Convolution, arrays: Arrays) -> None:
        self.x, (self.w,), self.y = arrays.x, arrays.weights, arrays.y
        self.window, self.stride, self.pad = operation.window, operation.stride, operation.pad
        self.by_tap = (*self.w.value.shape[:2], self.window * self.window)
        assert self.y.value.shape[1:] == operation.output(self.x.value.shape[1:])

    def forward(self, training: bool) -> None:
        x, w, y = framed(self.x.value, self.pad), self.w.value.reshape(self.by_tap), self.y.value
        y[...] = 0
        for t, here in taps(self.window, self.stride, y):
            y += pixels(x[here], w[:, :, t].T)

    def backward(self) -> None:
        x, w, dy = framed(self.x.value, self.pad), self.w.value.reshape(self.by_tap), self.y.grad
        dw = np.empty_like(w)
        for t, here in taps(self.window, self.stride, dy):
            dw[:, :, t] = flat(dy).T @ flat(x[here])
        self.w.grad[...] = dw.reshape(self.w.value.shape)
        if self.x.grad is not None:
            dx = np.zeros_like(x)
            for t, here in taps(self.window, self.stride, dy):
                dx[here] += pixels(dy, w[:, :, t])
            self.x.grad[...] = unframed(dx, self.pad)


def flat(x: Array) -> Array:
    """(N, H, W, C) -> (pixels, C)."""
    return x.reshape(-1, x.shape[-1])


def pixels(x: Array, matrix: Array) -> Array:
    """NHWC `x` with every pixel multiplied by `matrix`, as one matrix product: NumPy's batched ones are slow."""
    return (flat(x) @ matrix).reshape(*x.shape[:-1], matrix.shape[1])


class BatchNorm:
    """Batch norm [+ add] [ReLU] (Ioffe and Szegedy 2015, algorithm 1 and section 3)."""

    def __init__(self, k: Kernels, operation: api.BatchNorm, arrays: Arrays) -> None:
        self.x, self.y, self.add, self.relu = arrays.x, arrays.y, arrays.add, operation.relu
        self.gamma, self.beta, self.mean, self.var = arrays.weights
        self.count = self.x.value.size // self.x.value.shape[-1]

    def forward(self, training: bool) -> None:
        x, y = self.x.value, self.y.value
        m, s = self.batch_statistics() if training else (self.mean.value, self.var.value)
        self.scale = 1 / np.sqrt(s + EPSILON)
        self.normal = (x - m) * self.scale
        y[...] = self.gamma.value * self.normal + self.beta.value
        if self.add is not None:
            y += self.add.value
        if self.relu:
            np.maximum(y, 0, out=y)

    def batch_statistics(self) -> tuple[Array, Array]:
        m, s = self.x.value.mean(PIXELS), self.x.value.var(PIXELS)
        unbiased = s * self.count / max(self.count - 1, 1)
        self.mean.grad[...] = self.mean.value - m
        self.var.grad[...] = self.var.value - unbiased
        return m, s

    def backward(self) -> None:
        dy = self.y.grad * (self.y.value > 0) if self.relu else self.y.grad
        if self.add is not None:
            self.add.grad[...] = dy
        dbeta, dgamma = dy.sum(PIXELS), (dy * self.normal).sum(PIXELS)
        self.beta.grad[...], self.gamma.grad[...] = dbeta, dgamma
        if self.x.grad is not None:
            self.x.grad[...] = self.gamma.value * self.scale * (dy - (dbeta + self.normal * dgamma) / self.count)


class FoldedConvolution:
    """y = (scale w) * x + bias [+ add] [ReLU]."""

    def __init__(self, k: Kernels, operation: api.FoldedConvolution, arrays: Arrays) -> None:
        self.w, self.gamma, self.beta, self.mean, self.var = arrays.weights
        self.y, self.add, self.relu = arrays.y, arrays.add, operation.norm.relu
        self.folded = Tensor(np.empty_like(self.w.value))
        self.convolution = Convolution(k, operation.convolution, Arrays(arrays.x, [self.folded], self.y))

    def fold(self) -> None:
        scale = self.gamma.value / np.sqrt(self.var.value + EPSILON)
        self.folded.value[...] = scale[:, None, None, None] * self.w.value
        self.bias = self.beta.value - scale * self.mean.value

    def forward(self, training: bool) -> None:
        y = self.y.value
        self.convolution.forward(training)
        y += self.bias
        if self.add is not None:
            y += self.add.value
        if self.relu:
            np.maximum(y, 0, out=y)

    def backward(self) -> None:
        raise NotImplementedError           # for inference only


class Subsample:
    """The parameter-free shortcut of He et al. 2015 (arXiv:1512.03385, section 3.3, option A)."""

    def __init__(self, k: Kernels, operation: api.Subsample, arrays: Arrays) -> None:
        self.x, self.y = arrays.x, arrays.y
        channels = self.x.value.shape[-1]
        first = (operation.channels - channels) // 2
        self.middle = (..., slice(first, first + channels))

    def forward(self, training: bool) -> None:
        self.y.value[...] = 0
        self.y.value[self.middle] = self.x.value[:, ::2, ::2]

    def backward(self) -> None:
        if self.x.grad is not None:
            self.x.grad[...] = 0
            self.x.grad[:, ::2, ::2] = self.y.grad[self.middle]


class MaxPool:
    """The maximum of each window; of equal elements the first, in row-major order, gets the gradient."""

    def __init__(self, k: Kernels, operation: api.MaxPool, arrays: Arrays) -> None:
        self.x, self.y = arrays.x, arrays.y
        self.window, self.stride, self.pad = operation.window, operation.stride, operation.pad
        self.winner = np.empty(self.y.value.shape, np.int16)

    def forward(self, training: bool) -> None:
        x, y = framed(self.x.value, self.pad, -np.inf), self.y.value
        y[...] = -np.inf
        for t, here in taps(self.window, self.stride, y):
            self.winner[x[here] > y] = t
            np.maximum(x[here], y, out=y)

    def backward(self) -> None:
        if self.x.grad is None:
            return
        dx, dy = framed(np.zeros_like(self.x.value), self.pad), self.y.grad
        for t, here in taps(self.window, self.stride, dy):
            dx[here] += dy * (self.winner == t)
        self.x.grad[...] = unframed(dx, self.pad)


class AveragePool:
    """(N, H, W, C) -> (N, C)."""

    def __init__(self, k: Kernels, operation: api.AveragePool, arrays: Arrays) -> None:
        self.x, self.y = arrays.x, arrays.y

    def forward(self, training: bool) -> None:
        self.y.value[...] = self.x.value.mean((1, 2))

    def backward(self) -> None:
        if self.x.grad is not None:
            _, height, width, _ = self.x.value.shape
            self.x.grad[...] = self.y.grad[:, None, None, :] / (height * width)


class Linear:
    """y = x w' + b."""

    def __init__(self, k: Kernels, operation: api.Linear, arrays: Arrays) -> None:
        self.x, (self.w, self.b), self.y = arrays.x, arrays.weights, arrays.y

    def forward(self, training: bool) -> None:
        self.y.value[...] = self.x.value @ self.w.value.T + self.b.value

    def backward(self) -> None:
        dy = self.y.grad
        self.w.grad[...] = dy.T @ self.x.value
        self.b.grad[...] = dy.sum(0)
        if self.x.grad is not None:
            self.x.grad[...] = dy @ self.w.value


class CrossEntropy:
    """Mean over the batch of -sum t log softmax(logits), where t = (1 - smoothing) one-hot + smoothing / classes.

    Of mixed labels, share one-hot + (1 - share) one-hot of the other is in the place of one-hot.
    """

    def __init__(self, logits: Tensor, smoothing: float) -> None:
        self.logits, self.smoothing = logits, smoothing

    def put(self, labels: Array | Mixed) -> None:
        self.labels = labels

    def forward(self) -> None:
        z = self.logits.value
        batch, classes = z.shape
        target = np.full_like(z, self.smoothing / classes)
        rows = np.arange(batch)
        if isinstance(self.labels, Mixed):
            share = self.labels.share.astype(z.dtype)
            target[rows, self.labels.labels] += (1 - self.smoothing) * share
            target[rows, self.labels.others] += (1 - self.smoothing) * (1 - share)
        else:
            target[rows, self.labels] += 1 - self.smoothing
        z = z - z.max(1, keepdims=True)     # exp() cannot overflow
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        if self.logits.grad is not None:
            self.logits.grad[...] = (np.exp(log_p) - target) / batch
        self.mean = float(-(target * log_p).sum() / batch)

    def get(self) -> float:
        return self.mean

    def later(self) -> Known:
        return Known(self.mean)


Reference.operations = {
    api.Convolution: Convolution, api.BatchNorm: BatchNorm, api.FoldedConvolution: FoldedConvolution,
    api.Subsample: Subsample, api.MaxPool: MaxPool, api.AveragePool: AveragePool, api.Linear: Linear}
