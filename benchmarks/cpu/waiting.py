"""How long a waiting thread should spin before it sleeps (GOMP_SPINCOUNT): `python -m benchmarks.cpu.waiting`.

Steps of resnet8 with as many threads as cores, on an idle machine and next to processes that keep cores busy.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import Any

import click

from benchmarks.shared import provenance
from benchmarks.shared.cases import CASES, ours
from benchmarks.shared.contest import Contestant, quartiles, take_turns

SPINS = ("300000", "30000", "10000", "3000", "1000", "0")      # the first: libgomp's own


@contextmanager
def neighbours(count: int) -> Any:
    """Processes that never stop computing."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@click.command()
@click.option("--rounds", default=10, show_default=True)
@provenance.saving
def main(rounds: int, save: bool) -> None:
    """Time steps with several settings, which take turns."""
    cores = len(os.sched_getaffinity(0))
    found = {}
    with ExitStack() as stack:
        everyone = []
        for spins in SPINS:
            os.environ["GOMP_SPINCOUNT"] = spins
            everyone.append(stack.enter_context(Contestant(spins, cores, ours, CASES["resnet8"], True, "float32")))
        del os.environ["GOMP_SPINCOUNT"]
        for count in (0, 1, cores):
            with neighbours(count):
                found[str(count)] = take_turns(everyone, "step", rounds, 4, limit_s=40)
            for spins, samples in found[str(count)].items():
                times = quartiles(samples, width=8, unit=" ms")
                click.echo(f"{count} busy neighbours, {spins:>6} spins: {times}")
    if save:
        provenance.save(f"waiting-resnet8-float32-{cores}-{provenance.vectors()}",
                        {"case": "resnet8", "threads": cores, "dtype": "float32", "processor": provenance.vectors(),
                         "seconds": found})


if __name__ == "__main__":
    main()
