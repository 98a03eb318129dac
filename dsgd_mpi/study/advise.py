"""`advise`: which algorithm for this cluster, by what a step takes there and what an epoch is worth with it.

    time to accuracy = images to the target / images per second

Images per second are simulated, without gradients, for each algorithm in a minute. What an epoch is worth comes from
the studies that have been run: the epochs to their target accuracy divided by those of all-reduce on as many ranks,
interpolated along log2 of the ranks. Where no study has been run there is no evidence, and it says so.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from statistics import mean
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from dsgd_mpi import algorithms
from dsgd_mpi.config import Config, convert
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.simulated import machine as machines
from dsgd_mpi.net.simulated.machine import Machine, Slow
from dsgd_mpi.study.axes import named
from dsgd_mpi.study.plan import read
from dsgd_mpi.study.results import outcomes
from dsgd_mpi.study.simulate import Simulation, run

STUDIES = Path(__file__).parents[2] / "jobs" / "studies"
STEPS = 16                                  # simulated of each
BASELINE = Config.algorithm


@dataclass
class Evidence:
    """Of one algorithm: epochs to the target, relative to all-reduce's on as many ranks, in studies."""

    points: dict[int, list[float]] = field(default_factory=dict)    # by ranks, a number for each study and seed
    studies: set[str] = field(default_factory=set)

    def at(self, ranks: int) -> tuple[float, float, float] | None:
        """Lowest, mean and highest; on a straight line in log2 of the ranks. None beyond what was studied."""
        known = sorted(self.points)
        if not known or not known[0] <= ranks <= known[-1]:
            return None
        low, middle, high = (
            float(np.interp(math.log2(ranks), np.log2(known), [of(self.points[each]) for each in known]))
            for of in (min, mean, max))
        return low, middle, high


@dataclass
class Advice:
    """One line of the table."""

    name: str
    images_per_s: float
    idle: float                             # the share of a step in which a rank does not compute
    bytes_per_step: float                   # that a rank sends
    epochs: tuple[float, float, float] | None = None    # relative to all-reduce
    rests_on: str = ""
    why: str = ""

    def hours(self, images: float) -> tuple[float, float, float] | None:
        """Lowest, mean and highest, if all-reduce needs so many images."""
        if not self.epochs:
            return None
        low, middle, high = (images * each / self.images_per_s / 3600 for each in self.epochs)
        return low, middle, high


def evidence(files: Iterable[Path]) -> dict[str, Evidence]:
    """By algorithm and options; of all studies that have results."""
    found: dict[str, Evidence] = {}
    for file in files:
        study = read(file, "")
        if study.target is None or not study.results.exists():
            continue
        by_place: dict[Any, dict[str, list[float]]] = {}
        for outcome in outcomes(study):
            reached = [at.epochs for result in outcome.results if (at := result.reached(study.target))]
            if reached:
                place = outcome.group.ranks, tuple(sorted(outcome.group.facet.items()))
                way = outcome.group.cell.way
                by_place.setdefault(place, {})[named(way.name, way.given())] = reached
        for (ranks, _), epochs in by_place.items():
            if BASELINE not in epochs:
                continue
            for name, values in epochs.items():
                own = found.setdefault(name, Evidence())
                own.points.setdefault(ranks, []).extend(value / mean(epochs[BASELINE]) for value in values)
                own.studies.add(study.name)
    return found


def slowed(text: str) -> Slow:
    """Of `--slow 2%:3x`: a share of the ranks, and how many times longer they take."""
    match = re.fullmatch(r"([\d.]+)%:([\d.]+)x", text.strip())
    if not match:
        raise UsageError(f"--slow: expected SHARE%:FACTORx, e.g. 2%:3x, found {text!r}")
    share, factor = (convert(float, each, "--slow") for each in match.groups())
    if share > 100 or factor <= 0:
        raise UsageError(f"--slow: expected a share of at most 100% and a factor above 0, found {text!r}")
    return Slow(share=share / 100, factor=factor)


def advised(machine: Machine, ranks: int, model: str, batch: int, known: dict[str, Evidence]) -> list[Advice]:
    """All candidates, those with evidence first, the fastest first."""
    found, every = [], candidates()
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        summaries = pool.map(measured, every, repeat(batch), repeat(Simulation(machine, ranks, "none", model)))
    for candidate, figures in zip(every, summaries, strict=True):
        own = known.get(candidate, Evidence())
        rests_on = (f"{', '.join(sorted(own.studies))}, {min(own.points)} to {max(own.points)} ranks" if own.points
                    else "no study")
        speed = sum(figures["rank_images_per_s"])       # each rank's own: nobody waits for the end of a slow one's run
        stepping_s = mean(STEPS * batch / rate for rate in figures["rank_images_per_s"] if rate)    # who works
        found.append(Advice(candidate, speed, max(0.0, 1 - figures["compute_s"] / stepping_s),
                            figures["bytes_sent"] / STEPS / ranks, own.at(ranks), rests_on))
    base = next(each for each in found if each.name == BASELINE)
    for each in found:
        each.why = reason(each, base)
    return sorted(found, key=lambda each: (each.epochs is None, -each.images_per_s / (each.epochs or (1, 1, 1))[1]))


