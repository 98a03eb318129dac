"""A network bound for inference: batch norm folded into the convolutions, activations kept only until they are read."""

from __future__ import annotations

from collections.abc import Mapping

from dsgd_mpi.arrays.flat import Array, Buckets
from dsgd_mpi.kernels import api
from dsgd_mpi.kernels.api import Arrays, Between, Bound, Bytes, Folded, Kernels, Tensor
from dsgd_mpi.nn.activations import image_shape
from dsgd_mpi.nn.layers import Graph, Layer
from dsgd_mpi.nn.memory import Memory


class Inference:
    """Images to logits for one batch size, with the weights and running statistics that `state` had at `fold`."""

    def __init__(self, graph: Graph, state: Mapping[str, Array], batch: int, kernels: Kernels) -> None:
        self.kernels, self.memory = kernels, Memory(kernels.empty)
        self.operations: list[Bound] = []
        layers = folded(graph.layers)
        last = {name: i for i, layer in enumerate(layers) for name in inputs(layer)}
        self.images = self.memory.borrow((batch, *image_shape(graph, kernels)))
        values = {"images": Tensor(self.images)}
        for i, layer in enumerate(layers):
            y = values[layer.y] = Tensor(self.memory.borrow((batch, *graph.shapes[layer.y])))
            weights = [Tensor(state[name]) for name in layer.weights]
            add = values[layer.add] if layer.add else None
            self.operations.append(kernels.bind(layer.operation, Arrays(values[layer.x], weights, y, add)))
            for name in inputs(layer):
                if last[name] == i:
                    self.memory.give_back(values[name].value)
        self.logits = values[layers[-1].y].value
        self.program = kernels.program(self.run)

    def fold(self) -> None:
        for operation in self.operations:
            if isinstance(operation, Folded):
                operation.fold()

    def run(self, ready: Buckets | None, between: Between | None) -> None:
        for operation in self.operations:
            operation.forward(training=False)

    def __call__(self, images: Array | Bytes) -> Array:
        """Logits, float32 (images, classes), of up to a batch of images, float32 NHWC."""
        self.kernels.put(images, self.images[: len(images)])
        self.program(None, None)            # on what is left behind them too
        return self.kernels.get(self.logits)[: len(images)]


def inputs(layer: Layer) -> set[str]:
    return {layer.x, layer.add} if layer.add else {layer.x}


def folded(layers: list[Layer]) -> list[Layer]:
    """The layers, with each convolution fused with the batch norm that is its only reader."""
    readers = [name for layer in layers for name in inputs(layer)]
    before = {layer.y: (layer, layer.operation) for layer in layers
              if isinstance(layer.operation, api.Convolution) and readers.count(layer.y) == 1}
    normed = {layer.x for layer in layers if isinstance(layer.operation, api.BatchNorm)} & before.keys()
    result = []
    for layer in layers:
        if isinstance(layer.operation, api.BatchNorm) and layer.x in normed:
            first, convolution = before[layer.x]
            result.append(Layer(api.FoldedConvolution(convolution, layer.operation), first.x,
                                first.weights + layer.weights, layer.y, layer.add))
        elif layer.y not in normed:
            result.append(layer)
    return result
