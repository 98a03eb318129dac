"""`grid`: the runs of a scaling study, each a number of ranks and an algorithm, numbered for a job array.

A job file names them in a table that `train` leaves alone; the rest of the file is what the runs have in common:

    [grid]
    ranks = [8, 16, 32]
    algorithms = ["allreduce", "gossip mode=push"]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import click

from dsgd_mpi import algorithms
from dsgd_mpi.config import read_toml
from dsgd_mpi.errors import UsageError


class Point(NamedTuple):
    ranks: int
    algorithm: str                          # name KEY=VALUE ...

    def label(self) -> str:
        """A folder's name; sorted by name, fewer ranks come first."""
        return f"{self.ranks:05d}-{self.algorithm.replace(' ', '-')}"

    def options(self) -> list[str]:
        """The options of `train`."""
        name, *settings = self.algorithm.split()
        return ["--algorithm", name, *(word for setting in settings for word in ("--set", setting))]


def points(path: Path) -> list[Point]:
    """Fewer ranks first. UsageError says what is wrong with the table."""
    table = read_toml(path).get("grid")
    ranks: Any = table.get("ranks") if isinstance(table, dict) else None
    names: Any = table.get("algorithms") if isinstance(table, dict) else None
    if not (all_of(int, ranks) and all_of(str, names) and min(ranks) > 0):
        raise UsageError(f"{path}: expected a table [grid] with ranks, positive integers, and algorithms, strings "
                         f"such as 'gossip mode=push'; found {table!r}")
    for name in names:
        first, *settings = name.split() or [""]
        algorithms.build(first, dict(setting.partition("=")[::2] for setting in settings))
    return [Point(count, " ".join(name.split())) for count in sorted(set(ranks)) for name in names]


def all_of(kind: type, values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(type(value) is kind for value in values)


@click.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.toml")
@click.option("--point", type=click.IntRange(min=0), help="Print this point only: its ranks, its label and its options "
              "of train, a word a line.")
def grid(file: Path, point: int | None) -> None:
    """List the points of the table [grid] in a job file: all its algorithms on all its numbers of ranks.

    slurm/scaling_array.sh makes each of them a run.
    """
    found = points(file)
    if point is None:
        for number, each in enumerate(found):
            click.echo(f"{number:4}  {each.ranks:5} ranks  {each.algorithm}")
    elif point < len(found):
        click.echo("\n".join([str(found[point].ranks), found[point].label(), *found[point].options()]))
    else:
        raise UsageError(f"{file}: has {len(found)} points, 0 to {len(found) - 1}; found --point {point}")
