"""A network as data: a list of layers over named activations, each named after the kernel that computes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dsgd_mpi.arrays.flat import Shape
from dsgd_mpi.kernels.api import Kernels, Operation, Tensor


@dataclass(frozen=True)
class Layer:
    """y = kernel(x, weights) [+ add]; `kernel` is a method of `Kernels`, `options` its keyword arguments."""

    kernel: str
    x: str
    weights: tuple[str, ...]
    y: str
    add: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def bound(self, kernels: Kernels, x: Tensor, weights: list[Tensor], y: Tensor, add: Tensor | None) -> Operation:
        """The kernels' operation for this layer on these arrays; `add` where the layer has one."""
        options = {**self.options, "add": add} if add else self.options
        operation: Operation = getattr(kernels, self.kernel)(x, *weights, y, **options)
        return operation


class Network:
    """Grows layer by layer; each method adds one and returns the name of the activation that it makes.

    `shapes`: activation -> (H, W, C) or (C,), without the batch. `trained` and `statistics`: name -> shape, in the
    order of the layers, so that a backward pass finishes the trained ones from the back to the front.
    """

    def __init__(self, image: Shape) -> None:
        self.layers: list[Layer] = []
        self.shapes: dict[str, Shape] = {"images": image}
        self.trained: dict[str, Shape] = {}
        self.statistics: dict[str, Shape] = {}
        self.macs = 0                       # multiplications and additions of one image's forward pass

    def convolution(self, name: str, x: str, channels: int, window: int, stride: int = 1) -> str:
        """Square window, padded so that stride 1 keeps the size."""
        before = self.shapes[x][-1]
        pad = window // 2
        weight = self._train(f"{name}.weight", (channels, before, window, window))
        y = self._pixels(name, x, channels, window, stride, pad)
        out = self.shapes[y]
        self.macs += out[0] * out[1] * channels * before * window * window
        return self._add(Layer("convolution", x, (weight,), y, options={"stride": stride, "pad": pad}))

    def batch_norm(self, name: str, x: str, relu: bool, add: str | None = None) -> str:
        """Batch norm [+ the activation `add`] [+ ReLU]."""
        shape = self.shapes[x]
        weights = (self._train(f"{name}.weight", shape[-1:]), self._train(f"{name}.bias", shape[-1:]),
                   f"{name}.running_mean", f"{name}.running_var")
        self.statistics |= {weights[2]: shape[-1:], weights[3]: shape[-1:]}
        self.shapes[name] = shape
        return self._add(Layer("batch_norm", x, weights, name, add, {"relu": relu}))

    def max_pool(self, name: str, x: str, window: int, stride: int, pad: int) -> str:
        y = self._pixels(name, x, self.shapes[x][-1], window, stride, pad)
        return self._add(Layer("max_pool", x, (), y, options={"window": window, "stride": stride, "pad": pad}))

    def subsample(self, name: str, x: str, channels: int) -> str:
        """Every second pixel, and zeros for the channels that are missing."""
        height, width, _ = self.shapes[x]
        self.shapes[name] = ((height + 1) // 2, (width + 1) // 2, channels)
        return self._add(Layer("subsample", x, (), name))

    def average_pool(self, name: str, x: str) -> str:
        self.shapes[name] = self.shapes[x][-1:]
        return self._add(Layer("average_pool", x, (), name))

    def linear(self, name: str, x: str, classes: int) -> str:
        features, = self.shapes[x]
        weights = self._train(f"{name}.weight", (classes, features)), self._train(f"{name}.bias", (classes,))
        self.shapes[name] = (classes,)
        self.macs += classes * features
        return self._add(Layer("linear", x, weights, name))

    def _train(self, name: str, shape: Shape) -> str:
        self.trained[name] = shape
        return name

    def _pixels(self, name: str, x: str, channels: int, window: int, stride: int, pad: int) -> str:
        height, width, _ = self.shapes[x]
        self.shapes[name] = ((height + 2 * pad - window) // stride + 1, (width + 2 * pad - window) // stride + 1,
                             channels)
        return name

    def _add(self, layer: Layer) -> str:
        self.layers.append(layer)
        return layer.y
