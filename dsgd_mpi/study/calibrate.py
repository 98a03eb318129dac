"""Measure this cluster: `mpirun -n N python -m dsgd_mpi calibrate --out my.toml`, for `simulate --cluster my.toml`.

All ranks take part; rank 0 fits what they have measured and writes it, with a picture of each fit beside it. From runs
that are there already, `calibrate --from runs/*` infers the cluster, without MPI.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from dsgd_mpi.config import FIELDS, Config, click_option
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.api import Host
from dsgd_mpi.net.launch import launched
from dsgd_mpi.net.simulated import machine as machines
from dsgd_mpi.net.start import started_mpi
from dsgd_mpi.study import from_runs
from dsgd_mpi.study.fits import Fit, machine_of, percent
from dsgd_mpi.study.style import COLOURS, STYLE, canvas, require_matplotlib
from dsgd_mpi.study.timings import Groups, gradients, messages, steps, to_busy
from dsgd_mpi.terminal import print_anything
from dsgd_mpi.training.build import Prepared, connect, on_gpu, prepare
from dsgd_mpi.training.job import attempted, fail, told
from dsgd_mpi.training.output import write_whole

USED = ("model", "batch", "data", "device", "kernels", "dtype", "threads")      # of the options of `train`
SECONDS, QUICK_S = 40.0, 2.0
BUSY_TURNS = 30                             # additions to a rank that computes
MOST_RANKS = 128                            # for which step times are predicted from runs


@dataclass(frozen=True)
class Asked:
    """The command line."""

    config: Config
    out: Path
    seconds: float
    runs: tuple[Path, ...] = ()             # from which it is inferred
    most: int = MOST_RANKS


@click.command(context_settings={"auto_envvar_prefix": "DSGD", "max_content_width": 120})
@click.option("--out", metavar="FILE.toml", type=click.Path(path_type=Path), default="cluster.toml", show_default=True,
              allow_from_autoenv=False, help="What to write; a picture of each fit is FILE.png.")
@click.option("--seconds", type=click.FloatRange(min=0.5, max=3600), default=SECONDS, show_default=True,
              help="About how long to measure.")
@click.option("--quick", is_flag=True, help=f"In {QUICK_S:g} seconds, not accurately.")
@click.option("--from", "first", metavar="RUN...", type=click.Path(path_type=Path), default=None,
              allow_from_autoenv=False, help="Infer it from finished runs instead, for example those of a scaling "
              "array: run folders, or folders of them. No MPI is needed.")
@click.option("--ranks", "most", metavar="RANKS", type=click.IntRange(1), default=MOST_RANKS, show_default=True,
              allow_from_autoenv=False, help="With --from: predict step times on up to so many.")
@click.argument("more", nargs=-1, metavar="", type=click.Path(path_type=Path))
@click.pass_context
def command(ctx: click.Context, /, out: Path, seconds: float, quick: bool, first: Path | None, most: int,
            more: tuple[Path, ...], **options: Any) -> Asked:
    """Measure what a simulated cluster is described by, on all ranks of an MPI job.

    Messages within and between nodes, averages, one-sided calls, and the time of a gradient. With one rank, the
    gradient only. Then: python -m dsgd_mpi simulate --cluster FILE.toml --ranks N
    """
    if more and first is None:
        raise UsageError(f"expected options only, found {more[0]}; runs are given after --from")
    return Asked(Config(**options), out, QUICK_S if quick else seconds, (first, *more) if first else (), most)


for each in reversed(USED):
    command = click_option(FIELDS[each], {})(command)


def main() -> None:
    """On every rank."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")      # before NumPy, as `train` does
    print_anything()
    rank, size, _ = launched()
    asked, problem = None, None
    try:
        asked = parse(rank == 0)
    except click.ClickException as error:   # others may have no such problem, and would wait for this rank
        problem = UsageError(error.format_message())
    if asked or problem:
        sys.exit(run(asked or Asked(Config(), Path(), 0.0), problem, rank, size))


