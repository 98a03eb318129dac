"""Operations as data, and the interface of back ends: operations are bound to fixed arrays once and run every step."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from dsgd_mpi.arrays.flat import Array, Buckets, Shape
from dsgd_mpi.errors import UsageError

EPSILON = 1e-5                              # of batch norm, as in torchvision
STATISTICS_RATE = 0.1                       # of the moving averages: torchvision's `momentum` of a batch norm
Initial = Callable[[np.random.Generator, Shape], Array]     # draws a weight's initial values
Between = Callable[[], None]


@dataclass
class Tensor:
    """An array and, of the same shape, the gradient of the loss with respect to it.

    Activations are NHWC in the kernels' own dtype and come from `Kernels.empty`; parameters and running statistics are
    views into the flat vectors. `grad` is None where it is not needed (the images).
    """

    value: Array
    grad: Array = None                      # `Array | None` would make every kernel check what its caller guarantees


@dataclass
class Bytes:
    """Images as they are stored, to be converted to floats on a device: y = byte scale + shift, per channel.

    `images`: uint8 (N, H, W, C). `places`, unless None: int32 (N, 3), the row and column at which the H x W crop
    begins in the image padded by `pad` zero pixels, and whether it is then mirrored.
    """

    images: Array
    places: Array
    scale: Array                            # float32 (C,)
    shift: Array
    pad: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> Bytes:
        places = None if self.places is None else self.places[part]
        return Bytes(self.images[part], places, self.scale, self.shift, self.pad)


@dataclass
class Mixed:
    """Labels of images that are mixtures of two: `share` of image i is of class labels[i], the rest of others[i]."""

    labels: Array                           # int (N,)
    others: Array
    share: Array                            # float32 (N,), from 0 to 1


@dataclass(frozen=True)
class Weight:
    """A parameter of an operation or, if it is not `trained`, a running statistic; and its initial value."""

    shape: Shape
    initial: Initial | None = None          # a network with a weight that has none is refused
    trained: bool = True


def constant(value: float) -> Initial:
    return lambda draw, shape: value


def normal(deviation: float) -> Initial:
    return lambda draw, shape: draw.standard_normal(shape, np.float32) * deviation


def uniform(bound: float) -> Initial:
    """From -bound to bound."""
    return lambda draw, shape: draw.uniform(-bound, bound, shape)


@dataclass(frozen=True)
class Operation:
    """What a layer computes, as data: y = f(x, weights) [+ add]. Back ends' `operations` map it to what computes it.

    `x` is a shape without the batch: (H, W, C) or (C,). Initial weights are those of torchvision.
    """

    adds: ClassVar[bool] = False            # whether another activation can be added to the result

    def output(self, x: Shape) -> Shape:
        """The shape of y."""
        return x

    def weights(self, x: Shape) -> dict[str, Weight]:
        """By name, in the order in which they are bound and initial values are drawn."""
        return {}

    def macs(self, x: Shape) -> int:
        """Multiply-adds of one image's forward pass."""
        return 0


@dataclass(frozen=True)
class Convolution(Operation):
    """Cross-correlation, square window, no bias: y[n,i,j,o] = sum x[n, i s + k - p, j s + l - p, c] w[o,c,k,l].

    `channels` are those of y. Initial weights: normal, fan out (He et al. 2015, arXiv:1502.01852).
    """

    channels: int
    window: int
    stride: int = 1
    pad: int = 0

    def output(self, x: Shape) -> Shape:
        return (*slid(x, self.window, self.stride, self.pad), self.channels)

    def weights(self, x: Shape) -> dict[str, Weight]:
        initial = normal(sqrt(2 / (self.channels * self.window * self.window)))
        return {"weight": Weight((self.channels, x[-1], self.window, self.window), initial)}

    def macs(self, x: Shape) -> int:
        return prod(self.output(x)) * x[-1] * self.window * self.window


@dataclass(frozen=True)
class BatchNorm(Operation):
    """y = gamma (x - m) / sqrt(s + EPSILON) + beta [+ add] [ReLU], per channel (Ioffe and Szegedy 2015).

    Training takes m, s from the batch (s biased) and writes gradients of the running statistics, `mean.grad` =
    mean.value - m and `var.grad` = var.value - unbiased s: a step of STATISTICS_RATE along them is the usual
    moving average. In inference, m, s are the running statistics.
    """

    relu: bool
    adds = True

    def weights(self, x: Shape) -> dict[str, Weight]:
        row = x[-1:]
        return {"weight": Weight(row, constant(1)), "bias": Weight(row, constant(0)),
                "running_mean": Weight(row, constant(0), trained=False),
                "running_var": Weight(row, constant(1), trained=False)}


