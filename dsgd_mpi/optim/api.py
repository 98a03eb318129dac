"""What all optimizers have in common: they update a flat vector in place and name their state between steps.

    r <- r - 0.1 (r - b)                    batch norm's moving averages, Ioffe and Szegedy 2015

The tail of x holds batch norm's running statistics r, and the tail of g their difference from the batch's, r - b. So an
algorithm can treat both alike: whatever averages gradients or models averages the statistics too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import numpy as np

from dsgd_mpi.arrays.flat import Array, Layout, beside, finite
from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.api import STATISTICS_RATE, Kernels, Step
from dsgd_mpi.kernels.reference import in_blocks

Started = TypeVar("Started", bound="Optimizer")


@dataclass
class Optimizer:
    """The base class; each file in this folder defines one dataclass that derives from it. Its fields are its options.

    An element-wise rule overrides `rule`; one that looks at whole layers overrides `step`. The code runs on both NumPy
    and CuPy arrays. It can update any flat vector, not only a network's:

    >>> from dsgd_mpi.optim.sgd import Sgd
    >>> x = np.ones(3)
    >>> sgd = Sgd(momentum=0, weight_decay=0).start(Layout({"x": (3,)}), like=x)
    >>> sgd.update(x, g=np.ones(3), lr=0.1)
    >>> x
    array([0.9, 0.9, 0.9])
    """

    patience: ClassVar[int] = 50                # updates left out in a row, after which it is `stuck`
    vectors: ClassVar[tuple[str, ...]] = ()     # names in `state` of vectors like the trained one, initially zero
    usual_lr: ClassVar[float] = 0.0             # a rate that suits it, if that is far from SGD's; 0: it is not
    counts: ClassVar[bool] = False              # whether `state` holds `t` too, float64 (1,): the steps taken
    leaves_out = False                          # whether an update whose gradient is not finite is left out,
    skipped = in_a_row = 0                      # how many were, and how many since the last that was not
    stuck = False                               # too many in a row, or x itself is not finite: no update can help

    def start(self: Started, layout: Layout, like: Array, kernels: Kernels | None = None) -> Started:
        """Once, before the first update; returns self.

        `layout`: of the vectors to be updated; biases, and batch norm's scale and shift, are those of one dimension.
        `like`: a vector with the dtype and memory that the state will have. `kernels`: what runs the rule, by a fused
        kernel if there is one; without any it runs as written.
        """
        self.layout, self.like = layout, like
        self.trained = slice(0, layout.parameters)
        self.state: dict[str, Array] = {name: np.zeros_like(like, shape=layout.parameters) for name in self.vectors}
        if self.counts:
            self.state["t"] = np.zeros_like(like, dtype="float64", shape=1)
        self.kernel_skips = kernels is not None and kernels.dtype == "float16"     # and adapts the scale of the loss
        self.in_parts: InParts = kernels.in_parts if kernels else at_once if hasattr(like, "get") else in_cache
        make = kernels.fused.get(self.name) if kernels else None
        self.fused: Step | None = make(self) if make else None
        return self

    @property
    def name(self) -> str:
        """As given to `--optimizer`: its file's."""
        return type(self).__module__.rpartition(".")[2]

    def options(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def update(self, x: Array, g: Array, lr: float) -> None:
        """Updates x in place by the gradient g at a learning rate; both (layout.size,). g is not changed."""
        if self.leaves_out and self.left_out(x, g) and not self.kernel_skips:
            return
        if self.fused:
            self.fused(x, g, lr)
            return
        self.step(x[self.trained], g[self.trained], lr)
        statistics = slice(self.trained.stop, None)
        x[statistics] -= STATISTICS_RATE * g[statistics]

    def left_out(self, x: Array, g: Array) -> bool:
        """Whether g is not finite, so that its update is to be left out. Waits for the device that g is on."""
        if finite(g):
            self.in_a_row = 0
            return False
        self.skipped += 1
        self.in_a_row += 1
        self.stuck = self.in_a_row >= self.patience or not finite(x)
        return True

    def change(self, x: Array, g: Array, lr: float) -> Array:
        """As `update`; returns the change, x - before."""
        before = x.copy()
        self.update(x, g, lr)
        return x - before

    def step(self, x: Array, g: Array, lr: float) -> None:
        """The update of the trained parameters; x and g are (parameters,)."""
        self.in_parts(x.size, lambda part: self.rule(part, x, g, lr))

    def rule(self, part: slice, x: Array, g: Array, lr: float) -> None:
        """The update of x[part] and of that part of the state. Parts may come in any order, and concurrently."""
        raise NotImplementedError

    # Building blocks of rules

    @property
    def layers(self) -> list[tuple[slice, bool]]:
        """The slice of each trained array, and whether it is a weight: of more than one dimension."""
        return [(self.layout.slices[name], len(self.layout.shapes[name]) > 1) for name in self.layout.trained]

    @cached_property
    def weights(self) -> Array:
        """(parameters,): 1 for elements of weights; 0 for biases, and for batch norm's scale and shift."""
        weights = np.zeros(self.trained.stop, self.like.dtype)
        for part, are_weights in self.layers:
            weights[part] = are_weights
        return beside(self.like, weights)


Work = Callable[[slice], None]
InParts = Callable[[int, Work], None]


def in_cache(count: int, work: Work) -> None:
    in_blocks(0, count, work)


def at_once(count: int, work: Work) -> None:
    """On a device: each operation on the whole vector."""
    work(slice(0, count))


def bias_corrections(t: Array, beta1: float, beta2: float, dtype: Any) -> tuple[Array, Array]:
    """1 / (1 - beta1^t) and 1 / sqrt(1 - beta2^t), each (1,): for moving averages that started at zero.

    Kingma and Ba 2014 (arXiv:1412.6980), section 3. Powers are taken in float64: 1 - beta2 has few digits in float32.
    """
    first, second = 1 / (1 - beta1**t), 1 / np.sqrt(1 - beta2**t)
    return first.astype(dtype), second.astype(dtype)


def trust_ratio(above: Array, below: Array) -> Array:
    """above / below, two scalars; 1 if either is zero."""
    usable, one = (above > 0) & (below > 0), np.ones_like(above)
    return np.where(usable, above, one) / np.where(usable, below, one)


def decays(optimizer: Any, are_weights: bool) -> bool:
    """Whether a layer decays, by the options `decay` and `adapt`: weights always do."""
    return are_weights or (optimizer.adapt if optimizer.decay == "adapted" else optimizer.decay) == "all"


def check_betas(optimizer: Any) -> None:
    """UsageError unless both are in [0, 1)."""
    for key in ("beta1", "beta2"):
        if not 0 <= getattr(optimizer, key) < 1:
            raise UsageError(f"{optimizer.name}: {key}: expected at least 0 and less than 1, found "
                             f"{getattr(optimizer, key)}")
