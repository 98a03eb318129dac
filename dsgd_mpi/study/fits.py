"""From timings to the parameters of a simulated cluster, by least squares of the relative errors.

Sizes near the model's count most. No latency, rate or factor is negative: what would be is left out, and the others are
fitted again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.simulated.clock import Clock
from dsgd_mpi.net.simulated.machine import Gradient, Link, Machine, Slow
from dsgd_mpi.net.simulated.wires import Cost, Wires
from dsgd_mpi.study.timings import Groups, Points

QUANTILES = 64                              # of the gradient's time
UNEVEN = 0.05                               # a rank whose median is so far from the others' is slower or faster
WAYS = ("ring", "halving", "tree")
OWNERS = {"other": "another's", "own": "its own"}
CLEARLY, NEGLIGIBLE = 1.5, 1e-6            # of squared relative errors
LEAST_S = 1e-9                              # what is shorter is not measured
FASTEST = 1e15                              # bytes per second: a size that costs nothing


@dataclass(frozen=True)
class Fit:
    """One panel of the picture: measured points and the curve through them."""

    title: str
    points: Points
    curve: list[float]                      # seconds, at the points' bytes

    @property
    def error(self) -> float:
        """The median of the relative errors."""
        seconds = np.maximum(self.points.seconds, LEAST_S)
        return float(np.median(np.abs(np.array(self.curve) / seconds - 1)))


def least_squares(columns: Sequence[Sequence[float]], seconds: Sequence[float],
                  weights: Sequence[float] | None = None) -> list[float]:
    """Factors >= 0 of the columns whose sum is nearest to `seconds`, relative to them."""
    a, t = np.array(columns, float).T, np.maximum(np.array(seconds, float), LEAST_S)
    w = (np.ones(len(t)) if weights is None else np.array(weights, float)) / t
    left = list(range(a.shape[1]))
    while left:
        scale = np.abs(a[:, left]).max(axis=0)
        scale[scale == 0] = 1.0
        found = np.linalg.lstsq(a[:, left] / scale * w[:, None], t * w, rcond=None)[0] / scale
        if (found >= 0).all():
            return [float(found[left.index(each)]) if each in left else 0.0 for each in range(a.shape[1])]
        left.remove(left[int(np.argmin(found * scale))])
    return [0.0] * a.shape[1]


def near(sizes: Sequence[float], own: int) -> list[float]:
    """What each size counts for: the model's 4 times as much as one that is 8 times as long."""
    return [1 / (1 / 4 + abs(math.log(max(size, 1) / own)) / math.log(8) * 3 / 4) for size in sizes]


def line(points: Points, own: int) -> tuple[float, float]:
    """Seconds of an empty message and seconds a byte."""
    latency, byte = least_squares([[1.0] * len(points.bytes), points.bytes], points.seconds, near(points.bytes, own))
    return latency, byte


def link_of(points: Points, own: int, shared_by: int = 1) -> Link:
    """Of an exchange, in which each direction has a link of its own, that so many ranks share."""
    latency, byte = line(points, own)
    return Link(min(FASTEST, shared_by / byte) if byte else FASTEST, latency)


def on_line(points: Points, latency: float, byte: float) -> list[float]:
    return [latency + byte * size for size in points.bytes]


def with_mean(machine: Machine, points: Points, size: int, own: int) -> tuple[Machine, list[float]]:
    """The way to take a mean that fits best, what each of its messages costs more than others, and the curve.

    On one number of ranks the ways hardly differ but by these costs: it is the ring, as `MpiHost` takes it, unless
    another fits clearly better.
    """
    found: dict[str, tuple[float, Machine, list[float]]] = {}
    weights = near(points.bytes, own)
    for way in WAYS:
        def costs(of: Machine, way: str = way) -> list[Cost]:
            wires = Wires(Clock(), of, size)
            return [wires.costs(each, range(size))[way] for each in points.bytes]
        once = costs(replace(machine, mean_s=1.0))
        messages = once[0].latency_s - costs(machine)[0].latency_s      # those that follow one another
        late = once[0].latency_s - messages
        bytes_s = [cost.seconds - cost.latency_s for cost in once]
        more = [max(LEAST_S, each - late) for each in points.seconds]
        shares = [weight * each / whole for weight, each, whole in zip(weights, more, points.seconds, strict=True)]
        added, slower = least_squares([[messages] * len(more), bytes_s], more, shares)
        curve = [late + messages * added + slower * each for each in bytes_s]
        error = float(np.average((np.array(curve) / points.seconds - 1) ** 2, weights=np.array(weights)))
        found[way] = (error if way == WAYS[0] else CLEARLY * error + NEGLIGIBLE,
                      replace(machine, collective=cast(Any, way), mean_s=added, mean_factor=slower), curve)
    return min(found.values(), key=lambda each: each[0])[1:]