@dataclass(frozen=True)
class FoldedConvolution(Operation):
    """`norm` of `convolution` for inference only, in one pass: y = (scale w) * x + bias [+ add] [ReLU].

    scale = gamma / sqrt(var + EPSILON) and bias = beta - scale mean, as of the last call of `Folded.fold`.
    """

    convolution: Convolution
    norm: BatchNorm
    adds = True

    def output(self, x: Shape) -> Shape:
        return self.convolution.output(x)

    def weights(self, x: Shape) -> dict[str, Weight]:
        own, norms = self.convolution.weights(x), self.norm.weights(self.output(x))
        return {**own, **{f"norm.{name}": weight for name, weight in norms.items()}}

    def macs(self, x: Shape) -> int:
        return self.convolution.macs(x)


@dataclass(frozen=True)
class Subsample(Operation):
    """Every second pixel, channels zero-padded equally on both sides: the 'option A' shortcut of He et al. 2015."""

    channels: int

    def output(self, x: Shape) -> Shape:
        return (*slid(x, 1, 2, 0), self.channels)


@dataclass(frozen=True)
class MaxPool(Operation):
    """The maximum of each square window; of equal elements the first, in row-major order, gets the gradient."""

    window: int
    stride: int
    pad: int = 0

    def output(self, x: Shape) -> Shape:
        return (*slid(x, self.window, self.stride, self.pad), x[-1])


@dataclass(frozen=True)
class AveragePool(Operation):
    """(N, H, W, C) -> (N, C): the mean over all pixels."""

    def output(self, x: Shape) -> Shape:
        return x[-1:]


@dataclass(frozen=True)
class Linear(Operation):
    """(N, features) -> (N, classes): y = x w' + b. Initial weights and biases: uniform in +- 1 / sqrt(features)."""

    classes: int

    def output(self, x: Shape) -> Shape:
        return (self.classes,)

    def weights(self, x: Shape) -> dict[str, Weight]:
        features, = x
        initial = uniform(1 / sqrt(features))
        return {"weight": Weight((self.classes, features), initial), "bias": Weight((self.classes,), initial)}

    def macs(self, x: Shape) -> int:
        return self.classes * x[-1]


def slid(x: Shape, window: int, stride: int, pad: int) -> tuple[int, int]:
    """Height and width of a sliding window's output."""
    height, width, _ = x
    return (height + 2 * pad - window) // stride + 1, (width + 2 * pad - window) // stride + 1


@dataclass(frozen=True)
class Arrays:
    """The arrays that an operation is bound to; `weights` in the operation's order."""

    x: Tensor
    weights: Sequence[Tensor]
    y: Tensor
    add: Tensor | None = None               # None unless the operation `adds`
    term: Array = None                      # added to y.grad by the backward pass, which may overwrite both: only if
                                            # the back end's `takes_term` has the operation


class Bound(Protocol):
    """An operation bound to its arrays. It keeps whatever its backward pass needs from the forward pass.

    Values of inputs and output must not change in between. If the output has no grad, there is no backward pass.
    """

    def forward(self, training: bool) -> None:
        """Fills the output's value. Only `training=True` may be followed by `backward`."""

    def backward(self) -> None:
        """Reads the output's grad; overwrites (never adds to) the grad of every input and parameter."""


@runtime_checkable
class Folded(Bound, Protocol):
    def fold(self) -> None:
        """Folds the current weights, for all forward passes until the next call; must be called first."""


class Later(Protocol):
    """A number that a device may still be computing."""

    def done(self) -> bool: ...

    def wait(self, between: Between | None = None) -> float:
        """Calls `between()` until it is known."""


@dataclass
class Known:
    """`Later` that is known already."""

    value: float

    def done(self) -> bool:
        return True

    def wait(self, between: Between | None = None) -> float:
        return self.value


class Loss(Protocol):
    def put(self, labels: Array | Mixed) -> None:
        """The labels for the next passes: int (batch,), in host memory."""

    def forward(self) -> None:
        """Computes the mean loss over the batch, and writes its gradient to the logits' grad."""

    def get(self) -> float:
        """The mean loss, once all work on it is done."""

    def later(self) -> Later:
        """`get`, but without waiting: it stays that of the pass before, whatever follows."""


