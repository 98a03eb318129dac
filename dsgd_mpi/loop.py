"""The training loop, the only one: the same for every algorithm, on every net.

All ranks do the same steps together; or, where these need nobody else, the steps of a run are shared out, and each rank
does the next one that nobody has begun. Either way they meet where the run is evaluated, saved or ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

import numpy as np

from dsgd_mpi.evaluate import Training, evaluate, take_answer
from dsgd_mpi.flat import Array
from dsgd_mpi.run.record import Record

BETWEEN_S = 5e-4                            # of a slowed computation between two polls, as between two layers


def train(run: Training, record: Record, first: int, stop_asked: Callable[[], bool]) -> int:
    """Everyone, from step `first` on: the step reached, short of the last where all agreed to stop. Checkpointed."""
    host, model, x = run.host, run.model, run.model.flat
    run.algorithm.start(host, x, run.sgd)

    with closing(run.batches.stream(record.rank_steps)) as batches:
        def gradient(at: Array, /, ready: Callable[[Array, slice], None] | None = None) -> Array:
            if at is not x:
                x[:] = at
            with record.data:
                images, labels = next(batches)
            g = model.flat_gradient
            handed_out = partial(ready, g) if ready else None
            with record.compute:
                record.loss(host.compute(model.loss_and_gradient, images, labels, handed_out, host.progress))
                linger(run.delay_s, host.progress)
            return g

        def take(step: int) -> None:
            run.algorithm.step(x, gradient, run.schedule(step))
            record.step(step + 1, run.schedule(step))

        walk = SharedOut(run, record, first).walk if run.shared_out else partial(together, run)
        reached = first
        while reached < run.steps:
            goal = next_meeting(run, reached)
            reached = walk(reached, goal, take, stop_asked)
            stopped = reached < goal
            if not stopped and due(reached, run.eval_every, run.steps):
                with record.evaluating:
                    found = evaluate(run, reached)
                record.evaluation(reached, run.schedule(reached - 1), **found)
            if stopped or due(reached, run.checkpoint_every, run.steps):
                run.checkpoints.save(reached, x, run.sgd, run.algorithm, record.totals())
            if stopped:
                return reached
    take_answer(run, run.steps)
    return run.steps


def due(step: int, every: int, last: int) -> bool:
    return step == last or bool(every and step % every == 0)


def next_meeting(run: Training, step: int) -> int:
    """The next step after which there is something that all do together."""
    regular = [every for every in (run.eval_every, run.checkpoint_every) if every]
    return min(run.steps, *((step // every + 1) * every for every in regular))


def together(run: Training, start: int, goal: int, take: Callable[[int], None], stop_asked: Callable[[], bool]) -> int:
    """Everyone: all steps from `start` to `goal`, or to the one that all agree to stop at; the step reached."""
    for step in range(start, goal):
        if run.host.stop_agreed(step, stop_asked()):
            return step
        take(step)
    return goal


class SharedOut:
    """The steps of a run as tickets, of which every rank draws the next when it is free. Collective to make."""

    def __init__(self, run: Training, record: Record, first: int) -> None:
        self.run, self.record, self.first = run, record, first
        self.drawn = run.host.counters(1)

    def walk(self, start: int, goal: int, take: Callable[[int], None], stop_asked: Callable[[], bool]) -> int:
        """Everyone: the steps before `goal` that nobody has begun; the step reached, short of it if one asked to stop.

        Who is asked to stop draws all tickets that are left, so that the others find none.
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
        """A step that nobody else has; one beyond the goal is given back at once, and none are left."""
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


def linger(seconds: float, between: Callable[[], None]) -> None:
    """Takes time as a slow computation would: messages move on meanwhile."""
    end = time.perf_counter() + seconds
    while seconds and time.perf_counter() < end:
        between()
        time.sleep(BETWEEN_S)
