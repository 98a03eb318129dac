"""What each algorithm learns from the same number of images, and how soon it reaches a given accuracy, over seeds.

If the updates of all ranks add up one by one (the parameter server), the learning rate is divided by the number of
ranks, so that n of its steps amount to one of all-reduce's. Otherwise all settings are the same. Each run is saved as
soon as it ends, and is not repeated once it has been saved.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from benchmarks.shared import provenance
from benchmarks.shared.trainings import ALGORITHMS, trained

LR = 0.2
SUMMING = ("parameter_server",)


@click.command()
@click.option("--ranks", default=4, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--epochs", default=1, show_default=True)
@click.option("--data", default="fashion-mnist", show_default=True)
@click.option("--model", default="resnet8", show_default=True)
@click.option("--batch", default=16, show_default=True, help="Images per rank.")
@click.option("--algorithms", default=",".join(ALGORITHMS), help="Comma-separated, each with its options.")
@click.option("--most", default=1000, help="Stop after this many runs; call it again to continue.")
@provenance.saving
def main(most: int, seeds: int, algorithms: str, save: bool, **settings: Any) -> None:
    """Run whatever is not in the result yet, and save it."""
    name = "convergence-{data}-{model}-{ranks}".format(**settings)
    runs = kept(provenance.RESULTS / f"{name}.json", settings)
    for seed in range(seeds):
        for algorithm in algorithms.split(","):
            done = [run for run in runs.setdefault(algorithm, []) if run["seed"] == seed]
            if done or not most:
                continue
            most -= 1
            found = {**run_once(algorithm, seed, **settings), "commit": provenance.commit() if save else None}
            runs[algorithm].append(found)
            if save:
                provenance.save(name, {**settings, "runs": runs})
            print(f"{name} seed {seed}  {algorithm:24} {found['accuracy']:7.2%} {found['wall_s']:6.1f} s", flush=True)


def kept(path: Path, settings: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs with these settings that have been saved already."""
    result = json.loads(path.read_text()) if path.exists() else {}
    same = all(result.get(key) == value for key, value in settings.items())
    return dict(result["runs"]) if same else {}


def run_once(algorithm: str, seed: int, ranks: int, epochs: int, data: str, model: str, batch: int) -> dict[str, Any]:
    lr = LR / ranks if algorithm.split()[0] in SUMMING else LR
    found = trained(algorithm, ranks, "--seed", seed, "--epochs", epochs, "--data", data, "--model", model, "--batch",
                    batch, "--lr", lr, "--eval-every", 0.25)
    return {**found, "load": os.getloadavg()[0]}


if __name__ == "__main__":
    main()
