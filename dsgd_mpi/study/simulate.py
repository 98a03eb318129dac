"""A run on a simulated cluster: `python -m dsgd_mpi simulate --cluster a100-ib --ranks 128 --algorithm gossip`.

The same algorithms, gradients, schedules and run folders as `train`; only time is simulated, by what the cluster's file
says of links and gradients. All ranks take turns in one process, with one network and one data set.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import click
import numpy as np

from dsgd_mpi import algorithms
from dsgd_mpi.arrays.flat import Array, Buckets, Hear, Layout
from dsgd_mpi.config import Config, GroupedCommand, command_line_options
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.simulated import machine as machines
from dsgd_mpi.net.simulated.cluster import Cluster, Deadlock
from dsgd_mpi.net.simulated.host import SimulatedHost
from dsgd_mpi.net.simulated.machine import Machine
from dsgd_mpi.nn import Model, models
from dsgd_mpi.study import timeline
from dsgd_mpi.study.style import require_matplotlib
from dsgd_mpi.train import config_of, read_files, read_run
from dsgd_mpi.training import inject
from dsgd_mpi.training.build import Prepared, check_ranks, prepare, slowness
from dsgd_mpi.training.display import Display
from dsgd_mpi.training.folder import claimed
from dsgd_mpi.training.job import work
from dsgd_mpi.training.output import write_whole
from dsgd_mpi.training.record import Record
from dsgd_mpi.training.signals import StopRequest

MEANINGFUL = ("slow", "nan", "raise")       # of the faults that can be injected: ranks share a process
ELEMENTS = 64                               # of the vector that stands for the model where there are no gradients


@dataclass(frozen=True)
class Simulation:
    """What is simulated besides the configuration of the run."""

    machine: Machine
    ranks: int
    gradients: Literal["real", "none"] = "real"
    as_model: str = ""                      # whose bytes and time count instead of the model's own
    timeline_s: float = 0.0                 # simulated seconds that are drawn

    def notes(self, machine: Machine) -> dict[str, str]:
        """For banner and summary."""
        seconds = machine.gradient.seconds
        return {"cluster": machine.name, "simulated": "all times and rates",
                "gradient_s": f"{seconds:.4g} s" if isinstance(seconds, float) else "a function",
                **({"stands_for": f"{self.as_model}, in bytes and in time"} if self.as_model else {}),
                **({"gradients": "none: the model does not learn"} if self.gradients == "none" else {})}


@click.command(cls=GroupedCommand, context_settings={"auto_envvar_prefix": "DSGD", "max_content_width": 120})
@command_line_options(callbacks={"resume": read_run})
@click.option("--config", "file", metavar="FILE.toml", multiple=True, is_eager=True, expose_value=False,
              callback=read_files, help="TOML file of options, as for `train`; repeatable.")
@click.option("--cluster", "cluster", metavar="NAME", default="ethernet-10g", show_default=True,
              help="A TOML file, or one of jobs/clusters by its name; 'list' prints them.")
@click.option("--ranks", "ranks", metavar="RANKS", type=click.IntRange(1), default=8, show_default=True,
              help="Ranks to simulate.")
@click.option("--gradients", type=click.Choice(["real", "none"]), default="real", show_default=True,
              help="Compute them, so that the model learns; or simulate time and messages alone.")
@click.option("--as", "as_model", metavar="MODEL", default="",
              help="Let messages and gradients be as long as this model's, e.g. resnet50.")
@click.option("--timeline", "seconds", metavar="SECONDS", type=click.FloatRange(0, min_open=True), default=None,
              help="Draw who computes, talks to whom and waits for whom in the first simulated seconds: timeline.png.")
@click.pass_context
def simulate(ctx: click.Context, /, cluster: str, ranks: int, gradients: Literal["real", "none"], as_model: str,
             seconds: float | None, **options: Any) -> None:
    """Train on a simulated cluster of any size, in virtual time.

    All options of `train` apply, and the run folder is the same, so `plot` reads it. What is simulated says so.
    """
    if cluster == "list":
        click.echo(catalogue())
        return
    machine = machines.read(machines.found(cluster))
    sys.exit(run(config_of(ctx, options), Simulation(machine, ranks, gradients, as_model, seconds or 0.0)))


def catalogue() -> str:
    """The clusters in jobs/clusters."""
    return "\n".join(f"{path.stem:16}  {machines.read(path).about.strip().splitlines()[0]}"
                     for path in sorted(machines.FOLDER.glob("*.toml")))


def run(config: Config, simulation: Simulation) -> int:
    """The exit status, as that of `train`. UsageError."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for fault in inject.parse(config.inject):
        if fault.kind not in MEANINGFUL:
            raise UsageError(f"--inject {fault.kind}: expected one of {', '.join(MEANINGFUL)}, since simulated ranks "
                             "share a process; a rank that dies is an entry [[death]] of the cluster's file")
    if simulation.timeline_s:
        require_matplotlib()
    idle = simulation.gradients == "none"
    if idle and not config.steps:
        raise UsageError("--gradients none: expected --steps, the number to simulate, found none")
    parts = prepare(config, None if idle else simulation.ranks)
    check_ranks(parts, simulation.ranks)
    machine = scaled(simulation, parts)
    parts.notes = simulation.notes(machine)
    claim = claimed(config, 0, simulation.ranks)
    assert claim
    cluster = Cluster(simulation.ranks, machine, config.seed)
    cluster.traced_s = simulation.timeline_s
    act = pass_time if idle else train
    stop = None if idle else StopRequest()  # without a model there is nothing to save
    status = 0
    with claim:
        write_whole(claim.folder / "cluster.toml", machines.to_toml(machine))
        start = time.perf_counter()
        if idle:
            gc.disable()                    # nothing here is cyclic, and to look for it takes a fifth of the time
        try:
            status = int(max(cluster.run(lambda host: act(parts, host, claim.folder, stop))))
        except Deadlock as error:
            raise UsageError(f"{config.algorithm} cannot go on: {error}") from None
        finally:
            gc.enable()
        if simulation.timeline_s:
            title = f"{' '.join([config.algorithm, *config.set])} on {machine.name}, simulated"
            timeline.draw(cluster.trace, cluster.travels, title,
                          claim.folder / "timeline.png", simulation.timeline_s)
        if not config.quiet:
            took = time.perf_counter() - start
            click.echo(f"{cluster.clock.now:.1f} simulated seconds took {took:.1f} s")
    return status


