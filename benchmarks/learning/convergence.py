"""What each algorithm learns from the same number of images at the best of several rates, and how soon, over seeds.

The rates are those factors times a base rate (`base_rate`) that does not depend on the algorithm, but where updates add
up. Otherwise all settings are the same. All rates are run with the first seed, and the best of them with the others.
Each run is saved as soon as it ends, and is not repeated once it has been saved.
"""

from __future__ import annotations

import json
import os
import time
from itertools import product
from pathlib import Path
from typing import Any

import click

from benchmarks.shared import provenance
from benchmarks.shared.trainings import ALGORITHMS, trained
from dsgd_mpi import algorithms as known

LR = 0.4                                    # at half of which nearly all learned less in a first round
FACTORS = (0.5, 1.0, 2.0)                   # of the base rate
METHODS = (*ALGORITHMS, "local_sgd slow_momentum=0.6", "local_sgd post_local=200", "gossip order=combine-then-adapt",
           "gossip mode=push order=combine-then-adapt", "parameter_server max_staleness=4",
           "parameter_server staleness=scale", "parameter_server staleness=compensate",
           "local_sgd slow_momentum=0.6 buffers=reset", "local_sgd slow_momentum=0.6 buffers=average",
           "gosgd probability=0.1")


@click.command()
@click.option("--ranks", default=4, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--epochs", default=1, show_default=True)
@click.option("--data", default="fashion-mnist", show_default=True)
@click.option("--model", default="resnet8", show_default=True)
@click.option("--batch", default=16, show_default=True, help="Images per rank.")
@click.option("--algorithms", default=",".join(METHODS), help="Comma-separated, each with its options.")
@click.option("--factors", default=",".join(map(str, FACTORS)), show_default=True,
              help="Of the base rate, comma-separated.")
@click.option("--most", default=1000, help="Stop after this many runs; call it again to continue.")
@click.option("--max-minutes", default=float("inf"), help="Start no run later than this; call it again to continue.")
@provenance.saving
def main(most: int, max_minutes: float, seeds: int, algorithms: str, factors: str, save: bool, **settings: Any) -> None:
    """Run whatever is not in the result yet, and save it."""
    name = "convergence-{data}-{model}-{ranks}".format(**settings)
    runs = kept(provenance.RESULTS / f"{name}.json", settings)
    end = time.monotonic() + 60 * max_minutes
    for seed, algorithm, place in product(range(seeds), algorithms.split(","), range(len(factors.split(",")))):
        rates = [float(factor) * base_rate(algorithm, settings["ranks"]) for factor in factors.split(",")]
        known_runs = runs.get(algorithm, [])
        rate = rates[place] if seed == 0 else best_rate(known_runs)
        if any((run["seed"], run["rate"]) == (seed, rate) for run in known_runs):
            continue
        if not most or time.monotonic() > end:
            break
        most -= 1
        found = {**run_once(algorithm, seed, rate, **settings), "commit": provenance.commit() if save else None}
        runs.setdefault(algorithm, []).append(found)
        if save:
            provenance.save(name, {**settings, "runs": runs})
        print(f"{name} seed {seed}  {algorithm:40} rate {rate:6g} {found['accuracy']:7.2%} {found['wall_s']:6.1f} s",
              flush=True)


def best_rate(runs: list[dict[str, Any]]) -> float:
    """Of those that were run with the first seed."""
    rate: float = max((run for run in runs if run["seed"] == 0), key=lambda run: run["accuracy"])["rate"]
    return rate


def kept(path: Path, settings: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs with these settings that have been saved already, by algorithm.

    Those without a rate are of a version that had one rate for all, another warm-up and other batch norm statistics.
    """
    result = json.loads(path.read_text()) if path.exists() else {}
    if any(result.get(key) != value for key, value in settings.items()):
        return {}
    rated = {algorithm: [run for run in runs if "rate" in run] for algorithm, runs in result["runs"].items()}
    return {algorithm: runs for algorithm, runs in rated.items() if runs}


def base_rate(algorithm: str, ranks: int) -> float:
    """LR, divided by the ranks that train if n of them move the model by the sum of their updates.

    Then n of its steps amount to one of all-reduce's. Updates that the algorithm itself divides by their staleness,
    which is about n, add up to one already.
    """
    name, *settings = algorithm.split()
    found = known.build(name, dict(setting.partition("=")[::2] for setting in settings if setting[:2] != "--"))
    return LR / (ranks - known.serving(found, ranks)) if found.updates_add_up else LR


def run_once(algorithm: str, seed: int, rate: float, ranks: int, epochs: int, data: str, model: str,
             batch: int) -> dict[str, Any]:
    found = trained(algorithm, ranks, "--seed", seed, "--epochs", epochs, "--data", data, "--model", model, "--batch",
                    batch, "--lr", rate, "--eval-every", 0.25)
    return {**found, "rate": rate, "load": os.getloadavg()[0]}


if __name__ == "__main__":
    main()
