"""How much longer slow ranks take for a gradient: constant, or drawn by a distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Distribution = Literal["constant", "uniform", "exponential", "pareto"]
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)


def drawn(distribution: Distribution, mean: float, draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Seconds with that mean: uniform ones from 0 to twice that; Pareto's (Lomax's) exponent is 2."""
    if distribution == "uniform":
        return draw.uniform(0, 2 * mean, shape)
    if distribution == "exponential":
        return draw.exponential(mean, shape)
    if distribution == "pareto":
        return draw.pareto(2.0, shape) * mean
    return np.full(shape, mean)


@dataclass(frozen=True)
class Delay:
    """Of each gradient on some ranks: `least` seconds, and more by a distribution with that mean."""

    ranks: range
    distribution: Distribution
    mean: float
    least: float = 0.0

    def seconds(self, rank: int, step: int, seed: int) -> float:
        """At a step; a function of its arguments."""
        if rank not in self.ranks:
            return 0.0
        draw = np.random.default_rng((seed, 2, rank, step))
        return self.least + float(drawn(self.distribution, self.mean, draw, (1,))[0])
