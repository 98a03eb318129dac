"""An algorithm on so many ranks: who mixes with whom by what weight, the spectral gap, and the bytes of a step.

W is what a rank's model becomes of all models by mixing alone, or, of push-sum, what becomes of all that was sent. Its
spectral gap is 1 - |lambda|, lambda the eigenvalue of W next to 1: by that factor a step brings models together. Where
the graph changes from step to step, it is that of the product of all W until it begins anew, as a mean over its steps.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from dsgd_mpi import config, optim
from dsgd_mpi.algorithms import Algorithm
from dsgd_mpi.arrays.flat import Array, Hear, Layout
from dsgd_mpi.config import Config
from dsgd_mpi.data import open_dataset
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.compression.half import Compressed
from dsgd_mpi.net.simulated.cluster import Cluster, Deadlock
from dsgd_mpi.net.simulated.host import SimulatedHost
from dsgd_mpi.net.simulated.machine import Gradient, Machine
from dsgd_mpi.net.topology import OneOf, mixing_weights, period, senders, shares
from dsgd_mpi.nn import models
from dsgd_mpi.study.style import COLOURS, STYLE, canvas, require_matplotlib

SHOWN, PEERS, PANELS = 16, 8, 8             # ranks, peers of a rank, and steps that are shown
STEPS = 16                                  # simulated without a graph, for the bytes that they take on average
LONG = 10                                   # steps of a graph that never begins anew, for its gap
ELEMENTS = 64                               # of the vector that stands for the model
LABELLED = 64                               # ranks that have room for their numbers in a picture
PICTURES = ".png", ".pdf", ".svg"


def described(algorithm: Algorithm, ranks: int, config_: Config, picture: str | None) -> str:
    """In words; UsageError if it cannot run on so many ranks. The graph is drawn to `picture`, if it has one."""
    algorithm.suits(ranks)
    graph = getattr(algorithm, "graph", None)
    if graph is None and picture:
        raise UsageError("--picture: expected an algorithm with an option graph, found one that has none")
    if graph is None:
        return traffic(algorithm, ranks, config_, STEPS)
    steps, changing = matrices(algorithm, ranks)
    name = f"graph {graph} on {ranks} rank{'s' if ranks > 1 else ''}"
    lines = [*table(steps, changing, name), "", gap(steps, changing), traffic(algorithm, ranks, config_, len(steps))]
    if picture:
        draw(steps[:PANELS], name, push_of(algorithm), Path(picture))
        lines.append(f"picture: {picture}")
    return "\n".join(lines)


def push_of(algorithm: Algorithm) -> bool:
    """Whether it sends one way."""
    how: OneOf = config.hints_of(cast(Any, type(algorithm)))["graph"].__metadata__[0]
    return how.push


def matrices(algorithm: Any, ranks: int) -> tuple[list[Array], str]:
    """W of each step until the graph begins anew, and what to say of that. W[to, from]."""
    graph, every = algorithm.graph, range(ranks)
    push = push_of(algorithm)
    heard, each = senders(graph, ranks, 0) if push else ([], 0)
    anew = max(1, len(heard) // max(1, each)) if push else period(graph, ranks)
    steps = [np.zeros((ranks, ranks)) for _ in range(anew or LONG)]
    for step, w in enumerate(steps):
        for rank in every:
            if push:
                kept, sent = shares(graph, ranks, step, rank)
                w[rank, rank] = kept
                w[list(sent), rank] = [kept * times for times in sent.values()]
            else:
                weights = mixing_weights(graph, ranks, step, algorithm.seed, rank)
                w[rank, rank] = 1 - sum(weights.values())
                w[rank, list(weights)] = list(weights.values())
    return steps, "another one at each step" if anew is None else f"{anew} steps, then anew" if anew > 1 else ""


def table(steps: list[Array], changing: str, name: str) -> list[str]:
    """Each rank's peers with their weights, and its own weight, step by step."""
    ranks = len(steps[0])
    lines = [f"{name}{f' ({changing})' if changing else ''}: from whom each rank takes what part, and its own"]
    columns = []
    for w in steps[:PANELS]:
        cells = []
        for rank in range(min(ranks, SHOWN)):
            peers = [peer for peer in np.flatnonzero(w[rank]) if peer != rank]
            found = [f"{peer}: {w[rank, peer]:.3g}" for peer in peers[:PEERS]]
            found += [f"and {len(peers) - PEERS} more"] if len(peers) > PEERS else []
            cells.append(f"{', '.join(found) or 'nobody'}; {w[rank, rank]:.3g}")
        columns.append([cell.ljust(max(map(len, cells))) for cell in cells])
    columns += [["..."] * len(columns[0])] if len(steps) > PANELS else []
    lines += [f"{rank:6}   {'  |  '.join(cells)}".rstrip() for rank, cells in enumerate(zip(*columns, strict=True))]
    if ranks > SHOWN:
        degrees = [np.count_nonzero(w - np.diag(np.diag(w)), axis=1) for w in steps]
        lines.append(f"   ...   {ranks - SHOWN} more ranks; a rank has {np.min(degrees)} to {np.max(degrees)} peers")
    return lines


