"""The learning rate at each step: a pure function, so that resuming needs only the step.

A linear ramp over the first steps, then constant, divided by 10 at each milestone (He et al. 2015, section 4.2), half a
cosine down to zero (Loshchilov and Hutter 2016, arXiv:1608.03983), or a straight line down to zero.

The ramp is the gradual warm-up of Goyal et al. 2017 (arXiv:1706.02677, section 2.2): from eta, the rate of one worker,
by the same amount at each step to k eta, the rate of k workers that average their gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from typing import Literal

Kind = Literal["constant", "step", "cosine", "linear"]


@dataclass(frozen=True)
class Schedule:
    """`lr`: the peak; `steps`: of the whole run; `warmup`: steps of the ramp from `start` to it.

    `milestones`: the steps at which "step" drops the rate; by default after half and three quarters of the run.

    `start` is `lr` divided by the ranks that train, whatever the algorithm: the rate at which all together move the
    model as one of them would alone. If updates are averaged, `lr` is n times the rate of a rank alone, and all
    together move the model at the rate that each has. If they add up one by one, as on a parameter server, `lr` is the
    rate of a rank alone, but all together move the model at n times that: the ramp from eta to n eta is from lr / n to
    lr for each. To start at `lr` would be no ramp there, though n stale updates at the full rate are what a ramp is to
    avoid. Updates that are divided by their staleness, about n, are averaged. A single rank has no ramp.
    """

    lr: float
    kind: Kind
    steps: int
    warmup: int = 0
    milestones: tuple[float, ...] | None = None
    start: float = 0.0
    units: Callable[[int], float] | None = None     # steps of the batch that all these are counted in, before a step

    def __call__(self, step: float) -> float:
        """The rate for step 0, 1, ... steps - 1."""
        step = self.units(int(step)) if self.units else step
        if step < self.warmup:
            return self.start + (self.lr - self.start) * step / self.warmup
        if self.kind == "step":
            milestones = (self.steps / 2, 3 * self.steps / 4) if self.milestones is None else self.milestones
            return self.lr * 10.0 ** -sum(step >= milestone for milestone in milestones)
        if self.kind == "cosine":
            return self.lr * (1 + cos(pi * (step - self.warmup) / (self.steps - self.warmup))) / 2
        if self.kind == "linear":
            return self.lr * (self.steps - step) / (self.steps - self.warmup)
        return self.lr