def scaled(simulation: Simulation, parts: Prepared) -> Machine:
    """The cluster on which this model, or the one that it stands for, is trained with this batch."""
    machine, config, graph = simulation.machine, parts.config, parts.graph
    machine = replace(machine, ranks_per_node=config.ranks_per_node or machine.ranks_per_node)
    as_graph = models.graph(simulation.as_model, *models.usual(simulation.as_model)) if simulation.as_model else graph
    own, large = (Layout(each.trained, each.statistics).size for each in (graph, as_graph))
    elements = own if simulation.gradients == "real" else ELEMENTS
    gradient = machine.gradient
    if not (gradient.seconds or gradient.histogram):
        raise UsageError(f"cluster {machine.name}: gradient: seconds: expected more than 0, found 0, and rates "
                         "would be infinite if nothing took time")
    if gradient.model:
        known = models.graph(gradient.model, models.usual(gradient.model)[0], cast(Any, tuple(gradient.image)))
        times = as_graph.macs * config.batch / (known.macs * gradient.batch)
        seconds = gradient.seconds
        gradient = replace(gradient, seconds=seconds if callable(seconds) else seconds * times, model="", batch=0,
                           histogram=tuple(each * times for each in gradient.histogram))
    return replace(machine, gradient=gradient, scale=machine.scale * large / elements)


def own_parts(parts: Prepared) -> Prepared:
    """One rank's, of which algorithm and optimizer have a state."""
    return replace(parts, algorithm=replace(cast(Any, parts.algorithm)), optimizer=replace(cast(Any, parts.optimizer)))


def train(parts: Prepared, host: SimulatedHost, folder: Path, stop: StopRequest | None) -> int:
    """A rank with real gradients."""
    if parts.network is None:
        config = parts.config
        parts.network = Model(parts.graph, config.batch, parts.kernels, config.seed, config.smoothing)
    assert stop
    with ExitStack() as claims:
        status: int = work(own_parts(parts), cast(Any, host), folder, stop, None, claims)
    return status


def zeros(host: SimulatedHost) -> algorithms.Gradient:
    """A gradient that takes no time but the simulated; it becomes final in eight pieces."""
    g = np.zeros(ELEMENTS, np.float32)
    pieces = [slice(begin, begin + 8) for begin in range(ELEMENTS - 8, -1, -8)]

    def finish(ready: Any) -> None:
        for _ in pieces:
            host.progress()                 # forward: as many shares of the time
        for piece in pieces if ready else ():
            ready(piece)
            host.progress()

    def gradient(at: Array, /, hear: Hear | None = None, least: int = 0) -> Array:
        host.compute(finish, ready=Buckets(least, lambda part: hear(g, part)) if hear else None)
        return g
    return gradient


def pass_time(parts: Prepared, host: SimulatedHost, folder: Path, stop: StopRequest | None) -> int:
    """A rank whose gradients are zero and take no time but the simulated."""
    config, own = parts.config, own_parts(parts)
    algorithm = own.algorithm
    steps = config.steps or 0
    workers = host.size - algorithms.serving(algorithm, host.size)
    display = Display(host.rank == 0 and not config.quiet, steps)
    record = Record(cast(Any, host), algorithm, folder, display, max(1, len(parts.dataset.train) // config.batch
                    // workers), config.batch, workers, config.log_every)
    x, nothing = np.zeros(ELEMENTS, np.float32), zeros(host)
    optimizer = own.optimizer.start(Layout({"x": x.shape}), x)
    algorithm.start(cast(Any, host), x, optimizer)
    slow = slowness(config, host.rank)

    def gradient(at: Array, /, hear: Hear | None = None, least: int = 0) -> Array:
        with record.compute:
            if slow:
                host.linger(slow(record.gradients))
            g = nothing(at, hear, least)
        record.gradients += 1
        return g
    display.begin(0)
    for step in range(steps):
        algorithm.step(x, gradient, 0.0)
        record.step(step + 1, 0.0)
    algorithm.rest(x)
    record.row = record.over_ranks(record.figures())
    display.end()
    record.row["images_per_s"] = record.row["images"] / record.row["wall_s"] if record.row["wall_s"] else None
    summary = record.finish("finished", steps, own.about(host.size))
    if host.rank == 0:
        display.table("result", {key: value for key, value in summary.items() if value not in (None, {})
                                 and key != "staleness_counts" and not key.startswith("rank_")})
        display.print(f"run folder: {folder}")
    return 0
