"""Train a ResNet on one rank or many: `mpirun -n 16 python -m dsgd_mpi.train`, `srun python -m dsgd_mpi.train`, or alone.

The command line is read, and all that this rank can check alone is checked, before MPI is imported. From then on any
error on any rank ends the whole job, with that rank's message and a status that is not zero.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

import click

from dsgd_mpi.config import Config, GroupedCommand, command_line_options, from_toml
from dsgd_mpi.errors import UsageError
from dsgd_mpi.launch import launched
from dsgd_mpi.run.signals import STATUS, StopRequest

log = logging.getLogger("dsgd_mpi")


def read_file(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Makes a file's values the defaults of all options that are still to be read."""
    if value is not None:
        path = Path(value) / "config.toml" if parameter.name == "resume" else Path(value)
        ctx.default_map = {**(ctx.default_map or {}), **from_toml(path)}
    return value


@click.command(cls=GroupedCommand, context_settings={"auto_envvar_prefix": "DSGD", "max_content_width": 120})
@command_line_options
@click.option("--config", "file", metavar="FILE.toml", is_eager=True, expose_value=False, callback=read_file,
              help="Options as a TOML file; those given here or in the environment win.")
@click.option("--dry-run", is_flag=True, help="Check everything that can be checked without MPI, and stop.")
@click.option("--print-config", is_flag=True, help="Print the resolved configuration as TOML, and stop.")
def command(dry_run: bool, print_config: bool, **options: Any) -> None:
    """Train a residual network on all ranks of an MPI job, or on one.

    Each option is also read from the environment (--lr from DSGD_LR) and from a file (--config); the command line wins,
    then the environment, then the file.
    """
    config = Config(**options)
    if config.algorithm == "list":
        return click.echo(catalogue())
    config.algorithm_options()
    if print_config:
        return click.echo(config.to_toml(), nl=False)
    from dsgd_mpi.build import prepare      # NumPy is imported here: see main
    place = launched()
    if dry_run:
        prepare(config, place.size)
        return click.echo(f"all is well: {config.algorithm} on {place.size} ranks, {config.model}, {config.data}")
    sys.exit(run(config))


def catalogue() -> str:
    """All algorithms: what each does, its source, its options."""
    from dsgd_mpi import algorithms
    text = []
    for name in algorithms.names():
        found = algorithms.find(name)
        module = sys.modules[found.__module__]
        options = ", ".join(f"{item.name}={item.default}" for item in dataclasses.fields(found))  # type: ignore[arg-type]
        text.append(f"{name}   --set {options}\n\n{(module.__doc__ or '').strip()}\n")
    return "\n".join(text)


def run(config: Config) -> int:
    """One run, from start to end, on this rank; the exit status."""
    from dsgd_mpi.run.session import Session    # NumPy is imported here: see main
    stop = StopRequest()
    place = launched()
    try:
        session = Session(config, place)
    except UsageError:
        raise
    return session.run(stop)


def main() -> NoReturn:
    """`python -m dsgd_mpi.train`."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")      # before NumPy: its threads would spin beside oneDNN's
    command.main(prog_name="python -m dsgd_mpi.train")
