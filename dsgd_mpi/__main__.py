"""`python -m dsgd_mpi COMMAND`: one entry point for all. Nothing here needs MPI until a run starts."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from dsgd_mpi.terminal import print_anything

COMMANDS = {                                # name: module, function, help text
    "train": ("dsgd_mpi.train", "main", "Train a network; the same as `python -m dsgd_mpi.train`."),
    "data": ("dsgd_mpi.data.commands", "data", "Convert public data sets; check data files."),
    "simulate": ("dsgd_mpi.study.simulate", "simulate", "Train on a simulated cluster of any size, in virtual time."),
    "calibrate": ("dsgd_mpi.study.calibrate", "main", "Measure this cluster, for `simulate --cluster`."),
    "grid": ("dsgd_mpi.study.grid", "grid", "List the runs of a scaling study, or the options of one of them."),
    "study": ("dsgd_mpi.study.study", "study", "Run a study: each combination of its axes, for several seeds."),
    "advise": ("dsgd_mpi.study.advise", "advise", "Rank the algorithms for a cluster, by simulation and studies."),
    "plot": ("dsgd_mpi.study.plot", "plot", "Plot the curves of one or more runs."),
    "checkpoint": ("dsgd_mpi.training.command", "checkpoint", "List, verify or show the checkpoints of a run."),
    "doctor": ("dsgd_mpi.doctor.command", "doctor", "Report what this machine can train with, and any problems."),
}


def main() -> None:
    """Passes the rest of the command line on; a command's module is imported only when it is used."""
    print_anything()
    click = imported("click")
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        module, function, _ = COMMANDS[sys.argv[1]]
        command = getattr(imported(module), function)
        sys.argv = [f"python -m dsgd_mpi {sys.argv[1]}", *sys.argv[2:]]
        command(**({"prog_name": sys.argv[0]} if isinstance(command, click.Command) else {}))
        return
    if len(sys.argv) > 1 and sys.argv[1] not in ("-h", "--help"):
        click.echo(f"Error: unknown command {sys.argv[1]!r}; the choices are {', '.join(COMMANDS)}", err=True)
        sys.exit(2)
    click.echo("Usage: python -m dsgd_mpi COMMAND ...\n")
    for name, (_, _, text) in COMMANDS.items():
        click.echo(f"  {name:10}  {text}")
    click.echo("\n`python -m dsgd_mpi COMMAND --help` lists a command's options.")


def imported(module: str) -> Any:
    """A module, or a one-line error if this Python lacks one of the package's dependencies."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.startswith("dsgd_mpi"):
            raise
        print(f"Error: {sys.executable} has no package {missing.name.partition('.')[0]}; install dsgd_mpi for it, or "
              "use the Python that has it (a virtual environment, a module)", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
