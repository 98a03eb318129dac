"""The steps between two synchronizations: all ranks take the same ones, or each takes the next free one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from dsgd_mpi.training.parts import Training
from dsgd_mpi.training.record import Record

Take = Callable[[int], None]                # takes the step of that number
StopAsked = Callable[[], bool]
Walk = Callable[[int, int, Take, StopAsked], int]


def walk_of(run: Training, record: Record, first: int) -> Walk:
    """Collective: how this run's steps are taken; `first` is the one that it starts or resumes at."""
    return SharedOut(run, record, first).walk if run.shared_out else partial(together, run)


def together(run: Training, start: int, goal: int, take: Take, stop_asked: StopAsked) -> int:
    """Collective: all steps from `start` to `goal`, or to the one at which all agree to stop; the step reached."""
    for step in range(start, goal):
        if run.host.stop_agreed(step, stop_asked()):
            return step
        take(step)
    return goal


class SharedOut:
    """The steps of a run as tickets: each rank draws the next when it is free. Collective to construct."""

    def __init__(self, run: Training, record: Record, first: int) -> None:
        self.run, self.record, self.first = run, record, first
        self.drawn = run.host.counters(1)

    def walk(self, start: int, goal: int, take: Take, stop_asked: StopAsked) -> int:
        """Collective: the steps before `goal` that are still free; the step reached, earlier if a rank is to stop.

        A rank that is asked to stop draws all remaining tickets, so that the others find none.
        """
        done = 0
        while (step := self.draw(goal) if self.run.works else self.look_on()) < goal:
            if self.run.works:
                take(step)
                done += 1
            if stop_asked():
                self.drawn.add(0, self.run.steps)
        mean = float(self.run.host.mean(np.array([done], np.float64)).wait()[0])
        reached = start + round(mean * self.run.host.size)
        self.record.line(reached, self.run.schedule(reached - 1))
        return reached

    def draw(self, goal: int) -> int:
        """A step that no other rank has drawn; one past `goal` means that none are left, and is given back at once."""
        step = self.first + self.drawn.add(0)
        if step >= goal:
            self.drawn.add(0, -1)
        return step

    def look_on(self) -> int:
        """For a rank that only serves: the next step."""
        self.run.host.idle()
        step = self.first + int(self.drawn.values()[0])
        self.record.line(min(step, self.run.steps), self.run.schedule(min(step, self.run.steps - 1)))
        return step
