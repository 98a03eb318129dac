"""What one slow rank costs: images/s of each algorithm with a rank whose gradients take five times as long.

The others' rates are what counts: an algorithm that waits for nobody keeps them. Each rank's rate is taken from its
first step to its last, and the sum of them compared with that of as many ranks without the slow one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from contest import save

ALGORITHMS = ("allreduce", "local_sgd", "backup", "dpsgd", "gossip", "gossip mode=push", "push_sum graph=random",
              "parameter_server", "easgd", "adpsgd")
FACTOR = 5                                  # as long as another rank's gradient
SLOW = 1                                    # rank


def trained(algorithm: str, ranks: int, steps: int, *options: object) -> dict[str, Any]:
    """summary.json of a short run of resnet8 on the built-in images."""
    name, *settings = algorithm.split()
    mpirun = shutil.which(str(Path(sys.executable).with_name("mpirun"))) or "mpirun"
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([mpirun, "-n", str(ranks), sys.executable, "-m", "dsgd_mpi.train", "--quiet", "--lr", "0.01",
                        "--threads", "1", "--steps", str(steps), "--eval-every", "1000", "--out", f"{folder}/run",
                        "--algorithm", name, *(word for each in settings for word in ("--set", each)),
                        *map(str, options)], check=True)
        result: dict[str, Any] = json.loads(Path(folder, "run", "summary.json").read_text())
    return result


@click.command()
@click.option("--ranks", default=4, show_default=True)
@click.option("--steps", default=150, show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Each algorithm takes its turn in each.")
def main(ranks: int, steps: int, rounds: int) -> None:
    """Print and keep, for each algorithm, its rate with a slow rank as a share of the rate without one."""
    samples: dict[str, list[float]] = {algorithm: [] for algorithm in ALGORITHMS}
    for _ in range(rounds):
        for algorithm in ALGORITHMS:
            even = trained(algorithm, ranks, steps)
            delay = (FACTOR - 1) * even["compute_s"] / steps
            slowed = trained(algorithm, ranks, steps, "--slow-rank", f"{SLOW}:{delay:.6f}")
            samples[algorithm].append(sum(slowed["rank_images_per_s"]) / sum(even["rank_images_per_s"]))
    share = (ranks - 1) / ranks
    print(f"\nrate with rank {SLOW} of {ranks} {FACTOR} times slower, over the rate without; the other ranks are "
          f"{share:.0%} of all\n")
    print(f"{'algorithm':24} {'median':>7} {'range':>14}  of what the others can do")
    for algorithm, ratios in samples.items():
        median = float(np.median(ratios))
        print(f"{algorithm:24} {median:7.0%} {min(ratios):7.0%} - {max(ratios):4.0%}  {median / share:.0%}")
    print(save(f"straggler-{ranks}", {"factor": FACTOR, "steps": steps, "samples": samples}))


if __name__ == "__main__":
    main()
