"""Local SGD with Nesterov momentum and weight decay, on the flat vector.

    g' = g + lambda x;   v <- mu v + g';   x <- x - eta (g' + mu v)        Sutskever et al. 2013, as PyTorch writes it
    r <- r - 0.1 (r - b)                                                   batch norm's moving averages, Ioffe 2015

The tail of x holds batch norm's running statistics r, and the tail of g their distance from the batch's, r - b. So each
algorithm may treat both alike: what averages gradients or models averages the statistics too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.kernels.reference import nesterov

Nesterov = Callable[[Array, Array, Array, float, float, float], None]


class LocalSgd:
    """One rank's optimiser: its momentum `v` ((parameters,), starts at zero) and the update rule, which a kernel does.

    `like`: a vector of the dtype and in the memory that v shall have; NumPy's float32 unless given.
    """

    def __init__(self, parameters: int, momentum: float = 0.9, weight_decay: float = 0.0,
                 kernel: Nesterov = nesterov, like: Array | None = None) -> None:
        self.momentum, self.weight_decay, self.kernel = momentum, weight_decay, kernel
        self.v: Array = np.zeros_like(np.empty(0, "float32") if like is None else like, shape=parameters)

    def update(self, x: Array, g: Array, lr: float) -> None:
        """Moves x against the gradient g, in place; both (size,), of which the first len(v) are trained."""
        self.kernel(x, self.v, g, lr, self.momentum, self.weight_decay)
