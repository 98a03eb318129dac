"""What each algorithm learns from as many images: test accuracy after the same epochs, over seeds.

Where the updates of all ranks add up one by one (the parameter server), the learning rate is divided by the ranks: n of
its steps then are one of all-reduce's. Otherwise all settings are the same.
"""

import click
import numpy as np
from contest import save
from trainings import ALGORITHMS, trained

LR = 0.2
SUMMING = ("parameter_server",)


@click.command()
@click.option("--ranks", default=4, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--epochs", default=6, show_default=True)
@click.option("--data", default="fashion-mnist-12k", show_default=True)
def main(ranks: int, seeds: int, epochs: int, data: str) -> None:
    """Print and keep accuracy and rate of each algorithm."""
    runs: dict[str, list[dict[str, object]]] = {algorithm: [] for algorithm in ALGORITHMS}
    for seed in range(seeds):
        for algorithm in ALGORITHMS:
            lr = LR / ranks if algorithm.split()[0] in SUMMING else LR
            found = trained(algorithm, ranks, "--seed", seed, "--epochs", epochs, "--data", data, "--lr", lr)
            runs[algorithm].append(found)
            rate = f"{found['images_per_s']:9,.0f} images/s"
            print(f"seed {seed}  {algorithm:24} {found['accuracy']:7.2%} {rate}", flush=True)
    print(f"\n{'algorithm':24} {'accuracy':>9} {'range':>17}")
    for algorithm, found_ones in runs.items():
        accuracies = [float(str(found["accuracy"])) for found in found_ones]
        print(f"{algorithm:24} {np.mean(accuracies):9.2%} {min(accuracies):8.2%} - {max(accuracies):.2%}")
    print(save(f"convergence-{data}-{ranks}", {"epochs": epochs, "runs": runs}))


if __name__ == "__main__":
    main()
