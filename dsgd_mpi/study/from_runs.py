"""The cluster on which runs would have taken as long as they took: `calibrate --from runs/scaling-123`.

A gradient's time is what the runs say: all of a step in which rank 0 did not wait. Rates and latencies of the links are
those with which simulated runs come nearest to the real ones, by the squared logarithms of the step times. How far that
can be trusted on other numbers of ranks is seen by leaving out one number of ranks at a time, and fitting the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np

from dsgd_mpi import algorithms
from dsgd_mpi.arrays.flat import Layout
from dsgd_mpi.config import Config
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.net.simulated.host import SimulatedHost
from dsgd_mpi.net.simulated.machine import Link, Machine
from dsgd_mpi.nn import models
from dsgd_mpi.study.axes import named
from dsgd_mpi.study.fits import as_rounded, gradient_of
from dsgd_mpi.study.plot import read, read_json, run_folders
from dsgd_mpi.study.simulate import ELEMENTS, zeros
from dsgd_mpi.study.style import COLOURS, MARKERS, STYLE, canvas
from dsgd_mpi.training.build import optimizer_of

STEPS = 12                                  # that are simulated; the first does not count
FINEST, AGAIN = math.log(1.02), math.log(2)     # of the search's steps: the last, and the first of one that goes on
PRIOR = 1e-5                                # keeps what no run tells near its start
FROM = {"card": Link(1e9, 2e-5), "node": Link(1e10, 1e-6)}


@dataclass(frozen=True)
class Taken:
    """What runs of an algorithm on a number of ranks have taken."""

    way: str
    config: Config
    ranks: int
    per_node: int
    step_s: float                           # of rank 0: the median
    own_s: tuple[float, ...] = ()           # of a step without waiting; none if rank 0 only serves

    def wider(self, ranks: int, per_node: int) -> Taken:
        return replace(self, ranks=ranks, per_node=per_node, step_s=math.nan)


@dataclass(frozen=True)
class Found:
    """The cluster, and how well it fits."""

    machine: Machine
    runs: list[Taken]
    simulated_s: list[float]                # steps of the runs
    others: list[Machine]                   # without one number of ranks each

    @property
    def crosses(self) -> bool:
        """Whether any run has crossed from node to node."""
        return any(run.ranks > run.per_node for run in self.runs)

    @property
    def error(self) -> float:
        """The root mean square of the logarithms of simulated / measured."""
        logs = [math.log(simulated / run.step_s) for run, simulated in zip(self.runs, self.simulated_s, strict=True)]
        return math.sqrt(sum(each**2 for each in logs) / len(logs))

    def predicted(self, run: Taken) -> tuple[float, float, float]:
        """Lowest, likely and highest seconds of a step: with all clusters that were fitted, and what none explains."""
        likely = step_s(run, self.machine)
        every = [likely, *(step_s(run, each) for each in self.others)]
        return min(every) * math.exp(-self.error), likely, max(every) * math.exp(self.error)


def inferred(folders: Sequence[Path]) -> Found:
    """From run folders, or folders of them. UsageError says why they tell nothing."""
    given = tuple(folder for folder in folders if not folder.is_file()) or tuple(folders)   # as runs/* gives files, too
    runs = joined(each for folder in run_folders(given) if (each := taken(folder)))
    kinds = {(run.config.model, run.config.batch) for run in runs}
    if len(kinds) > 1:
        named = ", ".join(f"{model} with {batch}" for model, batch in sorted(kinds))
        raise UsageError(f"--from: expected runs of one model and one batch a rank, found {named} images; give those "
                         "of one kind")
    if not any(run.own_s for run in runs) or not any(run.ranks > 1 for run in runs):
        raise UsageError("--from: expected finished runs over MPI, some on more than one rank, with at least three "
                         "lines in metrics.jsonl; found none")
    start = with_gradient(runs)
    machine = fitted(start, runs)
    counts = sorted({run.ranks for run in runs if run.ranks > 1})
    others = [fitted(machine, [run for run in runs if run.ranks != count], AGAIN) for count in counts
              if len(counts) > 1]
    return Found(as_rounded(machine), runs, [step_s(run, machine) for run in runs], others)


def taken(folder: Path) -> Taken | None:
    """None if the run is not of use: not finished, simulated, or too short."""
    run = read(folder)
    summary, env = read_json(folder / "summary.json"), read_json(folder / "env.json")
    if run.status != "finished" or "simulated" in summary or not env.get("ranks"):
        return None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    times = [interval(before, after) for before, after in pairwise(lines) if after["step"] > before["step"]]
    if len(times) < 2:
        return None
    hosts = [place["host"] for place in env["ranks"]]
    serves = algorithms.serving(built(run.config), len(hosts)) > 0
    way = named(run.config.algorithm, run.config.algorithm_options())
    return Taken(way, run.config, len(hosts), max(map(hosts.count, hosts)), median(each[0] for each in times),
                 () if serves else tuple(spread_out([each[1] for each in times], lines[1]["step"] - lines[0]["step"])))


def interval(before: dict[str, Any], after: dict[str, Any]) -> tuple[float, float]:
    """Seconds a step between two lines, and those of them without waiting."""
    steps, wall, evaluation, wait = (float(after[key] - before[key]) for key in ("step", "wall_s", "eval_s", "wait_s"))
    return (wall - evaluation) / steps, max(0.0, wall - evaluation - wait) / steps


def spread_out(means: list[float], steps: int) -> list[float]:
    """Of single steps, from means of so many."""
    middle = float(np.mean(means))
    return [max(middle / 10, middle + (each - middle) * math.sqrt(steps)) for each in means]


def built(config: Config) -> algorithms.Algorithm:
    return algorithms.build(config.algorithm, config.algorithm_options())


def joined(runs: Iterable[Taken]) -> list[Taken]:
    """Those that were repeated are one, with the median of their times."""
    found: dict[tuple[Any, ...], list[Taken]] = {}
    for run in runs:
        key = run.way, run.ranks, run.per_node, run.config.model, run.config.batch
        found.setdefault(key, []).append(run)
    return [replace(same[0], step_s=median(run.step_s for run in same), own_s=sum((run.own_s for run in same), ()))
            for _, same in sorted(found.items(), key=lambda each: each[0])]


def with_gradient(runs: list[Taken]) -> Machine:
    """Links are a guess; nodes as full as they were, and a gradient as there: with fewer ranks it may be faster."""
    fullest = max(run.per_node for run in runs if run.own_s)
    own = [each for run in runs if run.per_node == fullest for each in run.own_s]
    config = runs[0].config
    gradient, _ = gradient_of([own], config.model, config.batch, models.usual(config.model)[1])
    ways = ", ".join(sorted({run.way for run in runs}))
    ranks = ", ".join(str(count) for count in sorted({run.ranks for run in runs}))
    return Machine(name="from runs", about=f"Fitted by calibrate to runs of {config.model}, batch {config.batch}, on "
                   f"{ranks} ranks: {ways}.", ranks_per_node=fullest, card=FROM["card"], node=FROM["node"],
                   collective="ring", gradient=gradient)


def fitted(start: Machine, runs: list[Taken], first: float = math.log(10)) -> Machine:
    """With the rates and latencies of those links that the runs have used."""
    kinds = [kind for kind, used in (("card", any(run.ranks > run.per_node for run in runs)),
                                     ("node", any(run.per_node > 1 for run in runs))) if used]
    names = [(kind, what) for kind in kinds for what in ("bytes_per_s", "latency_s")]
    origin = [math.log(getattr(getattr(start, kind), what)) for kind, what in names]

    def machine_at(logs: list[float]) -> Machine:
        found = start
        for (kind, what), each in zip(names, logs, strict=True):
            link = replace(getattr(found, kind), **{what: math.exp(each)})
            found = replace(found, **cast(Any, {kind: link}))
        return found

    def cost(logs: list[float]) -> float:
        machine = machine_at(logs)
        far = sum((each - begin) ** 2 for each, begin in zip(logs, origin, strict=True))
        return PRIOR * far + sum(math.log(step_s(run, machine) / run.step_s) ** 2 for run in runs) / len(runs)
    return machine_at(least(cost, origin, first))


def least(cost: Callable[[list[float]], float], start: list[float], step: float) -> list[float]:
    """Where the cost is least, near the start: steps along one axis after the other, shorter where none helps."""
    at, best = start, cost(start)
    while step > FINEST:
        moved = False
        for axis in range(len(at)):
            for way in (step, -step):
                trial = [each + way * (place == axis) for place, each in enumerate(at)]
                if (found := cost(trial)) < best:
                    at, best, moved = trial, found, True
                    break
        step = step if moved else step / 2
    return at


def step_s(run: Taken, machine: Machine) -> float:
    """Simulated: the mean over steps and ranks that work."""
    graph = models.graph(run.config.model, *models.usual(run.config.model))
    machine = replace(machine, ranks_per_node=run.per_node,
                      scale=Layout(graph.trained, graph.statistics).size / ELEMENTS)

    fresh = built(run.config)

    def main(host: SimulatedHost) -> list[float]:
        x, algorithm = np.zeros(ELEMENTS, np.float32), copy(fresh)
        optimizer = optimizer_of(run.config, algorithm).start(Layout({"x": x.shape}), x)
        algorithm.start(cast(Any, host), x, optimizer)
        gradient, times = zeros(host), [host.now()]
        for _ in range(STEPS):
            algorithm.step(x, gradient, 0.0)
            times.append(host.now())
        algorithm.rest(x)
        return times
    times = np.array(Cluster(run.ranks, machine, run.config.seed).run(main))
    works = algorithms.serving(fresh, run.ranks)
    return float((times[works:, -1] - times[works:, 1]).mean()) / (STEPS - 1)


def told(found: Found, most: int) -> list[str]:
    """Lines: each kind of run, measured and simulated, and what is predicted for more ranks."""
    lines = [f"{'':24} {'ranks':>6} {'measured':>10} {'simulated':>10}"]
    for run, simulated in zip(found.runs, found.simulated_s, strict=True):
        lines.append(f"{run.way:24} {run.ranks:6} {1e3 * run.step_s:7.2f} ms {1e3 * simulated:7.2f} ms "
                     f"{simulated / run.step_s - 1:+.0%}")
    for run in beyond(found, most):
        low, likely, high = found.predicted(run)
        images = run.config.batch * (run.ranks - algorithms.serving(built(run.config), run.ranks))
        lines.append(f"{run.way:24} {run.ranks:6} {'':>10} {1e3 * likely:7.2f} ms, {1e3 * low:.2f} to {1e3 * high:.2f}"
                     f"; {images / likely:,.0f} images/s, {images / high:,.0f} to {images / low:,.0f}")
    if not found.crosses:
        lines.append("no run has crossed from node to node: what is predicted is for a single node")
    return lines


def beyond(found: Found, most: int) -> list[Taken]:
    """Each algorithm on 2, 4, ... times its most ranks, up to `most`."""
    widest = {run.way: run for run in sorted(found.runs, key=lambda run: run.ranks)}
    wider = []
    for run in widest.values():
        ranks = 2 * run.ranks
        while ranks <= most:
            wider.append(run.wider(ranks, min(ranks, found.machine.ranks_per_node) if found.crosses else ranks))
            ranks *= 2
    return wider


def draw(found: Found, most: int, path: Path) -> None:
    """Step times against ranks: measured, simulated, and predicted with their intervals."""
    from matplotlib import style

    with style.context(["default", STYLE]):
        figure, ((axes,),) = canvas(1, 1, 4.2)
        wider = beyond(found, most)
        for number, way in enumerate(sorted({run.way for run in found.runs})):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            mine = sorted(((run, simulated) for run, simulated in zip(found.runs, found.simulated_s, strict=True)
                           if run.way == way), key=lambda each: each[0].ranks)
            last = mine[-1][0].ranks, mine[-1][1]
            axes.plot([run.ranks for run, _ in mine], [1e3 * run.step_s for run, _ in mine], marker, color=colour,
                      label=f"{way}, measured")
            axes.plot([run.ranks for run, _ in mine], [1e3 * simulated for _, simulated in mine], "-", color=colour)
            ahead = [(run.ranks, *found.predicted(run)) for run in wider if run.way == way]
            ranks, low, likely, high = (list(each) for each in zip(
                (last[0], last[1], last[1], last[1]), *ahead, strict=True))
            axes.plot(ranks, [1e3 * each for each in likely], "--", color=colour)
            axes.fill_between(ranks, [1e3 * each for each in low], [1e3 * each for each in high], color=colour,
                              alpha=0.15, linewidth=0)
        axes.set(xlabel="ranks", ylabel="step, ms", ylim=(0, None))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_title("points: measured; lines: simulated; dashed, with intervals: predicted", loc="left",
                       fontsize="medium")
        axes.legend(frameon=False)
        figure.savefig(path, dpi=150, format="png")
