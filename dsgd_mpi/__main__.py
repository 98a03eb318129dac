"""`python -m dsgd_mpi {train,data,grid,plot,doctor}`: all by one name. Nothing here needs MPI until a run starts."""

from __future__ import annotations

import importlib
import sys
from typing import Any

COMMANDS = {                                # name: module, function, what --help says
    "train": ("dsgd_mpi.train", "main", "Train a network; the same as `python -m dsgd_mpi.train`."),
    "data": ("dsgd_mpi.data.commands", "data", "Convert public data sets; check data files."),
    "grid": ("dsgd_mpi.study.grid", "grid", "List the runs of a scaling study, or the options of one of them."),
    "plot": ("dsgd_mpi.study.plot", "plot", "Draw the curves of one run or several."),
    "doctor": ("dsgd_mpi.doctor.command", "doctor", "Tell what is here to train with, and what is wrong."),
}


def main() -> None:
    """Passes the rest of the command line on; a part is imported only when it is asked for."""
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
        click.echo(f"  {name:6}  {text}")
    click.echo("\n`python -m dsgd_mpi COMMAND --help` lists a command's options.")


def imported(module: str) -> Any:
    """A module, or one line where this is a Python that the package was not installed for."""
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
