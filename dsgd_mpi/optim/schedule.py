"""The learning rate at each step: a pure function, so that resuming needs only the step.

A linear ramp over the first steps (Goyal et al. 2017, arXiv:1706.02677), then constant, cut by 10 at half and at three
quarters of the run (He et al. 2015, section 4.2), or half a cosine down to zero (Loshchilov and Hutter 2016,
arXiv:1608.03983).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import Literal

Kind = Literal["constant", "step", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """`lr`: the peak; `steps`: of the whole run; `warmup`: steps of the ramp."""

    lr: float
    kind: Kind
    steps: int
    warmup: int = 0

    def __call__(self, step: int) -> float:
        """The rate for step 0, 1, ... steps - 1."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = step / self.steps
        if self.kind == "step":
            return self.lr * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)
        if self.kind == "cosine":
            return self.lr * (1 + cos(pi * (step - self.warmup) / (self.steps - self.warmup))) / 2
        return self.lr
