"""The algorithms, ways to distribute SGD: one file each, found by its name; its dataclass's fields are its options."""

from __future__ import annotations

import dataclasses
import logging
import pkgutil
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, cast, get_args, get_origin, get_type_hints

from dsgd_mpi import config
from dsgd_mpi.arrays.flat import Array, Hear, Layout
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.api import Net
from dsgd_mpi.net.graph_file import GraphFile
from dsgd_mpi.optim.api import Optimizer
from dsgd_mpi.optim.sgd import Sgd

RENAMED = {"push_sum": ("graph", {"exponential": "sgp", "random": "gosgd"})}    # by an option, the first its default
log = logging.getLogger("dsgd_mpi")


class Gradient(Protocol):
    def __call__(self, x: Array, /, hear: Hear | None = None, least: int = 0) -> Array:
        """The gradient at x on this rank's next batch, valid until the next call.

        `hear(g, part)` is called as slices g[part] of at least `least` elements become final, from back to front. It
        may begin communication, but must not wait for it. If x is not the array that `step` was given, that array
        serves as scratch memory: it is restored before the call returns, but must not be in flight to another rank.
        """


class Algorithm:
    """The base class; each file in this folder defines one dataclass that derives from it.

    What a class does not declare has the default given here; what depends on its options is set in `__post_init__`.
    Options are the dataclass's fields.
    """

    default_optimizer: ClassVar[str] = "sgd"
    traffic: ClassVar[str]                  # what a rank communicates per step
    offers: ClassVar[str] = "the mean of all models"    # which model `answer` returns
    drift: ClassVar[str] = "1"              # its speed under a constant gradient, in units of all-reduce's
    one_model: ClassVar[bool] = False       # x is the same on all ranks after each step,
    replicated: ClassVar[bool] = False      # and so are all of `keeps`
    one_sided: bool = False                 # it uses memory that the ranks share
    survives: bool = False                  # it can go on without a rank that has died, by `go_on`
    alike: ClassVar[tuple[str, ...]] = ()   # those of `keeps`, arrays, that are the same on all ranks
    may_round: bool = True                  # its messages may be rounded to 16 bits, unless it is one-sided
    may_skip_step: ClassVar[bool] = True    # a rank may skip an update, as float16 must where a gradient overflows
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({},)  # options with which all laws are tested,
    advised: ClassVar[tuple[dict[str, Any], ...]] = ({},)   # and with which `advise` considers it
    keeps: tuple[str, ...] = ("t",)         # attributes that a checkpoint holds besides x and the optimizer's state
    servers: int = 0                        # this many ranks, the first ones, only serve the others and have no data
    updates_add_up: bool = False            # n ranks move the model by the sum of their updates, not by the mean
    usual_lr: float = 0.0                   # a rate that suits it, if its steps have a size of their own; else 0
    gentle: bool = False                    # it needs smaller rates than all-reduce, as what is delayed does
    independent: bool = False               # no step depends on another rank's: ranks may take different numbers
    alone_is_sgd: bool = True               # on a single rank it equals the plain optimizer, step by step
    t = 0                                   # steps taken
    applied: int | None = None              # gradients that this rank has applied since `start`; None: all its own

    net: Net
    optimizer: Optimizer
    trained: slice                          # of x: the trained parameters,
    statistics: slice                       # and batch norm's running statistics

    @property
    def ordered(self) -> bool:
        """Whether messages are summed in a fixed order, so that runs over MPI are bitwise reproducible."""
        return not self.one_sided and not self.independent

    def options(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(cast(Any, self))}

    def graphs(self) -> list[GraphFile]:
        """Those that its options have read from files."""
        return [value for value in self.options().values() if isinstance(value, GraphFile)]

    def suits(self, size: int) -> None:
        """UsageError if it cannot run on so many ranks."""
        for graph in self.graphs():
            graph.check(size)

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        """Collective, once. x is the same on all ranks, or comes from a checkpoint; then `keeps` are already set."""
        self.net, self.optimizer = net, optimizer
        self.trained, self.statistics = optimizer.trained, slice(optimizer.trained.stop, None)

    def go_on(self, net: Net, skipped: int) -> None:
        """Collective, before `start`, on a `net` of fewer ranks: others have died, and what was under way is gone.

        `keeps` are as at the beginning of a step, of which this rank leaves out the next `skipped`.
        """
        self.t += skipped

    def in_step(self) -> bool:
        """Whether x and the optimizer's state are now the same on all ranks."""
        return self.replicated

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        """One step, in place."""
        raise NotImplementedError

    def rest(self, x: Array) -> None:
        """Collective: completes what is in flight, so that x and `keeps` are the whole state."""

    def answer(self, x: Array) -> Array:
        """Collective: the model that the algorithm offers now, the same on all ranks. x itself is unchanged."""
        return x if self.one_model else self.net.mean(x.copy()).wait()


