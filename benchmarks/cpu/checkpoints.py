"""What checkpoints cost a run: `python -m benchmarks.cpu.checkpoints`. ResNet-18 on images of 224 x 224, 16 a rank.

Within one run, EVERY steps that begin with a checkpoint and EVERY steps without one take turns, so that whatever else
the machine does affects both alike. Runs take turns whose checkpoints are written in the background, or are waited for.

Rank 0, which writes, is timed. Wall-clock time needs an idle machine. Less the time in which the main thread was ready
to run but other work had its core (as Linux counts it), it is that of a machine with a core to spare; and with no core
to spare, a checkpoint costs at most all CPU time that it takes: of the main thread, and of the one that writes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import click
import numpy as np

from benchmarks.shared import tree
from dsgd_mpi.data.formats import Content, write

EVERY = 5                                   # the first 2 EVERY steps of a run are not counted
PROGRAM = """
import json, sys, threading, time
from pathlib import Path
from dsgd_mpi.net.mpi.host import MpiHost
from dsgd_mpi.training.checkpoint import Checkpoints

waits, notes = sys.argv.pop() == "waits", Path(sys.argv.pop())
save, agreed, own = Checkpoints.save, MpiHost.stop_agreed, Path("/proc/thread-self/schedstat")
costs, steps = {"copy": [], "thread": []}, []

def measured(name, act):
    def timed(*args):
        start = time.thread_time()
        act(*args)
        costs[name].append(time.thread_time() - start)
    return timed

def saved(self, *args):
    save(self, *args)
    if waits:
        self.finish()

def boundary(self, step, asked):
    delayed = int(own.read_text().split()[1]) / 1e9
    steps.append([time.perf_counter(), time.perf_counter() - delayed, time.thread_time()])
    if self.rank == 0:
        notes.write_text(json.dumps([steps, costs]))
    return agreed(self, step, asked)

Checkpoints.save, MpiHost.stop_agreed = measured("copy", saved), boundary
try:
    from dsgd_mpi.training.writing import Writing
    Writing._run = measured("thread", Writing._run)
except ImportError:                         # an older version, which always waits
    pass
from dsgd_mpi.train import main
main()
"""


def images(path: Path) -> Path:
    rng = np.random.default_rng(0)

    def split(count: int) -> tuple[Any, Any]:
        return rng.integers(0, 256, (count, 224, 224, 3), np.uint8), np.arange(count) % 10
    write(path, Content(split(1024), split(32), [str(number) for number in range(10)], "noise", "none"))
    return path


def run(root: Path, waits: str, data: Path, ranks: int, pairs: int) -> dict[str, list[float]]:
    """Of each pair: seconds a step, and by how much they are more (per cent) where a checkpoint is written."""
    launcher = [str(Path(sys.prefix, "bin", "mpirun")), "-n", str(ranks)] if ranks > 1 else []
    with tempfile.TemporaryDirectory(dir=data.parent) as folder:
        words = {"model": "resnet18", "data": data, "batch": 16, "steps": 2 * EVERY * (pairs + 1) + 1, "threads": 1,
                 "checkpoint-every": 2 * EVERY, "log-every": 1000, "out": f"{folder}/run"}
        subprocess.run([*launcher, sys.executable, "-c", PROGRAM, *(f"--{key}={value}" for key, value in words.items()),
                        "--quiet", f"{folder}/notes", waits], check=True, cwd=root,
                       env={**os.environ, "PYTHONPATH": str(root)})
        steps, costs = json.loads(Path(folder, "notes").read_text())
    found: dict[str, list[float]] = {"step_s": [], "wall": [], "spare": [], "none spare": []}
    every = np.array(steps)[2 * EVERY - 1::EVERY]       # a checkpoint is written after the boundary before its step
    wall, own, cpu = np.diff(every, axis=0).T
    for pair in range(pairs):
        saving, none = 2 * pair, 2 * pair + 1
        cost = sum(part[pair + 1] for part in costs.values() if part)
        found["step_s"].append(own[none] / EVERY)
        found["wall"].append(100 * (wall[saving] / wall[none] - 1))
        found["spare"].append(100 * (own[saving] / own[none] - 1))
        found["none spare"].append(100 * cost / cpu[none])
    return found


@click.command()
@click.option("--rounds", default=4, show_default=True)
@click.option("--pairs", default=5, show_default=True, help="In a run.")
@click.option("--ranks", default=1, show_default=True, help="Of one thread each.")
@click.option("--older", type=click.Path(exists=True, path_type=Path), help="Another checkout, to compare with.")
@click.option("--at", default=".", show_default=True, help="A folder of the file system to write to.")
def main(rounds: int, pairs: int, ranks: int, older: Path | None, at: str) -> None:
    """Time steps with and without checkpoints."""
    ways = {"in the background": (tree.ROOT, "goes on"), "waited for": (tree.ROOT, "waits")}
    if older:
        ways[str(older)] = older.resolve(), "goes on"
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    with tempfile.TemporaryDirectory(dir=at) as folder:
        data = images(Path(folder).resolve() / "noise.h5")
        for _ in range(rounds):
            for name, (root, waits) in ways.items():
                for key, values in run(root, waits, data, ranks, pairs).items():
                    samples[name].setdefault(key, []).extend(values)
                    click.echo(f"{name}, {key}: {', '.join(f'{each:.2f}' for each in values)}", err=True)
    for name, found in samples.items():
        click.echo(f"{ranks} ranks, a checkpoint every {EVERY} steps, {name}: {len(found['step_s'])} pairs, "
                   f"{median(found.pop('step_s')):.3f} s a step")
        for key, values in found.items():
            low, middle, high = quantiles(values, n=4)
            click.echo(f"    {key:>10}: {middle:+.2f} % (quartiles {low:+.2f} to {high:+.2f})")


if __name__ == "__main__":
    main()
