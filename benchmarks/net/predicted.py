"""Predicted against measured: step times of every algorithm by `simulate` on the calibrated cluster, and by `train`.

`python -m benchmarks.net.predicted --ranks 2`, or with `--mbit 100` two hosts of one rank, joined by such a wire. Each
round calibrates once; then each algorithm is trained and simulated with the same options.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.shared import provenance
from benchmarks.shared.hosts import NoHosts, two_hosts
from benchmarks.shared.trainings import ALGORITHMS

LOG_EVERY = 8                               # steps between two lines
SHORT = ("--lr", 0.01, "--warmup", 0, "--eval-every", 100_000, "--quiet", "--log-every", LOG_EVERY)
Samples = dict[str, list[float]]


@click.command()
@click.option("--ranks", default=2, show_default=True)
@click.option("--mbit", default=0.0, help="Two hosts with one rank each, and a wire of so many Mbit/s.")
@click.option("--steps", default=80, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--seconds", default=20.0, show_default=True, help="Of calibration, in each round.")
@click.option("--only", multiple=True, help="One of the algorithms; repeatable.")
@provenance.saving
def main(ranks: int, mbit: float, steps: int, rounds: int, seconds: float, only: tuple[str, ...], save: bool) -> None:
    """Print and save seconds a step, predicted and measured, with a picture."""
    mpirun = shutil.which(str(Path(sys.executable).with_name("mpirun"))) or "mpirun"
    measured: Samples = {algorithm: [] for algorithm in only or ALGORITHMS}
    predicted: Samples = {algorithm: [] for algorithm in measured}
    clusters = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            with (two_hosts(folder, mpirun, mbit) if mbit else nullcontext(
                    [mpirun, "-n", str(ranks), sys.executable])) as start:
                for turn in range(rounds):
                    cluster = folder / f"{turn}.toml"
                    call(*start, "-m", "dsgd_mpi", "calibrate", "--out", cluster, "--seconds", seconds)
                    clusters.append(cluster.read_text())
                    for algorithm in measured:
                        out = folder / f"{turn} {algorithm}".replace(" ", "-")
                        options = (*SHORT, "--steps", steps, *settings(algorithm))
                        call(*start, "-m", "dsgd_mpi.train", *options, "--out", f"{out}-real")
                        call(sys.executable, "-m", "dsgd_mpi", "simulate", "--cluster", cluster, "--ranks",
                             2 if mbit else ranks, *options, "--out", f"{out}-simulated")
                        measured[algorithm].append(step_s(Path(f"{out}-real")))
                        predicted[algorithm].append(step_s(Path(f"{out}-simulated")))
                        print(f"{algorithm:24} measured {1e3 * measured[algorithm][-1]:8.2f} ms, predicted "
                              f"{1e3 * predicted[algorithm][-1]:8.2f}", flush=True)
        except NoHosts as why:
            raise click.ClickException(str(why)) from None
    table(measured, predicted)
    if save:
        name = f"predicted-{f'{mbit:g}mbit' if mbit else ranks}"
        path = provenance.save(name, {"ranks": 2 if mbit else ranks, "hosts": 2 if mbit else 1, "mbit": mbit,
                                      "steps": steps, "rounds": rounds, "measured": measured,
                                      "predicted": predicted, "clusters": clusters})
        draw(json.loads(path.read_text()), path.with_suffix(".png"))
        print(path)


def settings(algorithm: str) -> list[str]:
    """The options of "name KEY=VALUE"."""
    name, *rest = algorithm.split()
    return ["--algorithm", name, *(word for each in rest for word in ("--set", each))]


def call(*words: object) -> None:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise click.ClickException(f"{' '.join(map(str, words))}:\n{done.stdout}{done.stderr}")


def step_s(folder: Path) -> float:
    """Seconds a step of rank 0: the median over its log lines, the first left out."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = [(after["wall_s"] - before["wall_s"]) / (after["step"] - before["step"])
             for before, after in pairwise(lines)]
    return float(np.median(times))


def errors(measured: Samples, predicted: Samples) -> dict[str, float]:
    """Predicted / measured - 1, of the medians over rounds."""
    return {each: float(np.median(predicted[each]) / np.median(measured[each]) - 1) for each in measured}


def table(measured: Samples, predicted: Samples) -> None:
    found = errors(measured, predicted)
    print(f"\n{'algorithm':24} {'measured, ms (range)':>28} {'predicted, ms (range)':>28} {'off by':>8}")
    for algorithm, error in found.items():
        print(f"{algorithm:24} {ranged(measured[algorithm]):>28} {ranged(predicted[algorithm]):>28} {error:8.0%}")
    off = np.abs(list(found.values()))
    print(f"median error {np.median(off):.0%}, worst {off.max():.0%}")


def ranged(seconds: list[float]) -> str:
    return f"{1e3 * np.median(seconds):.2f} ({1e3 * min(seconds):.2f} to {1e3 * max(seconds):.2f})"


def draw(result: dict[str, Any], path: Path) -> None:
    """Predicted / measured by algorithm: the median over rounds, and each round as a dot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = errors(result["measured"], result["predicted"])
    figure = Figure((10, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    for place, algorithm in enumerate(found):
        ratios = np.array(result["predicted"][algorithm]) / np.median(result["measured"][algorithm])
        panel.plot([place] * len(ratios), ratios, ".", color="0.6")
        panel.plot(place, 1 + found[algorithm], "o", color="#0072B2")
    panel.axhspan(0.9, 1.1, color="#009E73", alpha=0.15, lw=0)
    panel.axhline(1, color="black", lw=0.8)
    panel.set_xticks(range(len(found)), list(found), rotation=35, ha="right")
    off = np.abs(list(found.values()))
    where = f"2 hosts, {result['mbit']:g} Mbit/s" if result["mbit"] else f"{result['ranks']} ranks on one host"
    panel.set(ylabel="predicted / measured step time", title=f"{where}: median error {np.median(off):.0%}, worst "
              f"{off.max():.0%} (simulated; band: 10 %)", ylim=(0, max(2.0, 1.1 + off.max())))
    figure.savefig(path)


if __name__ == "__main__":
    main()
