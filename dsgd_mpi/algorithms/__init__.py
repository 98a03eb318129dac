"""The ways to spread SGD over many ranks: one file each, found by its name, its dataclass fields being its options."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from typing import ClassVar, Literal, Protocol, get_args, get_origin, get_type_hints

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.api import Net
from dsgd_mpi.optim.api import Optimizer


class Gradient(Protocol):
    def __call__(self, x: Array, /, ready: Callable[[Array, slice], None] | None = None) -> Array:
        """The gradient at x on this rank's next batch. It stays valid until the next call.

        `ready(g, part)` is called as each stretch g[part] becomes final, from the back to the front.
        """


class Algorithm(Protocol):
    """What a file in this folder defines, as a dataclass."""

    keeps: ClassVar[tuple[str, ...]]        # attributes that a checkpoint holds beside x and momentum: numbers, arrays
    replicated: ClassVar[bool]              # whether x and all that is kept are the same on all ranks after each step
    one_sided: ClassVar[bool]               # whether it works in memory that the ranks share
    traffic: ClassVar[str]                  # what a rank communicates in a step
    offers: ClassVar[str]                   # which model `answer` gives
    servers: int                            # how many ranks, the first ones, work for the others and have no data

    @property
    def independent(self) -> bool:
        """Whether no step needs a step of another rank, so that ranks may do different numbers of them."""

    def start(self, net: Net, x: Array, sgd: Optimizer) -> None:
        """Everyone, once: x is the same on all ranks, or what a resumed run had; then what is kept is set already."""

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        """One step, in place."""

    def rest(self, x: Array) -> None:
        """Everyone: brings home what is in flight, so that x and what is kept are all there is."""

    def answer(self, x: Array) -> Array:
        """Everyone: the model that the method offers at this moment, the same on all ranks. x itself is left alone."""


def serving(algorithm: Algorithm, size: int) -> int:
    """How many of so many ranks, the first ones, only serve; a rank alone does everything itself."""
    if size > 1 and algorithm.servers >= size:
        raise UsageError(f"{algorithm.servers} servers leave no worker among {size} ranks; expected at most {size - 1}")
    return algorithm.servers if size > 1 else 0


def independent() -> list[str]:
    """The algorithms whose steps need no other rank's, with the option that makes it so where it is not the default."""
    return [" ".join([name, *way]) for name in names() for way in independent_ways(find(name))]


def independent_ways(algorithm: type[Algorithm]) -> list[list[str]]:
    """The single options, as KEY=VALUE, with which `independent` is true; none and no other if it is so by default."""
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
    found = [thing for thing in vars(module).values()
             if isinstance(thing, type) and dataclasses.is_dataclass(thing) and thing.__module__ == module.__name__]
    assert len(found) == 1, f"{module.__name__} must define one dataclass"
    return found[0]                         # type: ignore[return-value]
