"""How near each method comes to a known optimum: logistic regression, on simulated ranks with few classes each.

    f(x) = mean over all training images of the cross-entropy of W [image / 255, 1] + l2 / 2 |x|^2

is strongly convex, so that scipy's optimum is checked: f - f* is at most |grad f|^2 / (2 l2). The model is a flat
vector of 10 x 785, without the program's layers. A method is its first variant, with SGD with momentum 0.9 whatever it
prefers; gradients take 10 ms, give or take a tenth. Of three rates the one counts that comes nearest in the end. Where
n updates add up, they are divided by n. A method's answer is asked for after some of the steps, at which ranks come to
rest. What has been saved is not run again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.shared import provenance
from dsgd_mpi import algorithms as known
from dsgd_mpi.arrays.flat import Array, Layout
from dsgd_mpi.data import partition
from dsgd_mpi.data.formats import open_dataset
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.net.simulated.host import SimulatedHost
from dsgd_mpi.net.simulated.machine import star
from dsgd_mpi.optim.sgd import Sgd
from dsgd_mpi.study.style import COLOURS, MARKERS, STYLE, canvas

LOOKS = 9                                   # points of a curve
PANEL = 6                                   # curves in a panel, besides all-reduce
NAME = "logistic-fashion-mnist-12k-{ranks}"
BASE = "allreduce"


@dataclass
class Logistic:
    """The problem: images float32 (N, features), the last of them 1, and labels int64 (N,)."""

    images: Array
    labels: Array
    l2: float

    @property
    def layout(self) -> Layout:
        return Layout({"w": (int(self.labels.max()) + 1, self.images.shape[1])})

    def start(self) -> Array:
        return np.zeros(self.layout.size, np.float32)

    def loss(self, x: Array) -> float:
        """f(x) over all images."""
        return self.loss_and_gradient(x, gradient=False)[0]

    def gradient(self, x: Array, batch: Array) -> Array:
        """Of the images at `batch`, and of the penalty."""
        return self.loss_and_gradient(x, batch)[1]

    def loss_and_gradient(self, x: Array, batch: Array | slice = slice(None),
                          gradient: bool = True) -> tuple[float, Array]:
        a, y = self.images[batch], self.labels[batch]
        w = x.reshape(-1, a.shape[1])
        z = a @ w.T
        z -= z.max(1, keepdims=True)
        of_label = z[np.arange(len(y)), y]
        p = np.exp(z)
        total = p.sum(1, keepdims=True)
        loss = float(np.mean(np.log(total[:, 0]) - of_label, dtype=np.float64)) + self.l2 / 2 * float(x @ x)
        if not gradient:
            return loss, x[:0]
        p /= total
        p[np.arange(len(y)), y] -= 1
        return loss, (p.T @ a / len(y) + self.l2 * w).ravel()


def problem(l2: float) -> Logistic:
    train = open_dataset("fashion-mnist-12k").train
    images = np.empty((len(train), *train.image), np.uint8)
    train.read(np.arange(len(train)), images)
    return Logistic(np.concatenate([images.reshape(len(train), -1) / np.float32(255), np.ones((len(train), 1))],
                                   axis=1, dtype=np.float32), train.labels, l2)


def optimum(task: Logistic) -> dict[str, float]:
    """f* by scipy, and by how much it may be too large."""
    from scipy.optimize import minimize
    exact = Logistic(task.images.astype(np.float64), task.labels, task.l2)
    found = minimize(exact.loss_and_gradient, task.start().astype(np.float64), jac=True, method="L-BFGS-B",
                     options={"maxiter": 5000, "maxfun": 5000, "ftol": 1e-15, "gtol": 1e-7})
    return {"loss": float(found.fun), "at_most_below": float(found.jac @ found.jac / (2 * task.l2)),
            "iterations": int(found.nit)}


def shares(task: Logistic, workers: int, rule: str, seed: int) -> list[Array]:
    """The images of each worker."""
    parsed = partition.parse(rule)
    owner = (partition.owners(task.labels, workers, parsed, seed) if parsed
             else np.random.default_rng(seed).permutation(len(task.labels)) % workers)
    return [np.flatnonzero(owner == worker) for worker in range(workers)]


def batches(own: Array, batch: int, seed: int, worker: int) -> Iterator[Array]:
    """For ever, shuffled anew at each pass."""
    draw = np.random.default_rng((seed, worker))
    while True:
        order = draw.permutation(own)
        yield from (order[end - batch : end] for end in range(batch, len(order) + 1, batch))


def looks(steps: int) -> list[int]:
    """After which steps f is asked for: further and further apart."""
    return sorted({round(step) for step in np.geomspace(1, steps, LOOKS)})


def curve(task: Logistic, name: str, rate: float, ranks: int, steps: int, batch: int, rule: str,
          seed: int) -> list[float]:
    """f of the method's answer at each look; 1e3 if it is more, or not a number."""
    algorithm = known.find(name)(**known.find(name).variants[0])
    servers = known.serving(algorithm, ranks)
    of_workers = shares(task, ranks - servers, rule, seed)
    lr = rate / (ranks - servers) if algorithm.updates_add_up else rate

    def gradient_s(rank: int, step: int) -> float:
        return float(0.01 * (1 + 0.1 * np.random.default_rng((seed, rank, step)).normal()))

    def main(host: SimulatedHost) -> list[float]:
        mine, x, found = known.find(name)(**known.find(name).variants[0]), task.start(), []
        own = batches(of_workers[max(0, host.rank - servers)], batch, seed, host.rank)

        def gradient(x: Array, hear: Any = None, least: int = 0) -> Array:
            g: Array = host.compute(task.gradient, x, next(own))
            if hear:
                hear(g, slice(0, g.size))
            return g
        mine.start(host, x, Sgd(0.9, weight_decay=0.0).start(task.layout, x))
        for step in range(1, steps + 1):
            mine.step(x, gradient, lr)
            if step in at:
                mine.rest(x)
                answer = mine.answer(x)
                found.append(task.loss(answer) if host.rank == 0 else 0.0)
        return found
    at = looks(steps)
    with np.errstate(all="ignore"):
        losses: list[float] = Cluster(ranks, star(gradient_s=gradient_s)).run(main)[0]
    return [min(loss, 1e3) if loss == loss else 1e3 for loss in losses]


