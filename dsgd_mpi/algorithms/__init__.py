"""The ways to spread SGD over many ranks: one file each, found by its name, its dataclass fields being its options."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import pkgutil
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, cast, get_args, get_origin, get_type_hints

from dsgd_mpi import config
from dsgd_mpi.arrays.flat import Array, Hear
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.api import Net
from dsgd_mpi.optim.api import Optimizer

RENAMED = {"push_sum": ("graph", {"exponential": "sgp", "random": "gosgd"})}    # by an option, the first its default
log = logging.getLogger("dsgd_mpi")


class Gradient(Protocol):
    def __call__(self, x: Array, /, hear: Hear | None = None, least: int = 0) -> Array:
        """The gradient at x on this rank's next batch, valid until the next call.

        `hear(g, part)` is called as stretches g[part] of at least `least` numbers become final, from the back to the
        front. If x is another array than the one that `step` was given, that one lends its memory meanwhile: it is
        restored before the call returns, but must not be under way to another rank.
        """


class Algorithm:
    """The base of all; each file in this folder defines one dataclass that derives from it.

    What a class does not declare is as here; what depends on the options it sets in `__post_init__`. Options are the
    dataclass's fields.
    """

    default_optimizer: ClassVar[str] = "sgd"
    traffic: ClassVar[str]                  # what a rank communicates in a step
    offers: ClassVar[str] = "the mean of all models"    # which model `answer` gives
    keeps: ClassVar[tuple[str, ...]] = ("t",)   # attributes that a checkpoint holds beside x and the optimizer's state
    replicated: ClassVar[bool] = False      # x and all that is kept are the same on all ranks after each step
    one_sided: ClassVar[bool] = False       # it works in memory that the ranks share
    may_skip_step: ClassVar[bool] = True    # a rank may leave out an update, as float16 must where a gradient overflows
    updates_add_up: ClassVar[bool] = False  # n ranks move the model by the sum of their updates: a law lowers the rate
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({},)  # options on which all laws are to be tried
    servers: int = 0                        # how many ranks, the first ones, work for the others and have no data
    independent: bool = False               # no step needs another rank's: ranks may do different numbers of them
    alone_is_sgd: bool = True               # one rank alone does what the optimizer does, step by step
    t = 0                                   # steps done

    net: Net
    optimizer: Optimizer

    @property
    def ordered(self) -> bool:
        """Whether messages are added up in a fixed order, so that runs over MPI are the same to the bit."""
        return not self.one_sided and not self.independent

    def options(self) -> dict[str, Any]:
        return dataclasses.asdict(cast(Any, self))

    def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
        """Collective, once. x is the same on all ranks; or it is a resumed run's, and what is kept is set already."""
        self.net, self.optimizer = net, optimizer

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        """One step, in place."""
        raise NotImplementedError

    def rest(self, x: Array) -> None:
        """Collective: brings home what is in flight, so that x and what is kept are all there is."""

    def answer(self, x: Array) -> Array:
        """Collective: the model that the method offers now, the same on all ranks. x itself is left alone."""
        return self.net.mean(x.copy()).wait()


def serving(algorithm: Algorithm, size: int) -> int:
    """How many of so many ranks, the first ones, only serve; a rank alone does everything itself."""
    if size > 1 and algorithm.servers >= size:
        raise UsageError(f"{algorithm.servers} servers leave no worker among {size} ranks; expected at most {size - 1}")
    return algorithm.servers if size > 1 else 0


def independent() -> list[str]:
    """The algorithms whose steps need no other rank's, with the option that makes it so where it is not the default."""
    return [" ".join([name, *way]) for name in names() for way in independent_ways(find(name))]


def independent_ways(algorithm: type[Algorithm]) -> list[list[str]]:
    """The single options, as KEY=VALUE, with which `independent` is true; [[]] if it is so by default."""
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
    module = importlib.import_module(f"{__name__}.{name}")
    found: list[type[Algorithm]] = [
        thing for thing in vars(module).values() if isinstance(thing, type) and issubclass(thing, Algorithm)
        and dataclasses.is_dataclass(thing) and thing.__module__ == module.__name__]
    assert len(found) == 1, f"{module.__name__} must define one dataclass that derives from Algorithm"
    return found[0]


def build(name: str, options: Mapping[str, str]) -> Algorithm:
    """The algorithm with options as texts. A name of old is taken for its new one, with a warning. UsageError."""
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