def parse(talks: bool) -> Asked | None:
    """None if the command line only asks for help. ClickException."""
    def read() -> Any:
        return command.main(prog_name="python -m dsgd_mpi calibrate", standalone_mode=False)
    if talks:
        found = read()
    else:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            found = read()
    return found if isinstance(found, Asked) else None


def run(asked: Asked, problem: UsageError | None, rank: int, size: int | None) -> int:
    """The exit status; 2 for a usage error."""
    if asked.runs:
        return infer(asked) if rank == 0 else 0
    parts = None
    if not problem:
        parts, problem = attempted(prepare, asked.config, size)
    if not problem and rank == 0:
        _, problem = attempted(check_out, asked.out)
    if problem and size == 1:
        problem.show()
        return problem.exit_code
    host, unusable = attempted(started_mpi, max(size or 0, rank + 1))
    if unusable:
        if rank == (0 if size else 1):
            (problem or unusable).show()
        return unusable.exit_code
    assert host
    try:
        if told(host, problem):
            return UsageError.exit_code
        assert parts
        _, problem = attempted(on_gpu, parts, host)
        groups, problem = (None, problem) if problem else attempted(places, host)
        if told(host, problem):
            return UsageError.exit_code
        net, problem = attempted(connect, parts, host)
        if told(host, problem):
            return UsageError.exit_code
        assert net
        assert groups
        if host.rank == 0:
            click.echo(f"measuring {groups.per_node} ranks on each of {groups.nodes} nodes, for about "
                       f"{asked.seconds:g} s" if host.size > 1 else
                       "measuring the gradient alone: messages need more ranks (mpirun -n 2)")
        machine, fits = measured(parts, net, groups, asked.seconds)
        if host.rank == 0:
            say(machine, fits, groups)
            _, problem = attempted(write, asked.out, machine, partial(draw, machine, fits))
        if told(host, problem):
            return UsageError.exit_code
        host.close()
        return 0
    except BaseException as failure:
        fail(host, failure)
        raise                               # never reached: the job is gone


def infer(asked: Asked) -> int:
    """The exit status; what was found is written beside a picture of it."""
    try:
        check_out(asked.out)
        found = from_runs.inferred(asked.runs)
        click.echo("\n".join(from_runs.told(found, asked.most)))
        click.echo(f"off by {percent(found.error)} (root mean square)")
        write(asked.out, found.machine, lambda path: from_runs.draw(found, asked.most, path))
    except UsageError as problem:
        problem.show()
        return problem.exit_code
    return 0


def check_out(out: Path) -> None:
    """UsageError, before anything is measured, if the files cannot be written."""
    if out.suffix != ".toml":
        raise UsageError(f"--out: expected a file FILE.toml, found {str(out)!r}")
    if out.is_dir() or not out.absolute().parent.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise UsageError(f"--out: {out} cannot be written; choose a file in a folder that is there and writable")
    require_matplotlib()


def places(host: Host) -> Groups:
    """Collective: UsageError, the same on all ranks, unless nodes have as many ranks each, one after the other."""
    names = [place["host"] for place in host.allgather(host.place())]
    nodes = list(dict.fromkeys(names))
    per_node = len(names) // len(nodes)
    if names != [node for node in nodes for _ in range(per_node)]:
        counts = ", ".join(f"{names.count(node)} on {node}" for node in nodes)
        raise UsageError(f"expected the same number of ranks on each node, in order, found {counts}; start them so: "
                         f"mpirun -ppn {max(1, min(map(names.count, nodes)))}, or srun --ntasks-per-node "
                         "--distribution=block")
    return Groups(host.rank, host.size, per_node)


