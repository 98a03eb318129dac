"""Wait-avoiding group averaging (WAGMA-SGD; Li et al. 2020, arXiv:2005.00124): late ranks are averaged as they were.

    x_i <- x_i - eta v_i,   which the others may read from now on
    x_i <- mean of x_i and what the other ranks of its group have published last;   every tau steps: of all ranks, x_i

The groups of a step partition all ranks at random. Models are in shared memory: nobody waits for a rank that is late,
but its model of an earlier step counts, except every tau steps, where all wait for all. The paper's average of a
group is one all-reduce that the first rank to come begins, and to which late ranks contribute what they had; here
each rank takes a mean when it gets there, so that those of a group may differ. Batch norm's running statistics are
averaged every tau steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from dsgd_mpi.algorithms import Algorithm, Gradient
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.topology import partition
from dsgd_mpi.optim.api import Optimizer


@dataclass
class WaitAvoiding(Algorithm):
    period: Annotated[int, 1] = 10          # tau
    group: Annotated[int, 0] = 0            # ranks of a group, more or less; 0: the square root of all, as in the paper
    seed: Annotated[int, 0] = 0             # of the groups, the same on all ranks

    keeps = "t", "published"
    one_sided = True
    traffic = "a one-sided read of the models of each group; one average of all models every `period` steps"
    drift = "0.7 to 1: what late ranks have published pulls back"
    variants = {}, {"period": 3, "group": 3}
    published = np.zeros(0)                 # what the others read of this rank's x

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        super().start(net, x, optimizer)
        if not len(self.published):
            self.published = x[self.trained].copy()
        self.models = net.share(self.published)
        self.groups = max(1, round(net.size / (self.group or net.size**0.5)))   # of a step

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        self.optimizer.update(x, gradient(x), lr)
        self.t += 1
        if self.t % self.period == 0:
            self.net.mean(x).wait()
        self.publish(x)
        if self.t % self.period:
            others = self.others()
            for peer in others:
                x[self.trained] += self.models.read(peer)
            x[self.trained] /= 1 + len(others)

    def publish(self, x: Array) -> None:
        self.models.add(self.net.rank, x[self.trained] - self.published)
        self.published = self.models.read(self.net.rank)

    def others(self) -> list[int]:
        """Of this rank's group at this step."""
        group = partition(int(self.t), self.net.size, self.groups, self.seed)
        return [int(rank) for rank in np.flatnonzero(group == group[self.net.rank]) if rank != self.net.rank]
