"""Two levels: the ranks of a node, who compute for the first of them, and the first ranks of all nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsgd_mpi.arrays.flat import Array, Hear
from dsgd_mpi.net.api import Net, Pending

BUCKET_BYTES = 4_000_000                    # of a gradient, averaged within the node while the rest is being computed


class Levels:
    """Collective to construct. `within`: this node's ranks; `first`: whether this rank is the first of them.

    `between`: the first ranks of all nodes; where this rank is none, all that are none either.
    """

    def __init__(self, net: Net) -> None:
        nodes = net.nodes()
        firsts = [node[0] for node in nodes]
        self.first = net.rank in firsts
        self.within = net.group(next(node for node in nodes if net.rank in node))
        self.between = net.group(firsts if self.first else [rank for rank in range(net.size) if rank not in firsts])

    def gradient_of_node(self, gradient: Callable[..., Array]) -> Callable[..., Array]:
        """Collective to call, within the node: the mean of its ranks' gradients at the first one's x."""
        def of_node(x: Array, hear: Hear | None = None, least: int = 0) -> Any:
            if self.within.size == 1:
                return gradient(x, hear, least)
            self.within.broadcast(x)
            under_way: list[Pending] = []
            g = gradient(x, lambda g, part: under_way.append(self.within.mean(g[part])), BUCKET_BYTES // x.itemsize)
            for pending in under_way:
                pending.wait()
            if hear:
                hear(g, slice(0, g.size))
            return g
        return of_node
