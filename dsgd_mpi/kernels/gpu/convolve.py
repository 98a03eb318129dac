"""Convolution on a GPU: by a plan of cuDNN, or by our own kernel if there is none; weights are reordered for both.

The flat vector holds weights as OIHW in float32. A copy in the activations' dtype, ordered OHWI and zero-padded to
a number of channels that suits tensor cores, is made in each forward pass: most algorithms change the vector anywhere.
"""

from __future__ import annotations

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.kernels import api
from dsgd_mpi.kernels.api import Arrays, Tensor
from dsgd_mpi.kernels.gpu.device import Launch
from dsgd_mpi.kernels.gpu.plans import Geometry
from dsgd_mpi.kernels.gpu.tools import Tools, i32, run

TILE, DEPTH = 64, 16                        # of cuda/convolution.cu
BLOCKS = 512                                # that keep a GPU busy
PARTIAL_FLOATS = 1 << 26                    # of partial weight gradients, which are summed afterwards


def tiles(size: int) -> int:
    return -(-size // TILE)


class Convolution:
    """Forward and both gradients; a second weight is a bias. `scale`: of the weights, per channel of y."""

    def __init__(self, k: Tools, operation: api.Convolution, arrays: Arrays, scale: Array | None = None) -> None:
        x, (w, *biases), y = arrays.x, arrays.weights, arrays.y
        self.k, self.x, self.w, self.y = k, x, w, y
        self.bias = biases[0] if biases else None
        n, h, width, _ = x.value.shape
        _, oh, ow, o = y.value.shape
        c = w.value.shape[1]                # of images x may have more (`Kernels.image_channels`)
        self.g = Geometry(n, h, width, k.padded(c), k.padded(o), operation.window, operation.stride,
                          operation.pad, oh, ow)
        self.sizes = (o, c, self.g.window**2, self.g.o, self.g.c)
        self.weights = k.own((self.g.o * self.sizes[2] * self.g.c,), k.storage)
        self.padded_x = self.padding(x.value, self.g.c)
        self.take_weights = k.each("weights_in", self.weights.size, 1, w.value, scale, self.weights,
                                   *map(i32, self.sizes))
        self.output_steps = self.output()
        self.backward_steps = self.gradients() if y.grad is not None else []

    def forward(self, training: bool) -> None:
        self.take_weights()
        run(self.output_steps)

    def backward(self) -> None:
        run(self.backward_steps)

    def padding(self, x: Array, channels: int) -> Array:
        """x itself, or memory for its copy with more channels."""
        if x.shape[-1] == channels:
            return x
        return self.k.own((*x.shape[:-1], channels), self.k.storage)

    def copied(self, source: Array, target: Array) -> list[Launch]:
        """Copies the channels that both have, unless they are the same array."""
        if source is target:
            return []
        rows = source.size // source.shape[-1]
        return [self.k.each("copy_channels", target.size, 1, source, target, i32(rows), i32(source.shape[-1]),
                            i32(target.shape[-1]))]

    def output(self) -> list[Launch]:
        y = self.padding(self.y.value, self.g.o)
        steps = [*self.copied(self.x.value, self.padded_x),
                 self.step("forward", self.padded_x, self.weights, y), *self.copied(y, self.y.value)]
        if self.bias:
            steps.append(self.k.affine(self.y.value, None, None, self.bias.value, None, self.y.value, relu=False))
        return steps

    def gradients(self) -> list[Launch]:
        dy = self.padding(self.y.grad, self.g.o)
        steps = self.copied(self.y.grad, dy)
        if self.x.grad is not None:
            dx = self.padding(self.x.grad, self.g.c)
            steps += [self.step("data", dy, self.weights, dx), *self.copied(dx, self.x.grad)]
        steps += self.weights_gradient(dy)
        if self.bias:
            rows, columns = self.y.grad.size // self.y.grad.shape[-1], self.y.grad.shape[-1]
            steps.append(self.k.each("column_sums", columns, 1, self.y.grad, self.k.scaling, self.bias.grad, i32(rows),
                                     i32(columns)))
        return steps

    def weights_gradient(self, dy: Array) -> list[Launch]:
        result = self.k.scratch("weights gradient", self.weights.nbytes).view(self.k.storage)
        planned = self.k.planned("weights", self.g, dy, self.padded_x, result)
        partial, parts = None, 0
        if planned is None:
            parts = self.parts()
            partial = self.k.scratch("weights gradient", 4 * parts * self.weights.size).view(np.float32)
            planned = self.own("convolution_weights", self.g.o, self.sizes[2] * self.g.c, dy, self.padded_x, partial,
                               parts=parts)
        return [planned, self.k.each("weights_out", self.w.grad.size, 1, result, partial, i32(parts), self.k.scaling,
                                     self.w.grad, *map(i32, self.sizes))]

    def parts(self) -> int:
        """How many parts the pixels are split into, so that there are enough blocks."""
        blocks = tiles(self.g.o) * tiles(self.sizes[2] * self.g.c)
        deep = self.g.n * self.g.oh * self.g.ow
        return max(1, min(-(-BLOCKS // blocks), deep // (8 * DEPTH), PARTIAL_FLOATS // int(self.weights.size)))

    def step(self, direction: str, a: Array, b: Array, out: Array) -> Launch:
        planned = self.k.planned(direction, self.g, a, b, out)
        if planned is not None:
            return planned
        if direction == "forward":
            return self.own("convolution", self.g.n * self.g.oh * self.g.ow, self.g.o, a, b, out)
        return self.own("convolution_data", self.g.n * self.g.h * self.g.w, self.g.c, a, b, out)

    def own(self, name: str, rows: int, columns: int, *arrays: Array, parts: int = 1) -> Launch:
        return self.k.device.kernel(name, 1, (tiles(rows), tiles(columns), parts), (256,), *arrays, *map(i32, self.g))


class Linear(Convolution):
    """A 1x1 convolution of a batch of one-pixel images."""

    def __init__(self, k: Tools, operation: api.Linear, arrays: Arrays) -> None:
        w, bias = arrays.weights
        window = Tensor(*(z.reshape(*z.shape, 1, 1) for z in both(w)))
        super().__init__(k, api.Convolution(operation.classes, window=1),
                         Arrays(pixel(arrays.x), [window, bias], pixel(arrays.y)))


def both(x: Tensor) -> tuple[Array, ...]:
    return (x.value,) if x.grad is None else (x.value, x.grad)


def pixel(x: Tensor) -> Tensor:
    """(N, C) as one-pixel images."""
    return Tensor(*(z.reshape(z.shape[0], 1, 1, z.shape[1]) for z in both(x)))


class FoldedConvolution:
    """For inference: weights times batch norm's factor, then its bias [+ add] [ReLU] in place."""

    def __init__(self, k: Tools, operation: api.FoldedConvolution, arrays: Arrays) -> None:
        x, (w, gamma, beta, mean, var), y, add = arrays.x, arrays.weights, arrays.y, arrays.add
        channels = gamma.value.size
        scale, bias = (k.own((channels,), np.float32) for _ in range(2))
        self.factors = k.each("fold", channels, 1, gamma.value, beta.value, mean.value, var.value, scale, bias,
                              i32(channels))
        self.convolution = Convolution(k, operation.convolution, Arrays(x, [w], y), scale)
        self.finish = k.affine(y.value, None, None, bias, add and add.value, y.value, operation.norm.relu)

    def fold(self) -> None:
        self.factors()
        self.convolution.take_weights()

    def forward(self, training: bool) -> None:
        run(self.convolution.output_steps)
        self.finish()

    def backward(self) -> None:
        raise NotImplementedError           # for inference only
