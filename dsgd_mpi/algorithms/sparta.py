"""SPARTA: after each step the mean of a small random share of the model, the same on all ranks (Beton et al. 2025).

    x_i <- x_i - eta v_i;   x_i[s] <- 1/n sum_j x_j[s]          s drawn at each step, each element with probability p

So an element is averaged about once in 1/p steps. With p = 1 this is a mean of all models after every step. The source
is OpenReview stFPf3gzq1 and its authors' code (exo's gym). The optimizer's state stays with its rank; batch norm's
running statistics are averaged likewise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array, beside
from dsgd_mpi.config import Most


@dataclass
class Sparta(Algorithm):
    share: Annotated[float, 1e-9, Most(1)] = 0.05       # p; the authors' code has 0.005, for longer runs
    seed: Annotated[int, 0] = 0             # of what is averaged, the same on all ranks

    survives = True
    traffic = "one average of a share of the model over all ranks"
    variants = {}, {"share": 0.3}
    advised = {}, {"share": 0.005}

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.optimizer.update(x, gradient(x), lr)
        self.t += 1
        places = self.places(x.size)
        if places.size:
            places = beside(x, places)
            drawn = x[places]
            x[places] = self.net.mean(drawn).wait()

    def places(self, size: int) -> Array:
        """What is averaged at this step, of so many elements: int (k,), ascending.

        Drawn by the gaps between them, in a time that depends on their number alone.
        """
        expected = self.share * size
        draw = np.random.default_rng((self.seed, int(self.t), 3))
        gaps = draw.geometric(self.share, int(expected + 10 * expected**0.5 + 10))     # ten sigma more than expected
        places = np.cumsum(gaps) - 1
        return places[places < size]