def measured(parts: Prepared, host: Host, groups: Groups, seconds: float) -> tuple[machines.Machine, list[Fit]]:
    """Collective: the cluster that this one is, and its fits."""
    from dsgd_mpi.data import Batches
    config = parts.config
    parts.kernels.set_threads(config.threads or host.cores())
    model = parts.model()
    host.settle()                           # the ranks of a simulated cluster have one model
    optimizer = parts.optimizer.start(model.layout, model.flat, parts.kernels)
    batches = Batches(parts.dataset.train, config.batch, host.rank, host.size, config.seed,
                      byte_memory=parts.kernels.byte_memory, prefetch=parts.network is None)
    stepping = steps(host, model, optimizer, batches)
    own = model.flat.nbytes
    taken = gradients(host, stepping, seconds / 3, 16)
    timings = messages(host, groups, model.flat, own, seconds / 3) if host.size > 1 else {}
    busy = to_busy(host, groups, model.flat, own, stepping, BUSY_TURNS) if host.size > 1 else 0.0
    taken = [before + after for before, after in
             zip(taken, gradients(host, stepping, seconds / 3, 16), strict=True)]
    stepping.close()
    about = (f"Measured {time.strftime('%Y-%m-%d')} by calibrate on {groups.nodes} x {groups.per_node} ranks, "
             f"{platform.node()}, {host.library()}; {config.model}, batch {config.batch}, {config.data}, "
             f"{parts.kernels.name}. A gradient's time is that of a whole step but for its messages.")
    return machine_of(timings, taken, groups, own, busy, config.model, config.batch, tuple(parts.dataset.image),
                      platform.node(), about)


def say(machine: machines.Machine, fits: list[Fit], groups: Groups) -> None:
    """What was found, a line each."""
    for fit in fits:
        click.echo(f"  {fit.title:34} off by {percent(fit.error)}, half of the sizes by less")
    histogram = sorted(machine.gradient.histogram)
    click.echo(f"  step without messages: {1e3 * histogram[len(histogram) // 2]:.3g} ms, "
               f"{1e3 * histogram[0]:.3g} to {1e3 * histogram[-1]:.3g}"
               + "".join(f"; rank {slow.ranks[0]} {slow.factor:.2f} times as long" for slow in machine.slow))


def write(out: Path, machine: machines.Machine, picture: Callable[[Path], None]) -> None:
    """UsageError if the disk will not have it."""
    try:
        write_whole(out, machines.to_toml(machine))
        picture(out.with_suffix(".png"))
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror}); choose another --out") from None
    click.echo(f"{out}\n{out.with_suffix('.png')}\nnow: python -m dsgd_mpi simulate --cluster {out}")


def draw(machine: machines.Machine, fits: list[Fit], path: Path) -> None:
    """A panel for each fit, measured points and the curve, and one of the gradient's time."""
    from matplotlib import style

    columns = min(3, len(fits) + 1)
    rows = -(-(len(fits) + 1) // columns)
    with style.context(["default", STYLE]):
        figure, axes = canvas(rows, columns, 3.2 * rows)
        panels = [panel for row in axes for panel in row]
        for fit, panel in zip(fits, panels, strict=False):
            panel.plot(fit.points.bytes, [1e3 * each for each in fit.points.seconds], "o", color=COLOURS[0],
                       label="measured")
            panel.plot(fit.points.bytes, [1e3 * each for each in fit.curve], "-", color=COLOURS[1], label="fitted")
            panel.set(title=fit.title, xscale="log", yscale="log", xlabel="bytes", ylabel="ms")
            panel.legend(frameon=False)
        panel = panels[len(fits)]
        seconds = [1e3 * each for each in machine.gradient.histogram]
        panel.plot(seconds, [(number + 0.5) / len(seconds) for number in range(len(seconds))], "o-",
                   color=COLOURS[2], markersize=3)
        panel.set(title="step without messages", xlabel="ms", ylabel="share of steps that take less", ylim=(0, 1))
        for panel in panels[len(fits) + 1 :]:
            panel.set_axis_off()
        for panel in panels:
            panel.title.set_fontsize("medium")
        figure.savefig(path, dpi=120, format="png")


