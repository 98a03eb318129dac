"""How long each rank computes at each step: a draw that depends on the seed, the rank and the step alone."""

from __future__ import annotations

import math

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.delays import drawn
from dsgd_mpi.net.simulated.machine import Machine, Slow

BLOCK = 64                                  # steps that are drawn at once, for all ranks


class Gradients:
    """The seconds of every gradient on this many ranks."""

    def __init__(self, machine: Machine, size: int, seed: int = 0) -> None:
        self.machine, self.size, self.seed = machine, size, seed
        self.blocks: dict[int, Array] = {}
        self.slowed = [(slow, chosen(machine, slow, number, size, seed)) for number, slow in enumerate(machine.slow)]
        self.episodes = [(slow, ranks) for slow, ranks in self.slowed if slow.end_s]

    def seconds(self, rank: int, step: int, now: float) -> float:
        """Of the `step`-th gradient of this rank, which begins now."""
        given = self.machine.gradient.seconds
        if callable(given):
            return given(rank, step)
        number, within = divmod(step, BLOCK)
        if number not in self.blocks:
            if len(self.blocks) > 8:        # ranks may be some steps apart
                del self.blocks[min(self.blocks)]
            self.blocks[number] = self._block(number)
        seconds = float(self.blocks[number][within, rank])
        for slow, ranks in self.episodes:
            if ranks[rank] and lasts(slow, now):
                seconds = seconds * slow.factor + slow.seconds
        return seconds

    def _block(self, number: int) -> Array:
        of = self.machine.gradient
        draw = np.random.default_rng((self.seed, 0, number))
        shape = BLOCK, self.size
        assert not callable(of.seconds)
        if of.histogram:
            seconds = draw.choice(np.array(of.histogram), shape)
        else:
            seconds = np.full(shape, of.seconds)
            if of.jitter:
                seconds *= np.exp(draw.normal(-of.jitter**2 / 2, of.jitter, shape))
            if of.tail_probability:
                tail = draw.random(shape) < of.tail_probability
                seconds = np.where(tail, seconds * (1 + draw.pareto(of.tail_alpha, shape)), seconds)
        for slow, ranks in self.slowed:
            if not slow.end_s:
                seconds[:, ranks] = seconds[:, ranks] * slow.factor + drawn(
                    slow.distribution, slow.seconds, draw, (BLOCK, int(ranks.sum())))
        return seconds


def chosen(machine: Machine, slow: Slow, number: int, size: int, seed: int) -> Array:
    """Which ranks one entry of `slow` is about: bool (size,)."""
    every = np.arange(size)
    named = np.isin(every, slow.ranks) | np.isin(every // machine.ranks_per_node, slow.nodes)
    drawn = np.random.default_rng((seed, 1, number)).permutation(size)[: round(slow.share * size)]
    return named | np.isin(every, drawn)


def lasts(slow: Slow, now: float) -> bool:
    """Whether now is in an episode."""
    if now < slow.begin_s:
        return False
    since = now - slow.begin_s
    if slow.every_s:
        since = math.fmod(since, slow.every_s)
    return since < slow.end_s - slow.begin_s
