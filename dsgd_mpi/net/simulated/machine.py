"""A simulated cluster as a TOML file describes it: nodes, links, switches, and how long a gradient takes.

All times are in seconds and all rates in bytes per second, each way. Rank r is on node r // ranks_per_node.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w

from dsgd_mpi.config import COUNT, Most, check_type, read_toml, suggestion
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.delays import Distribution

FOLDER = Path(__file__).parents[3] / "jobs" / "clusters"
Seconds = Annotated[float, 0, Most(1e9)]
Rate = Annotated[float, 1, Most(1e15)]
Factor = Annotated[float, 0, Most(1e6)]
Number = Annotated[int, 0, COUNT]


@dataclass(frozen=True)
class Link:
    """Between two ends: a message takes the latency, then its bytes / rate."""

    bytes_per_s: Rate = 12e9
    latency_s: Seconds = 2e-6


@dataclass(frozen=True)
class Tier:
    """Switches that join `nodes` nodes each, or the whole cluster; the first tier is next to the nodes.

    A switch's links to the tier above carry what its nodes' cards carry, divided by `oversubscription`; or
    `bytes_per_s`, if that is given.
    """

    nodes: Number = 0                       # 0: all
    groups: Number = 0                      # or an equal share of the nodes for each of so many switches
    oversubscription: Annotated[float, 1, Most(1e6)] = 1.0
    bytes_per_s: Annotated[float, 0, Most(1e15)] = 0.0
    hop_s: Seconds = 0.0                    # added by each passage through a switch of this tier


@dataclass(frozen=True)
class Gradient:
    """How long a rank computes for one."""

    seconds: Seconds | Callable[[int, int], float] = 0.1     # or a function of (rank, step)
    model: str = ""                         # that takes so long,
    batch: Number = 0                       # with so many images
    image: tuple[int, ...] = (224, 224, 3)
    jitter: Annotated[float, 0, Most(10)] = 0.0     # sigma of a log-normal factor whose mean is 1
    tail_probability: Annotated[float, 0, Most(1)] = 0.0     # of a step that takes longer, by a Pareto factor
    tail_alpha: Annotated[float, 0.1, Most(100)] = 2.0      # with this exponent
    histogram: tuple[float, ...] = ()       # measured seconds, drawn from evenly; instead of all above


@dataclass(frozen=True)
class Slow:
    """Ranks that are slower than others: by a factor, and by seconds added to each gradient."""

    ranks: tuple[int, ...] = ()             # these,
    nodes: tuple[int, ...] = ()             # all of these nodes,
    share: Annotated[float, 0, Most(1)] = 0.0   # or so many of all ranks, drawn at random
    factor: Annotated[float, 0.001, Most(1e6)] = 1.0
    seconds: Seconds = 0.0                  # added: constant, or the mean of what is drawn
    distribution: Distribution = "constant"     # uniform: from 0 to twice that
    begin_s: Seconds = 0.0                  # the first episode,
    end_s: Seconds = 0.0                    # its end; 0: it lasts
    every_s: Seconds = 0.0                  # and they come again; 0: there is one


@dataclass(frozen=True)
class Death:
    """A rank that computes nothing and answers nothing for a time."""

    rank: Number = 0
    at_s: Seconds = 0.0
    back_s: Seconds = 0.0                   # 0: never


@dataclass(frozen=True)
class Machine:
    """The default is a star of nodes with one rank each, of the order of 100 Gbit/s Ethernet."""

    name: str = "star"
    about: str = ""                         # with the sources of the figures
    ranks_per_node: Annotated[int, 1, COUNT] = 1
    cards: Annotated[int, 1, COUNT] = 1     # network cards of a node, shared by its ranks
    card: Link = Link()                     # each; the latency is that between two nodes, without the switches'
    node: Link = Link(100e9, 5e-7)          # a rank's, to others on its node
    tier: tuple[Tier, ...] = ()
    collective: Literal["fastest", "ring", "halving", "tree", "two-level"] = "fastest"  # for a mean; fastest: by size
    mean_s: Seconds = 0.0                   # added to the latency of each message of a mean
    mean_factor: Factor = 1.0               # times as long as a message's, a byte of it takes: it is added, too
    ordered_buckets: bool = True            # means of the same ranks take place one after another
    one_sided_s: Seconds = 0.0              # added by each one-sided call, for what it does besides its message
    read_factor: Factor = 1.0               # times as long as a message's, a byte that is read takes
    add_factor: Factor = 1.0                # and one that is added
    own_factor: Factor = 0.0                # and one of a rank's own part, read or added
    enters_mpi_s: Seconds = 0.0             # a computing target serves one-sided calls so often; 0: its card does
    gradient: Gradient = Gradient()
    slow: tuple[Slow, ...] = ()
    death: tuple[Death, ...] = ()
    scale: Annotated[float, 0, Most(1e12)] = 1.0    # bytes on the wire per byte here: a small model stands for a large


def star(latency_s: float = 2e-6, bytes_per_s: float = 12e9, gradient_s: float | Callable[[int, int], float] = 0.1,
         scale: float = 1.0) -> Machine:
    """Every rank on a node of its own, all joined by one switch that is never full."""
    return Machine(card=Link(bytes_per_s, latency_s), gradient=Gradient(gradient_s), scale=scale)


def found(name: str) -> Path:
    """The file of a cluster: a path, or the name of one in jobs/clusters. UsageError lists the choices."""
    shipped = FOLDER / f"{name}.toml"
    if name.endswith(".toml") or "/" in name or not shipped.exists():
        if Path(name).exists():
            return Path(name)
        choices = sorted(path.stem for path in FOLDER.glob("*.toml"))
        raise UsageError(f"--cluster: expected a TOML file, or one of {', '.join(choices)}; found {name!r}")
    return shipped


def read(path: str | Path) -> Machine:
    """UsageError names the entry that is wrong."""
    return described(read_toml(path), str(path))


def described(table: Any, where: str) -> Machine:
    """The cluster that such a table describes. UsageError names the entry that is wrong."""
    machine: Machine = parsed(Machine, table, where)
    for number, tier in enumerate(machine.tier, start=1):
        if not (tier.nodes or tier.groups) and number < len(machine.tier):
            raise UsageError(f"{where}: tier {number}: expected the nodes that one of its switches joins, since there "
                             "is a tier above")
    return machine


def parsed(cls: type, table: Any, where: str) -> Any:
    """A dataclass from a table of TOML, its fields from their types."""
    if not isinstance(table, Mapping):
        raise UsageError(f"{where}: expected a table, found {table!r}")
    hints = typing.get_type_hints(cls, include_extras=True)
    for key in table:
        if key not in hints:
            raise UsageError(f"{where}: unknown entry {key!r}{suggestion(key, hints)}")
    return cls(**{key: value_of(hints[key], value, f"{where}: {key}") for key, value in table.items()})


def value_of(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return parsed(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        if not isinstance(value, list):
            raise UsageError(f"{where}: expected a list, found {value!r}")
        annotated: Any = Annotated
        kind = annotated[kind, 0, COUNT] if kind in (int, float) else kind
        return tuple(value_of(kind, each, f"{where} {number}") for number, each in enumerate(value, start=1))
    options = [each for each in typing.get_args(hint) if typing.get_origin(each) is Annotated]
    kind = options[0] if options else hint  # without the function that tests may give
    check_type(kind, value, where)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) and kind_is_float(kind) else value


def kind_is_float(kind: Any) -> bool:
    return kind is float or (typing.get_origin(kind) is Annotated and typing.get_args(kind)[0] is float)


def to_toml(machine: Machine) -> str:
    """A file that `read` reads back."""
    return tomli_w.dumps(table_of(machine))


def table_of(machine: Machine) -> dict[str, Any]:
    """What differs from the defaults."""
    def told(thing: Any) -> dict[str, Any]:
        table = {}
        for item in dataclasses.fields(thing):
            value, usual = getattr(thing, item.name), item.default
            if value == usual:
                continue
            if dataclasses.is_dataclass(value):
                value = told(value)
            elif isinstance(value, tuple):
                value = [told(each) if dataclasses.is_dataclass(each) else each for each in value]
            table[item.name] = value
        return table
    return told(machine)
