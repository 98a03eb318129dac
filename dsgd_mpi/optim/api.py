from __future__ import annotations
from typing import Any
import numpy as np
from dsgd_mpi.arrays.flat import Array, Layout
class Optimizer:
    trained: slice
    state: dict[str, Array]
    def start(self, layout: Layout, like: Array, kernels: Any = None) -> Optimizer:
        self.trained = slice(0, layout.parameters)
        self.state = {"v": np.zeros_like(like, shape=layout.parameters)}
        return self
    def update(self, x: Array, g: Array, lr: float) -> None:
        raise NotImplementedError
    def change(self, x: Array, g: Array, lr: float) -> Array:
        before = x.copy()
        self.update(x, g, lr)
        return x - before
