"""Weighted means over a rank's neighbours on a graph."""

from __future__ import annotations

from collections.abc import Mapping

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net


class Mixing:
    """x <- sum_j W_ij x_j in progress; the neighbours take part. `weights`: neighbour -> W_ij, W_ii the remainder."""

    def __init__(self, net: Net, x: Array, weights: Mapping[int, float]) -> None:
        self.x, self.weights = x, weights
        self.met = {peer: net.exchange(x, peer) for peer in weights}

    def wait(self) -> Array:
        """x, in place; it may not change before."""
        arrived = {peer: exchange.wait() for peer, exchange in self.met.items()}    # all of them before x changes
        self.x *= 1 - sum(self.weights.values())
        for peer, weight in self.weights.items():
            self.x += weight * arrived[peer]
        return self.x