def gap(steps: list[Array], changing: str) -> str:
    product = np.eye(len(steps[0]))
    for w in steps:
        product = w @ product
    others = np.sort(np.abs(np.linalg.eigvals(product)))[:-1]
    left = float(others[-1]) if len(others) else 0.0
    if left < 1e-9:
        return f"spectral gap: 1; after {len(steps)} step{'s' if len(steps) > 1 else ''} all ranks have the exact mean"
    found = 1 - left ** (1 / len(steps))
    mean = ", a mean over its steps" if changing else ""
    return f"spectral gap: {found:.3g}{mean}; by that share a step brings ranks together"


def traffic(algorithm: Algorithm, ranks: int, config_: Config, steps: int) -> str:
    """What a rank sends at a step, on average over so many."""
    dataset = open_dataset(config_.data).sized(config_.image_size)
    graph = models.graph(config_.model, len(dataset.classes), dataset.image)
    elements = Layout(graph.trained, graph.statistics).size
    if not algorithm.advised:
        return f"bytes a step: they depend on the gradients or models; {config_.model} has {elements * 4:,}"
    sent = bytes_sent(algorithm, ranks, elements, config_, steps)
    most = f", {max(sent):,.0f} at most" if max(sent) > 1.01 * np.mean(sent) else ""
    return (f"bytes a step: a rank sends {np.mean(sent):,.0f}{most}; {config_.model} has {elements * 4:,} (simulated, "
            f"{steps} step{'s' if steps > 1 else ''})")


def bytes_sent(algorithm: Algorithm, ranks: int, elements: int, config_: Config, steps: int) -> list[float]:
    """Each rank's, by step; of so many steps with gradients of zero, whose messages are as long as this model's."""
    machine = Machine(gradient=Gradient(1.0), scale=elements / ELEMENTS,
                      ranks_per_node=config_.ranks_per_node or 1)

    def main(host: SimulatedHost) -> float:
        own, x = replace(cast(Any, algorithm)), np.zeros(ELEMENTS, np.float32)
        g = np.zeros_like(x)

        def gradient(at: Array, /, hear: Hear | None = None, least: int = 0) -> Array:
            host.compute(lambda: None)
            if hear:
                hear(g, slice(0, g.size))
            return g
        how = config_.compress
        net = Compressed(cast(Any, host), how) if how != "none" else host
        optimizer = optim.find(config_.optimizer or own.default_optimizer)()
        own.start(net, x, optimizer.start(Layout({"x": x.shape}), x))
        begun = host.traffic.bytes_sent
        for _ in range(steps):
            own.step(x, gradient, 0.0)
        own.rest(x)
        return (host.traffic.bytes_sent - begun) / steps
    try:
        return Cluster(ranks, machine).run(main)
    except Deadlock as error:
        raise UsageError(f"on {ranks} ranks it cannot go on: {error}") from None


def draw(steps: list[Array], name: str, push: bool, path: Path) -> None:
    """A circle of ranks for each step, an edge as wide as its weight is large. UsageError if it cannot be written."""
    if path.suffix not in PICTURES:
        raise UsageError(f"--picture: expected a file {', '.join(PICTURES)}, found {str(path)!r}")
    require_matplotlib()
    from matplotlib import style
    ranks = len(steps[0])
    angles = np.pi / 2 - 2 * np.pi * np.arange(ranks) / ranks
    places = np.column_stack([np.cos(angles), np.sin(angles)])
    columns = min(4, len(steps))
    rows = -(-len(steps) // columns)
    with style.context(["default", STYLE]):
        figure, panels = canvas(rows, columns, min(5, 10 / columns) * rows)
        for step, axes in enumerate(panels.flat):
            axes.set_axis_off()
            if step < len(steps):
                circle(axes, steps[step], places, push)
                axes.set_title(f"step {step}" if len(steps) > 1 else "", fontsize="small")
        figure.suptitle(name, fontsize="medium", parse_math=False)
        try:
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise UsageError(f"--picture {path}: cannot be written ({error.strerror}); name a file that can") from None


def circle(axes: Any, w: Array, places: Array, push: bool) -> None:
    for to, peer in np.argwhere(w):
        if to < peer or (push and to != peer):
            axes.annotate("", places[to], places[peer], arrowprops={
                "arrowstyle": "-|>" if push else "-", "linewidth": 0.3 + 3 * w[to, peer], "color": COLOURS[0],
                "alpha": 0.3 + 0.7 * w[to, peer], "shrinkA": 4, "shrinkB": 6 if push else 4})
    axes.scatter(*places.T, s=30, color=COLOURS[1], zorder=3)
    for rank, place in enumerate(places if len(places) <= LABELLED else ()):
        axes.annotate(str(rank), 1.12 * place, ha="center", va="center", fontsize="x-small")
    axes.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal")
