"""The learning rate at each step: a pure function, so that resuming needs only the step.

A linear ramp over the first steps (Goyal et al. 2017, arXiv:1706.02677), then constant, divided by 10 at each milestone
(He et al. 2015, section 4.2), half a cosine down to zero (Loshchilov and Hutter 2016, arXiv:1608.03983), or a straight
line down to zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import Literal

Kind = Literal["constant", "step", "cosine", "linear"]


@dataclass(frozen=True)
class Schedule:
    """`lr`: the peak; `steps`: of the whole run; `warmup`: steps of the ramp.

    `milestones`: the steps at which "step" drops the rate; by default after half and three quarters of the run.
    """

    lr: float
    kind: Kind
    steps: int
    warmup: int = 0
    milestones: tuple[float, ...] | None = None

    def __call__(self, step: int) -> float:
        """The rate for step 0, 1, ... steps - 1."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.kind == "step":
            milestones = (self.steps / 2, 3 * self.steps / 4) if self.milestones is None else self.milestones
            return self.lr * 10.0 ** -sum(step >= milestone for milestone in milestones)
        if self.kind == "cosine":
            return self.lr * (1 + cos(pi * (step - self.warmup) / (self.steps - self.warmup))) / 2
        if self.kind == "linear":
            return self.lr * (self.steps - step) / (self.steps - self.warmup)
        return self.lr
