"""`grid`: the runs of a scaling study, each a number of ranks and an algorithm, numbered for a job array.

A job file names them in a table that `train` leaves alone; the rest of the file is what the runs have in common:

    [grid]
    ranks = [8, 16, 32]
    algorithms = ["allreduce", "gossip mode=push"]

A study file, as `study` reads it, has more axes, and a name for each run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import click

from dsgd_mpi.config import read_toml
from dsgd_mpi.errors import UsageError
from dsgd_mpi.study import axes, plan
from dsgd_mpi.study.results import reader


class Point(NamedTuple):
    ranks: int
    algorithm: str                          # name KEY=VALUE ...
    name: str = ""                          # of its folder
    words: tuple[str, ...] = ()

    def label(self) -> str:
        """A folder's name; sorted by name, fewer ranks come first."""
        return self.name or f"{self.ranks:05d}-{self.algorithm.replace(' ', '-')}"

    def options(self) -> list[str]:
        """The options of `train`."""
        name, *settings = self.algorithm.split()
        return list(self.words) or ["--algorithm", name, *(word for each in settings for word in ("--set", each))]


def points(path: Path, results: Path | None = None) -> dict[int, Point]:
    """By number, fewer ranks first. Of a study, those that are known by now. UsageError says what is wrong."""
    content = read_toml(path)
    if "study" in content:
        study = plan.read(path, "slurm")
        study.results = results or study.results
        return {number: Point(cell.ranks, cell.way.label, cell.name, tuple(cell.words()))
                for number, cell in study.slots(reader(study)).items()}
    table: Any = content.get("grid")
    if not isinstance(table, dict):
        raise UsageError(f"{path}: expected a table [grid] with ranks, positive integers, and algorithms, strings "
                         f"such as 'gossip mode=push'; found {table!r}")
    ranks = axes.ranks(table.get("ranks"), f"{path}: [grid]: ranks")
    ways = axes.ways(table.get("algorithms"), f"{path}: [grid]: algorithms")
    return dict(enumerate(Point(count, way.plain()) for count in ranks for way in ways))


@click.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.toml")
@click.option("--point", type=click.IntRange(min=0), help="Print this point only: its ranks, its label and its options "
              "of train, a word a line.")
@click.option("--results", type=click.Path(path_type=Path), envvar="DSGD_GRID_RESULTS", metavar="FOLDER",
              help="Of a study: where its results are, which tell the best rates.  [default: the file's]")
def grid(file: Path, point: int | None, results: Path | None) -> None:
    """List the points of a job file's table [grid], all its algorithms on all its numbers of ranks, or of a study.

    slurm/scaling_array.sh makes each of them a run.
    """
    found = points(file, results)
    if point is None:
        for number, each in found.items():
            click.echo(f"{number:4}  {each.ranks:5} ranks  {each.algorithm}")
    elif point in found:
        click.echo("\n".join([str(found[point].ranks), found[point].label(), *found[point].options()]))
    else:
        raise UsageError(f"{file}: has {len(found)} points, 0 to {len(found) - 1}; found --point {point}")