@click.command()
@click.option("--ranks", default=16, show_default=True)
@click.option("--partition", "rule", default="dirichlet:0.1", show_default=True)
@click.option("--steps", default=100, show_default=True)
@click.option("--batch", default=50, show_default=True, help="Images per rank.")
@click.option("--l2", default=0.01, show_default=True)
@click.option("--rates", default="0.005,0.02,0.08", show_default=True, help="Comma-separated.")
@click.option("--algorithms", default=",".join(known.names()), help="Comma-separated.")
@click.option("--seed", default=0, show_default=True)
@provenance.saving
def main(ranks: int, rule: str, steps: int, batch: int, l2: float, rates: str, algorithms: str, seed: int,
         save: bool) -> None:
    """Print f - f* of every method, save the curves and draw them."""
    task, name = problem(l2), NAME.format(ranks=ranks)
    settings = {"ranks": ranks, "partition": rule, "steps": steps, "batch": batch, "l2": l2, "rates": rates,
                "seed": seed}
    result = kept(provenance.RESULTS / f"{name}.json", settings) if save else None
    result = result or {**settings, "looks": looks(steps), "optimum": optimum(task), "curves": {}}
    best = result["optimum"]
    print(f"f* {best['loss']:.9f}, at most {best['at_most_below']:.1e} too large, {best['iterations']} iterations")
    for algorithm in algorithms.split(","):
        if algorithm in result["curves"]:
            continue
        begin = time.process_time()
        found = {rate: curve(task, algorithm, float(rate), ranks, steps, batch, rule, seed)
                 for rate in rates.split(",")}
        result["curves"][algorithm] = {rate: [loss - best["loss"] for loss in losses]
                                       for rate, losses in found.items()}
        ends = " ".join(f"{losses[-1]:9.2e}" for losses in result["curves"][algorithm].values())
        print(f"{algorithm:20} f - f* at rates {rates}: {ends}   {time.process_time() - begin:5.1f} s", flush=True)
        if save:
            provenance.save(name, result)
    if save:
        draw(result, provenance.RESULTS / f"{name}.png")


def kept(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What has been saved already with these settings, to go on from; without what is said of the machine."""
    result = json.loads(path.read_text()) if path.exists() else {}
    if any(result.get(key) != value for key, value in settings.items()):
        return None
    return {key: result[key] for key in (*settings, "looks", "optimum", "curves")}


def best_rate(curves: dict[str, list[float]]) -> str:
    """The one that ends nearest."""
    return min(curves, key=lambda rate: curves[rate][-1])


def draw(result: dict[str, Any], path: Path) -> None:
    """Each method at its best rate: f - f* against images, PANEL methods a panel, those first that end nearest."""
    from matplotlib import rc_context
    curves = {name: (rate := best_rate(of_rates), of_rates[rate]) for name, of_rates in result["curves"].items()}
    images = np.array(result["looks"]) * result["batch"] * result["ranks"]
    order = sorted((name for name in curves if name != BASE), key=lambda name: curves[name][1][-1])
    panels = [order[first : first + PANEL] for first in range(0, len(order), PANEL)]
    columns = 2
    with rc_context(STYLE):
        figure, axes = canvas(-(-len(panels) // columns), columns, 3.4 * -(-len(panels) // columns))
        for axis, names in zip(axes.flat, panels, strict=False):
            if BASE in curves:
                axis.loglog(images, curves[BASE][1], color="0.75", lw=5, label=f"{BASE}, {curves[BASE][0]}")
            for name, colour, marker in zip(names, COLOURS, MARKERS, strict=False):
                rate, losses = curves[name]
                axis.loglog(images, losses, color=colour, marker=marker, ms=4, label=f"{name}, {rate}")
            axis.legend(title="method, rate", fontsize="small", loc="lower left")
            axis.set(xlabel="images, of all ranks", ylabel="f(answer) - f*")
        limits = [value for _, losses in curves.values() for value in losses if value > 0]
        for axis in axes.flat:
            axis.set_ylim(min(limits) / 2, 2 * curves[BASE][1][0] if BASE in curves else max(limits))
        figure.suptitle(f"Logistic regression on 12,000 images of Fashion-MNIST, {result['ranks']} simulated ranks, "
                        f"{result['partition']}, one seed")
        figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