def candidates() -> list[str]:
    """Each algorithm, with each set of options that its file names for this."""
    return [named(name, options) for name in algorithms.names() for options in algorithms.find(name).advised]


def measured(candidate: str, batch: int, simulation: Simulation) -> dict[str, Any]:
    """The summary of a simulated run that leaves nothing behind."""
    name, *options = candidate.split()
    with tempfile.TemporaryDirectory() as folder:
        run(Config(algorithm=name, set=tuple(options), batch=batch, steps=STEPS, lr=0.0, quiet=True,
                   out=f"{folder}/run"), simulation)
        summary: dict[str, Any] = json.loads(Path(folder, "run", "summary.json").read_text(encoding="utf-8"))
        return summary


def reason(own: Advice, base: Advice) -> str:
    """One sentence."""
    speed = own.images_per_s / base.images_per_s
    if own is base:
        return f"waits for ranks and for data {own.idle:.0%} of the time; the measure of all others"
    times = f"{speed:.2g} times all-reduce's images per second"
    fast = times if speed > 1.05 else "no faster than all-reduce here" if speed > 0.95 else f"only {times}"
    if own.epochs is None:
        return f"{fast}; no study says what an epoch is worth"
    worth = own.epochs[1]
    return (f"{fast}, and an epoch is worth as much" if abs(worth - 1) < 0.05 else
            f"{fast}, but it needs {worth:.2g} times the epochs" if worth > 1 else
            f"{fast}, and it needs only {worth:.2g} times the epochs")


@click.command()
@click.option("--cluster", required=True, metavar="NAME", help="A TOML file, or one of jobs/clusters by its name.")
@click.option("--ranks", required=True, type=click.IntRange(2), metavar="RANKS", help="Ranks to use.")
@click.option("--model", default="resnet50", show_default=True, metavar="MODEL", help="What is trained.")
@click.option("--batch", default=32, show_default=True, type=click.IntRange(1), metavar="IMAGES",
              help="Images per rank and step.")
@click.option("--slow", metavar="SHARE%:FACTORx", help="Slow ranks, e.g. 2%:3x: 2 % of them take three times as long.")
@click.option("--images", default=90 * 1.281e6, show_default=True, type=click.FloatRange(1), metavar="IMAGES",
              help="Images with which all-reduce reaches the accuracy wanted.")
def advise(cluster: str, ranks: int, model: str, batch: int, slow: str | None, images: float) -> None:
    """Rank the algorithms for a cluster: images per second, idle time, bytes, epochs needed, hours to accuracy.

    Speeds are simulated; what an epoch is worth comes from the studies in jobs/studies that have results.
    """
    start = time.perf_counter()
    machine = machines.read(machines.found(cluster))
    if slow:
        machine = replace(machine, slow=(*machine.slow, slowed(slow)))
    known = evidence(sorted(STUDIES.glob("*.toml")))
    table = Table(title=f"{model} on {ranks} ranks of {machine.name}, {batch} images a rank (speeds are simulated)",
                  title_justify="left")
    for column in ("algorithm", "images/s", "idle", "MB a step", "epochs / all-reduce", "hours", "why", "rests on"):
        table.add_column(column, justify="right" if column in ("images/s", "idle", "MB a step") else "left")
    for each in advised(machine, ranks, model, batch, known):
        table.add_row(each.name, f"{each.images_per_s:,.0f}", f"{each.idle:.0%}", f"{each.bytes_per_step / 1e6:,.1f}",
                      interval(each.epochs, ".2f"), interval(each.hours(images), ".3g"), each.why, each.rests_on)
    console = Console(soft_wrap=False, width=None if Console().is_terminal else 160)
    console.print(table)
    console.print(f"{time.perf_counter() - start:.0f} s; hours are for {images:,.0f} images with all-reduce")


def interval(values: tuple[float, float, float] | None, how: str) -> str:
    """Mean, and lowest to highest; "?" if it is not known."""
    if not values:
        return "?"
    low, middle, high = (format(each, how) for each in values)
    return middle if low == high else f"{middle} ({low} to {high})"