class Rule(Protocol):
    """An optimizer as a fused kernel sees it. The arrays of its state never move."""

    state: dict[str, Array]
    trained: slice                          # of the flat vectors; running statistics follow

    @property
    def weights(self) -> Array:
        """(trained,): 1 for weights, 0 for biases and batch norm, for a rule that distinguishes them."""

    def options(self) -> dict[str, Any]: ...


Step = Callable[[Array, Array, float], None]    # updates x in place, along g, at a rate; the running statistics too
Work = Callable[[Buckets | None, Between | None], None]


class Kernels(Protocol):
    """The base class of back ends. Arrays must not move: an operation may hold pointers into them.

    Convolution weights are OIHW, linear weights (classes, features), as torchvision stores them.
    """

    # the class that computes an operation, constructed from the back end, the operation and its arrays
    operations: ClassVar[Mapping[type[Operation], Callable[[Any, Any, Arrays], Bound]]]

    # operations that take a second term of their y.grad, instead of having it added by `accumulate` before
    takes_term: ClassVar[Container[type[Operation]]] = ()

    name: str
    dtype: str                              # of activations: "float32", "float64", "bfloat16" or "float16"

    # None, unless `put` takes `Bytes` too, and prefers them to floats: then allocates their images, uint8 of a shape,
    # which are copied asynchronously and must not change before a loss, or the result of `get`, computed from them is
    # known
    byte_memory: Callable[[Shape], Array] | None

    def bind(self, operation: Operation, arrays: Arrays) -> Bound:
        """The operation on these arrays. UsageError where this back end cannot compute it."""
        made_by = self.operations.get(type(operation))
        if made_by is None:
            raise UsageError(f"the {self.name} kernels do not support {type(operation).__name__}; use other "
                             f"kernels, or add a class for it to {type(self).__name__}.operations")
        return made_by(self, operation, arrays)

    @property
    def held_bytes(self) -> int:
        """Memory that operations have allocated besides the arrays they were given: workspaces and scratchpads."""

    @property
    def state(self) -> dict[str, Array]:
        """What steps change besides the flat vectors, by name: a checkpoint saves it, and restores it in place.

        Empty unless the loss is scaled. Its arrays never move and depend only on the updates taken.
        """

    def set_threads(self, threads: int) -> None:
        """The number of threads of an operation, for the calling thread; to be called before the first is bound."""

    def zeros(self, size: int) -> Array:
        """A flat vector in memory that the operations can use: float32, or float64 with kernels of that dtype."""

    def empty(self, shape: Shape) -> Array:
        """An uninitialised activation array, aligned as the kernels prefer. MemoryError if memory runs out."""

    def image_channels(self, channels: int) -> int:
        """The channels of the array that images are put into: more, the others being zero, if convolutions like that.

        Only where all that reads the images is convolutions, whose weights then have fewer channels than their x.
        """
        return channels

    def spare_bytes(self) -> int:
        """Memory that `empty` can still allocate."""

    def program(self, work: Work) -> Work:
        """`work(ready, between)`, the same operations each time, in a form that may be recorded once and replayed.

        `ready` is called with parts of the flat gradient, in order, once the work that fills a part is enqueued on the
        current stream and nothing beyond it is: to read it from another stream, make that wait for an event recorded
        now; to read it on the CPU, wait for the event. CPU kernels have no stream: the part is final. They call
        `between()` between operations; a GPU leaves that to who waits for the loss (`Later.wait`).
        """

    def send(self, images: Array | Bytes) -> Any:
        """Begins to copy the images of a later `put`, which takes what this returns, while other work runs.

        No more than one batch at a time: it is to be put before the next is sent.
        """
        return images

    def put(self, values: Array | Bytes, into: Array) -> None:
        """Copies a float32 NumPy array to an activation array, converting its dtype.

        Shapes must agree, except that `into` may have the last axis that `image_channels` asks for.
        """

    def get(self, x: Array) -> Array:
        """A float32 NumPy copy of an activation array (float64 stays float64), once all work on it is done."""

    def cross_entropy(self, logits: Tensor, smoothing: float) -> Loss:
        """Softmax cross-entropy; `smoothing` spreads that share of the target over all classes."""

    def accumulate(self, total: Array, term: Array) -> None:
        """total += term, for two activation gradients of the same shape."""

    @property
    def fused(self) -> Mapping[str, Callable[[Rule], Step]]:
        """Optimizers, by name, whose step has a fused kernel; all others run as written."""

    def in_parts(self, count: int, work: Callable[[slice], None]) -> None:
        """Calls `work(part)` on parts that make up slice(0, count), sized for the cache, on as many threads as pay off.

        In any order, and concurrently: no part may depend on another, so that the bits do not depend on the partition.
        """
