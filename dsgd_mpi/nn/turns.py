"""A network that several models take turns in: each has weights and gradient of its own, and no activations."""

from __future__ import annotations

from collections.abc import Callable

from dsgd_mpi.arrays.flat import Array, Buckets
from dsgd_mpi.kernels.api import Between, Bytes, Later, Mixed
from dsgd_mpi.nn.model import Model


class Turns(Model):
    """A model that begins like `network`, computes in it, and leaves nothing there that others rely on.

    A turn ends before another begins: none is taken between two layers.
    """

    def __init__(self, network: Model) -> None:
        self.network = network
        self.graph, self.batch, self.kernels, self.smoothing = (
            network.graph, network.batch, network.kernels, network.smoothing)
        self.layout, self.parameters = network.layout, network.parameters
        self.flat, self.flat_gradient = network.flat.copy(), 0 * network.flat
        self.state, self.gradient = self.layout.views(self.flat), self.layout.views(self.flat_gradient)

    def begin(self, images: Array | Bytes, labels: Array | Mixed, ready: Buckets | None = None,
              between: Between | None = None) -> Later:
        self.network.flat[:] = self.flat
        later = self.network.begin(images, labels, ready, between)
        self.flat_gradient[:] = self.network.flat_gradient
        return later

    def predictor(self) -> Callable[[Array | Bytes], Array]:
        self.network.flat[:] = self.flat
        return self.network.predictor()

    @property
    def activation_bytes(self) -> int:
        return self.network.activation_bytes
