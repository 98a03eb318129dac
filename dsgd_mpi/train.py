"""Train a ResNet on one or more ranks: `mpirun -n 16 python -m dsgd_mpi.train`, or with `srun`, or without a launcher.

This is the command line: it is read, and errors are reported, before NumPy or MPI is imported. `job` does the rest.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dsgd_mpi.config import LENGTHS, TABLES, Config, GroupedCommand, command_line_options, from_toml
from dsgd_mpi.errors import UsageError
from dsgd_mpi.files import allow_many
from dsgd_mpi.net.launch import launched
from dsgd_mpi.terminal import print_anything

if TYPE_CHECKING:
    from dsgd_mpi.algorithms import Algorithm


def read_run(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        make_defaults(ctx, Path(value) / "config.toml")
    return value


def read_files(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> None:
    for value in values:
        make_defaults(ctx, Path(value))


def make_defaults(ctx: click.Context, path: Path) -> None:
    """A file's values become the defaults of all options yet to be read, and override those of earlier files."""
    before, found = ctx.default_map or {}, from_toml(path)
    for table, owner in TABLES.items():
        if found.get(owner) not in (None, before.get(owner)):
            before = {**before, table: ()}  # the options of another one
    if any(key in found for key in LENGTHS):
        before = {key: value for key, value in before.items() if key not in LENGTHS[1:]}
    words = {key: as_word(value) for key, value in found.items() if key not in TABLES}
    ctx.default_map = {**before, **words, **{table: (*before.get(table, ()), *found[table]) for table in TABLES}}


def as_word(value: Any) -> str:
    """As on the command line, since click would make an integer of 16.5 and a number of true."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@click.command(cls=GroupedCommand, context_settings={"auto_envvar_prefix": "DSGD", "max_content_width": 120})
@command_line_options(callbacks={"resume": read_run})
@click.option("--config", "file", metavar="FILE.toml", multiple=True, is_eager=True, expose_value=False,
              callback=read_files, help="TOML file of options; the command line and the environment win over it. "
              "Repeatable: later files win over earlier ones.")
@click.option("--dry-run", is_flag=True, help="Check everything that can be checked without MPI, and exit.")
@click.option("--print-config", is_flag=True, help="Print the resolved configuration as TOML, and exit.")
@click.option("--ranks", metavar="RANKS", type=click.IntRange(1, 1024), default=None, allow_from_autoenv=False,
              help="With --algorithm list NAME: on how many ranks to show it.  [default: those of the job, or 8]")
@click.option("--picture", metavar="FILE.png", default=None, allow_from_autoenv=False,
              help="With --algorithm list NAME: draw its graph.")
@click.argument("name", metavar="[NAME]", required=False)
@click.pass_context
def command(ctx: click.Context, /, dry_run: bool, print_config: bool, ranks: int | None, picture: str | None,
            name: str | None, **options: Any) -> Config | None:
    """Train a residual network on all ranks of an MPI job, or in a single process.

    Each option is also read from the environment (--lr from DSGD_LR) and from a file (--config); the command line wins,
    then the environment, then the file.

    --algorithm list NAME shows one algorithm, with the options that --set gives it: its formulas, whom each rank mixes
    with, the spectral gap of that, and the bytes of a step of --model.
    """
    config = config_of(ctx, options)
    if (ranks or picture or name) and (config.algorithm != "list" or not name):
        flag = f"argument {name}" if name else "--ranks" if ranks else "--picture"
        raise UsageError(f"{flag}: expected --algorithm list NAME, which shows one algorithm, found --algorithm "
                         f"{config.algorithm}{'' if name else ' without a NAME'}; ranks are started by mpirun -n")
    if name:
        size = launched().size or 1
        click.echo(shown(name, config, ranks or (size if size > 1 else 8), picture))
    elif config.algorithm == "list":
        click.echo(catalogue())
    elif config.optimizer == "list":
        click.echo(optimizers())
    elif print_config:
        click.echo(config.to_toml(), nl=False)
    elif dry_run:
        from dsgd_mpi.training.build import prepare
        started = launched().size
        prepare(config, started)
        click.echo(f"configuration OK: {config.algorithm} on {started or 'any number of'} ranks, {config.model}, "
                   f"{config.data}")
    else:
        config.algorithm_options()
        config.optimizer_options()
        return config
    return None


def config_of(ctx: click.Context, options: dict[str, Any]) -> Config:
    """The options of a command line and its files as one configuration."""
    for table in TABLES:
        in_file = (ctx.default_map or {}).get(table, ())
        if options[table] != in_file:       # the file's table, overridden by the command line
            options[table] = (*in_file, *options[table])
    for name, value in options.items():
        for word in value if isinstance(value, tuple) else (value,):
            if isinstance(word, str) and word.encode(errors="ignore").decode() != word:
                raise UsageError(f"--{name.replace('_', '-')}: expected text in UTF-8, as config.toml holds it, found "
                                 f"{word!r} in another encoding; rename it")
    return Config(**options | length(ctx), given=frozenset(given_by(ctx, ParameterSource.COMMANDLINE)))


def length(ctx: click.Context) -> dict[str, Any]:
    """What the first source that has a run's length overrides of those after it."""
    for source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT):
        found = [name for name in LENGTHS if name in given_by(ctx, source)]
        if len(found) > 1:
            flags = [f"--{name.replace('_', '-')}" for name in found]
            raise UsageError(f"{' and '.join(flags)}: expected one of them, found {len(found)}")
        if found:
            return dict.fromkeys(name for name in LENGTHS[1:] if name not in found)
    return {}


