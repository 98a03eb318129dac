"""`python -m dsgd_mpi checkpoint {list,verify,show} RUN`: what a run could go on from. Nothing is written."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from dsgd_mpi.arrays.strict import to_json
from dsgd_mpi.errors import UsageError
from dsgd_mpi.training.checkpoint import best_of, digests, path_of, read, steps_in
from dsgd_mpi.training.rankfile import Saved, Unfit

RUN = click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
MIB = 1 << 20


@click.group(context_settings={"max_content_width": 120})
def checkpoint() -> None:
    """The checkpoints of a run: which there are, whether they are whole, and what they hold."""


@checkpoint.command("list")
@RUN
def list_(run: Path) -> None:
    """One line for each: step, files, size, when it was written, where it is, and whether it is the best."""
    best = best_of(run)
    for step in found_in(run):
        path = path_of(run, step)
        files = [each.stat() for each in path.glob("rank*.h5") if each.is_file()]
        size, written = sum(each.st_size for each in files), max((each.st_mtime for each in files), default=0.0)
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(written))
        click.echo(f"step {step:>9,}   {len(files)} file{'s' if len(files) != 1 else ' '}   {size / MIB:8.1f} MiB   "
                   f"{when}   {path}{'   best' if step == best else ''}")


@checkpoint.command()
@RUN
def verify(run: Path) -> None:
    """Reads all files of all checkpoints; exit status 2 if one of them is not as it was written."""
    wrong = 0
    for step in found_in(run):
        try:
            count = len(whole(run, step))
            listed = bool(digests(path_of(run, step)))
            click.echo(f"step {step:>9,}   {count} file{'s' if count > 1 else ''} whole"
                       f"{'' if listed else ', as far as can be seen: an older version noted no digests'}")
        except Unfit as reason:
            wrong += 1
            click.echo(f"step {step:>9,}   cannot be used: {reason}")
    sys.exit(UsageError.exit_code if wrong else 0)


@checkpoint.command()
@RUN
@click.option("--step", type=int, help="Of this step.  [default: the newest]")
def show(run: Path, step: int | None) -> None:
    """What one checkpoint holds, as JSON: its attributes, its arrays by name, and what each rank has counted."""
    steps = found_in(run)
    if step is not None and step not in steps:
        raise UsageError(f"{run}: no checkpoint of step {step}; there are those of {', '.join(map(str, steps))}")
    try:
        files = whole(run, steps[-1] if step is None else step)
    except Unfit as reason:
        raise UsageError(f"{path_of(run, steps[-1] if step is None else step)}: {reason}") from None
    first = files[0]
    about: dict[str, Any] = {"step": first.step, "ranks": first.ranks, **first.about, "totals": [
        each for file in files for each in file.totals]}
    about["data"] = json.loads(about.get("data", "{}"))
    about["arrays"] = {name: f"{array.dtype} {array.shape}" for name, array in first.arrays.items()}
    click.echo(to_json(about, indent=2))


def found_in(run: Path) -> list[int]:
    """The steps of a run's checkpoints; UsageError if there is none."""
    steps = steps_in(run)
    if not steps:
        raise UsageError(f"{run}: no checkpoint; expected a run folder with folders checkpoint-STEP in it")
    return steps


def whole(run: Path, step: int) -> list[Saved]:
    """All files of a checkpoint: one for all ranks, or as many as ranks. Unfit."""
    first = read(run, step, 0)
    listed = len(digests(path_of(run, step))) or len(list(path_of(run, step).glob("rank*.h5")))
    if listed not in (1, first.ranks):
        raise Unfit(f"expected {first.ranks} files, found {listed}")
    return [first, *(read(run, step, rank) for rank in range(1, listed))]
