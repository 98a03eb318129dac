"""Costs on a simulated cluster: a latency and a bandwidth, the same between any two ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """Seconds for everything that takes time. The defaults are of the order of 100 Gbit/s Ethernet."""

    latency_s: float = 2e-6
    bytes_per_s: float = 12e9
    gradient_s: float | Callable[[int, int], float] = 0.1   # or a function of (rank, step)
    scale: float = 1.0                      # bytes on the wire per byte here: a small model may stand in for a large

    def message_s(self, nbytes: float) -> float:
        """One message between two ranks: latency + bytes / bandwidth."""
        return self.latency_s + nbytes / self.bytes_per_s

    def mean_s(self, nbytes: int, size: int) -> float:
        """A ring all-reduce: 2 (n - 1) messages of an n-th of the vector each."""
        return 2 * (size - 1) * self.message_s(nbytes / size) if size > 1 else 0.0

    def barrier_s(self, size: int) -> float:
        """Up and down a binary tree of empty messages."""
        return 2 * self.latency_s * (size - 1).bit_length()

    def compute_s(self, rank: int, step: int) -> float:
        return self.gradient_s(rank, step) if callable(self.gradient_s) else self.gradient_s