def gradient_of(seconds: Sequence[Sequence[float]], model: str, batch: int,
                image: tuple[int, ...]) -> tuple[Gradient, tuple[Slow, ...]]:
    """The histogram of all ranks' steps, and the ranks that are slower or faster than most; seconds by rank."""
    medians = np.array([np.median(each) for each in seconds])
    usual = float(np.median(medians))
    uneven = {rank: float(median / usual) for rank, median in enumerate(medians) if abs(median / usual - 1) > UNEVEN}
    pooled = np.concatenate([np.array(each) / uneven.get(rank, 1.0) for rank, each in enumerate(seconds)])
    count = min(QUANTILES, len(pooled))
    histogram = np.quantile(pooled, (np.arange(count) + 0.5) / count)
    return (Gradient(seconds=rounded(pooled.mean()), model=model, batch=batch, image=image,
                     histogram=tuple(rounded(each) for each in histogram)),
            tuple(Slow(ranks=(rank,), factor=rounded(factor)) for rank, factor in uneven.items()))


def rounded(x: float) -> float:
    """To four digits: more are not measured."""
    return float(f"{x:.4g}")


def machine_of(timings: dict[str, Points], steps: Sequence[Sequence[float]], groups: Groups, own: int, busy_s: float,
               model: str, batch: int, image: tuple[int, ...], name: str, about: str) -> tuple[Machine, list[Fit]]:
    """The whole cluster, and how well each part of it fits."""
    gradient, slow = gradient_of(steps, model, batch, image)
    machine = Machine(name=name, about=about, ranks_per_node=groups.per_node, gradient=gradient, slow=slow)
    fits = []
    for kind, field, sharing in (("within", "node", 1), ("between", "card", groups.per_node)):
        if kind in timings:
            link = link_of(timings[kind], own, sharing)
            machine = replace(machine, **cast(Any, {field: link}))
            fits.append(Fit(f"exchange {kind} node{'s' if field == 'card' else ''}", timings[kind],
                            on_line(timings[kind], link.latency_s, sharing / link.bytes_per_s)))
    if "mean" in timings:
        machine, curve = with_mean(machine, timings["mean"], groups.size, own)
        fits.append(Fit(f"mean of {groups.size} ranks, as a {machine.collective}", timings["mean"], curve))
        machine, more = one_sided(machine, timings, groups, own, busy_s)
        fits += more
    return as_rounded(machine), fits


def one_sided(machine: Machine, timings: dict[str, Points], groups: Groups, own: int,
              busy_s: float) -> tuple[Machine, list[Fit]]:
    """What a one-sided call adds to its messages; how long a computing rank lets one wait."""
    link, sharing = (machine.card, groups.per_node) if groups.nodes > 1 else (machine.node, 1)
    fits, lines = [], {}
    for kind in ("read other", "add other", "read own", "add own"):
        lines[kind] = line(timings[kind], own)
        verb, whose = kind.split()
        if max(timings[kind].seconds) > LEAST_S:        # on a simulated cluster its own part may take no time
            fits.append(Fit(f"{verb} {OWNERS[whose]} part", timings[kind], on_line(timings[kind], *lines[kind])))
    # a read is two messages and one service, an addition one of each
    added = [lines["read other"][0] - 2 * link.latency_s, lines["add other"][0] - link.latency_s]
    idle = float(np.interp(own, timings["add other"].bytes, timings["add other"].seconds))
    late = busy_s - idle
    return replace(
        machine, one_sided_s=max(0.0, sum(added) / 2), read_factor=lines["read other"][1] * link.bytes_per_s / sharing,
        add_factor=lines["add other"][1] * link.bytes_per_s / sharing,
        own_factor=(lines["read own"][1] + lines["add own"][1]) / 2 * link.bytes_per_s,
        enters_mpi_s=2 * late if late > 0.5 * idle else 0.0), fits


def as_rounded(thing: Any) -> Any:
    """A dataclass whose numbers have four digits."""
    return replace(thing, **{key: as_rounded(value) if hasattr(value, "__dataclass_fields__") else rounded(value)
                             for key, value in vars(thing).items()
                             if isinstance(value, float) or hasattr(value, "__dataclass_fields__")})


def percent(x: Array | float) -> str:
    return f"{100 * float(x):.0f} %"