def given_by(ctx: click.Context, source: ParameterSource) -> list[str]:
    """The options that come from there."""
    return [name for name in ctx.params if ctx.get_parameter_source(name) == source]


def catalogue() -> str:
    """All algorithms: what each does, its source, its options, what it sends and which model it offers."""
    from dsgd_mpi import algorithms
    return "\n".join(entry(name, algorithms.find(name)()) for name in algorithms.names())


def entry(name: str, algorithm: Algorithm) -> str:
    """One of them, with its options as they are."""
    from dsgd_mpi import algorithms
    found = type(algorithm)
    options = " ".join(f"{key}={value}" for key, value in algorithm.options().items())
    ways = [" ".join(way) for way in algorithms.independent_ways(found)]
    shared_out = "yes" if "" in ways else f"with {' or '.join(ways)}" if ways else "no"
    return (f"{name}   --set {options}\n\n{(sys.modules[found.__module__].__doc__ or '').strip()}\n\n"
            f"    communication per step     {found.traffic}\n"
            f"    model evaluated and saved  {found.offers}\n"
            f"    moves, all-reduce being 1  {found.drift}\n"
            f"    --steps-total              {shared_out}\n")


def shown(name: str, config: Config, ranks: int, picture: str | None) -> str:
    """One of them on so many ranks. Only rank 0 draws."""
    from dsgd_mpi import algorithms
    from dsgd_mpi.study.listing import described
    algorithm = algorithms.build(name, config.algorithm_options())
    found = described(algorithm, ranks, config, picture if launched().rank == 0 else None)
    return f"{entry(name, algorithm)}\n{found}"


def optimizers() -> str:
    """All optimizers: what each does, its source and its options."""
    from dsgd_mpi import optim
    text = []
    for name in optim.names():
        found = optim.find(name)
        options = " ".join(f"{key}={str(value).lower() if isinstance(value, bool) else value}"
                           for key, value in found().options().items())
        text.append(f"{name}   --set-optimizer {options}\n\n{(sys.modules[found.__module__].__doc__ or '').strip()}\n")
    return "\n".join(text)


def main() -> None:
    """`python -m dsgd_mpi.train`, on every rank."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")      # before NumPy: its threads would compete with oneDNN's
    print_anything()
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)        # there is nothing to save yet
    config, problem = None, None
    try:
        allow_many()
    except UsageError as error:             # MPI could not even start
        if launched().rank == 0:
            click.echo(f"Error: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    try:
        config = parse()
    except click.ClickException as error:   # others may have no such problem, and would wait for this rank
        problem = UsageError(error.format_message())
    if config or problem or launched().size != 1:           # one that only prints meets the others, too
        from dsgd_mpi.training.job import run
        sys.exit(run(config, problem))


def parse() -> Config | None:
    """The configuration, or None if the command line only asks for output. All ranks read it; only rank 0 prints.

    Without other ranks an error ends the process.
    """
    rank, size, _ = launched()
    read = read_command_line if size == 1 else configured
    if rank == 0:
        return read()
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        return read()


def configured() -> Config | None:
    config: Config | int | None = command.main(prog_name="python -m dsgd_mpi.train", standalone_mode=False)
    return config if isinstance(config, Config) else None


def read_command_line() -> Config | None:
    try:
        return configured()
    except click.ClickException as error:
        click.echo(f"Error: {error.format_message()}", err=True)        # one line, without click's on usage
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
