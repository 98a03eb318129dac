"""Activations and their gradients for one batch size: which array each layer reads and writes.

All activations are kept for the backward pass. A gradient lives from the layer that writes it first to the layer that
made its activation; then its memory is reused.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dsgd_mpi.arrays.flat import Array, Shape
from dsgd_mpi.kernels.api import Convolution, Kernels, Tensor
from dsgd_mpi.nn.layers import Graph, Layer
from dsgd_mpi.nn.memory import Memory

Sums = list[tuple[Array, Array]]            # a gradient, and a term to be added to it


class Activations:
    """`bound`: for each layer, in order, its x, add (or None), y, a term of y's gradient (or None), and sums.

    `empty`: the kernels', or one like it.
    """

    def __init__(self, graph: Graph, batch: int, kernels: Kernels, empty: Callable[[Shape], Array]) -> None:
        shapes = {**graph.shapes, "images": image_shape(graph, kernels)}
        self.values = {name: empty((batch, *shape)) for name, shape in shapes.items()}
        self.grads: dict[str, Array] = {}   # while they live
        self.terms: dict[str, Array] = {}   # likewise, of those whose layer adds a term itself
        self.takes_term = {layer.y for layer in graph.layers if type(layer.operation) in kernels.takes_term}
        self.memory = Memory(empty)         # for them
        self.logits = self._tensor(graph.layers[-1].y)
        self.bound = [self._bind(layer) for layer in reversed(graph.layers)][::-1]

    @property
    def bytes(self) -> int:
        return self.memory.allocated_bytes + sum(int(value.nbytes) for value in self.values.values())

    def _bind(self, layer: Layer) -> tuple[Tensor, Tensor | None, Tensor, Array, Sums]:
        """The arrays of a layer and its sums, visited in the order of the backward pass."""
        y, term = Tensor(self.values[layer.y], self.grads.pop(layer.y)), self.terms.pop(layer.y, None)
        sums: Sums = []
        add = self._input(layer.add, sums) if layer.add else None
        x = self._input(layer.x, sums)
        for grad in (y.grad, *([] if term is None else [term]), *(added for _, added in sums)):
            self.memory.give_back(grad)
        return x, add, y, term, sums

    def _input(self, name: str, sums: Sums) -> Tensor:
        """The first layer to reach an activation writes its gradient, the others write a term to be added.

        The layer that made it adds the first term, if it can.
        """
        if name == "images":
            return Tensor(self.values[name])
        tensor = self._tensor(name, again=name in self.grads)
        if tensor.grad is self.grads[name]:
            pass
        elif name in self.takes_term and name not in self.terms:
            self.terms[name] = tensor.grad
        else:
            sums.append((self.grads[name], tensor.grad))
        return tensor

    def _tensor(self, name: str, again: bool = False) -> Tensor:
        value = self.values[name]
        grad = self.memory.borrow(value.shape)
        if not again:
            self.grads[name] = grad
        return Tensor(value, grad)


def image_shape(graph: Graph, kernels: Kernels) -> Shape:
    """Of the array that an image is put into (`Kernels.image_channels`)."""
    readers = {type(layer.operation) for layer in graph.layers if "images" in (layer.x, layer.add)}
    *size, channels = graph.shapes["images"]
    return (*size, kernels.image_channels(channels) if readers == {Convolution} else channels)


def bytes_needed(graph: Graph, batch: int, kernels: Kernels) -> int:
    """By the arrays of a batch, without allocating any."""
    element = np.empty((), f"V{int(kernels.empty((1,)).itemsize)}")
    return Activations(graph, batch, kernels, lambda shape: np.broadcast_to(element, shape)).bytes
