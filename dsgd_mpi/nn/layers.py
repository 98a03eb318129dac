"""A network as data: a list of layers, each of which is an operation on named activations and weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from dsgd_mpi.arrays.flat import Shape
from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.api import Operation, Weight


@dataclass(frozen=True)
class Layer:
    """y = operation(x, weights) [+ add]."""

    operation: Operation
    x: str
    weights: tuple[str, ...]
    y: str
    add: str | None = None


class Graph:
    """Built layer by layer.

    `shapes`: activation -> (H, W, C) or (C,), without the batch. `weights`: by name, in the order of the layers;
    `trained` and `statistics`: their shapes, in that order, so that a backward pass finishes the trained ones from the
    back to the front.
    """

    def __init__(self, image: Shape) -> None:
        self.layers: list[Layer] = []
        self.shapes: dict[str, Shape] = {"images": image}
        self.weights: dict[str, Weight] = {}
        self.macs = 0                       # multiply-adds of one image's forward pass

    def add(self, name: str, operation: Operation, x: str, add: str | None = None) -> str:
        """Adds a layer that reads the activation `x`, and `add` if it adds one; its output is called `name`.

        UsageError if images are too small for it.
        """
        assert add is None or operation.adds, f"{name}: {operation} does not add another activation"
        shape = self.shapes[x]
        weights = {f"{name}.{weight}": about for weight, about in operation.weights(shape).items()}
        self.weights |= weights
        self.shapes[name] = operation.output(shape)
        if min(self.shapes[name]) < 1:
            raise UsageError(f"{name}: images of {'x'.join(map(str, self.shapes['images']))} are too small for this "
                             "layer; use larger images, or another model")
        self.macs += operation.macs(shape)
        self.layers.append(Layer(operation, x, tuple(weights), name, add))
        return name

    @property
    def trained(self) -> dict[str, Shape]:
        return {name: weight.shape for name, weight in self.weights.items() if weight.trained}

    def lone(self, batch: int) -> list[str]:
        """The layers that would take statistics of a single value a channel: all that they compute is their shift.

        The value minus its mean is 0 whatever the weights before it are, so no gradient passes such a layer.
        """
        return [layer.y for layer in self.layers if any(not self.weights[name].trained for name in layer.weights)
                and batch * prod(self.shapes[layer.x][:-1]) == 1]

    @property
    def statistics(self) -> dict[str, Shape]:
        return {name: weight.shape for name, weight in self.weights.items() if not weight.trained}