def serving(algorithm: Algorithm, size: int) -> int:
    """How many of `size` ranks, the first ones, only serve; a single rank does everything itself."""
    if size > 1 and algorithm.servers >= size:
        raise UsageError(f"{algorithm.servers} servers leave no worker among {size} ranks; expected at most {size - 1}")
    return algorithm.servers if size > 1 else 0


def mean_of_workers(net: Net, x: Array, servers: int) -> Array:
    """Collective: the mean of x over all ranks but the first `servers`."""
    weight = net.size / (net.size - servers) if net.rank >= servers else 0
    return net.mean(weight * x).wait()


def outer_sgd(x0: Array, u: Array, momentum: float, nesterov: bool) -> tuple[Sgd, Array]:
    """An SGD of x0, a model of all ranks, and its momentum, which begins as u; zero if u is empty."""
    outer = Sgd(momentum, nesterov, weight_decay=0.0).start(Layout({"x": x0.shape}), x0)
    if len(u):
        outer.state["v"][:] = u
    return outer, outer.state["v"]


def independent() -> list[str]:
    """The algorithms whose steps do not depend on other ranks', each with the option that it needs for that, if any."""
    return [" ".join([name, *way]) for name in names() for way in independent_ways(find(name))]


def surviving() -> list[str]:
    """The algorithms that can go on without a rank that has died."""
    return [name for name in names() if find(name)().survives]


def independent_ways(algorithm: type[Algorithm]) -> list[list[str]]:
    """The single options, as KEY=VALUE, for which `independent` is true; [[]] if it is true by default."""
    if algorithm().independent:
        return [[]]
    choices = [(name, value) for name, hint in get_type_hints(algorithm).items() if get_origin(hint) is Literal
               for value in get_args(hint)]
    return [[f"{name}={value}"] for name, value in choices if algorithm(**{name: value}).independent]


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> type[Algorithm]:
    """The algorithm's class; UsageError if there is none of that name."""
    if name not in names():
        raise UsageError(f"unknown algorithm {name!r}; the choices are {', '.join(names())}")
    found = config.class_in(f"{__name__}.{name}", Algorithm)
    assert found, f"{name}.py must define a dataclass that derives from Algorithm"
    return found


def build(name: str, options: Mapping[str, str]) -> Algorithm:
    """The algorithm with options given as strings. A former name is accepted, with a warning. UsageError."""
    options = dict(options)
    if name in RENAMED:
        option, meanings = RENAMED[name]
        old = f"{name} {option}={options[option]}" if option in options else name
        way = options.pop(option, next(iter(meanings)))
        if way not in meanings:
            raise UsageError(f"{name}: {option}: expected one of {', '.join(meanings)}, found {way!r}")
        log.warning("%s is now called %s: use --algorithm %s", old, meanings[way], meanings[way])
        name = meanings[way]
    found: Algorithm = config.build(find(name), options, name)
    return found


def parsed(text: str, what: str) -> Algorithm:
    """An algorithm in one word, NAME or NAME:KEY=VALUE,KEY=VALUE. UsageError begins with `what`."""
    name, _, options = text.partition(":")
    pairs = [option.partition("=") for option in options.split(",") if option]
    if not all(equals for _, equals, _ in pairs):
        raise UsageError(f"{what}: expected an algorithm such as gossip:mode=push,period=2, found {text!r}")
    try:
        return build(name, {key: value for key, _, value in pairs})
    except UsageError as problem:
        raise UsageError(f"{what}: {problem.format_message()}") from None
