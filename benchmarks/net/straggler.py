"""What one slow rank costs: throughput of each algorithm with a rank whose gradients take five times as long.

What counts is the throughput of the others, which an algorithm that waits for nobody keeps. Each rank's rate is
measured from its first step to its last, and their sum is compared with that of the same ranks without a slow one.
"""

from __future__ import annotations

import click
import numpy as np

from benchmarks.shared import provenance
from benchmarks.shared.trainings import ALGORITHMS, trained

FACTOR = 5                                  # how many times as long as another rank's gradient
SLOW = 1                                    # rank


@click.command()
@click.option("--ranks", default=4, show_default=True)
@click.option("--steps", default=150, show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Each algorithm takes one turn in each.")
@provenance.saving
def main(ranks: int, steps: int, rounds: int, save: bool) -> None:
    """Print and save each algorithm's throughput with a slow rank as a share of that without one."""
    samples: dict[str, list[float]] = {algorithm: [] for algorithm in ALGORITHMS}
    for _ in range(rounds):
        for algorithm in ALGORITHMS:
            short = ("--lr", 0.01, "--steps", steps, "--eval-every", 1000)
            even = trained(algorithm, ranks, *short)
            delay = (FACTOR - 1) * even["compute_s"] / steps
            slowed = trained(algorithm, ranks, *short, "--slow-rank", f"{SLOW}:{delay:.6f}")
            samples[algorithm].append(sum(slowed["rank_images_per_s"]) / sum(even["rank_images_per_s"]))
    share = (ranks - 1) / ranks
    print(f"\nthroughput with rank {SLOW} of {ranks} {FACTOR} times slower, relative to that without; the others are "
          f"{share:.0%} of all ranks\n")
    print(f"{'algorithm':24} {'median':>7} {'range':>14}  of what the others can do")
    for algorithm, ratios in samples.items():
        median = float(np.median(ratios))
        print(f"{algorithm:24} {median:7.0%} {min(ratios):7.0%} - {max(ratios):4.0%}  {median / share:.0%}")
    if save:
        print(provenance.save(f"straggler-{ranks}", {"factor": FACTOR, "steps": steps, "samples": samples}))


if __name__ == "__main__":
    main()
