"""Convolution on a GPU: by a plan of cuDNN, or by our own kernel where there is none; weights re-ordered for both.

The flat vector holds weights as OIHW in float32. A copy in the activations' dtype, ordered OHWI and padded with zeros
to channels that tensor cores like, is made at each forward pass: most algorithms change the vector in many places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.kernels.api import Tensor
from dsgd_mpi.kernels.gpu.device import Launch
from dsgd_mpi.kernels.gpu.plans import Geometry

if TYPE_CHECKING:
    from dsgd_mpi.kernels.gpu.cudnn import CuDNN

TILE, DEPTH = 64, 16                        # of cuda/convolution.cu
BLOCKS = 512                                # that keep a GPU busy
PARTIAL_FLOATS = 1 << 26                    # of weight gradients that are summed up afterwards
i32 = np.int32


def run(steps: list[Launch]) -> None:
    for step in steps:
        step()


def tiles(size: int) -> int:
    return -(-size // TILE)


class Convolution:
    """Forward and both gradients; `linear` is one with a bias, over images of one pixel."""

    def __init__(self, k: CuDNN, x: Tensor, w: Tensor, y: Tensor, stride: int, pad: int, bias: Tensor | None = None,
                 scale: Array | None = None) -> None:
        self.k, self.x, self.w, self.y, self.bias = k, x, w, y, bias
        n, h, width, c = x.value.shape
        _, oh, ow, o = y.value.shape
        self.g = Geometry(n, h, width, k.padded(c), k.padded(o), w.value.shape[2], stride, pad, oh, ow)
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
        """x itself, or where its copy with more channels goes."""
        if x.shape[-1] == channels:
            return x
        return self.k.own((*x.shape[:-1], channels), self.k.storage)

    def copied(self, source: Array, target: Array) -> list[Launch]:
        """What brings all channels that both have from one to the other, if they are two."""
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
        """Into how many the pixels are shared out, so that there are blocks enough."""
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


class FoldedConvolution:
    """For inference: weights times batch norm's factor, then its bias [+ add] [ReLU] in place."""

    def __init__(self, k: CuDNN, x: Tensor, w: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor,
                 y: Tensor, stride: int, pad: int, relu: bool, add: Tensor | None) -> None:
        channels = gamma.value.size
        scale, bias = (k.own((channels,), np.float32) for _ in range(2))
        self.factors = k.each("fold", channels, 1, gamma.value, beta.value, mean.value, var.value, scale, bias,
                              i32(channels))
        self.convolution = Convolution(k, x, w, y, stride, pad, scale=scale)
        self.finish = k.affine(y.value, None, None, bias, add and add.value, y.value, relu)

    def fold(self) -> None:
        self.factors()
        self.convolution.take_weights()

    def forward(self, training: bool) -> None:
        run(self.convolution.output_steps)
        self.finish()

    def backward(self) -> None:
        raise NotImplementedError           # of inference
