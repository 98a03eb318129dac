"""The ways to spread SGD over many ranks: one file each, found by its name, its dataclass fields being its options."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from typing import ClassVar, Protocol

from dsgd_mpi.errors import UsageError
from dsgd_mpi.flat import Array
from dsgd_mpi.net.api import Net
from dsgd_mpi.sgd import LocalSgd


class Gradient(Protocol):
    def __call__(self, x: Array, /, ready: Callable[[Array, slice], None] | None = None) -> Array:
        """The gradient at x on this rank's next batch. It stays valid until the next call.

        `ready(g, part)` is called as each stretch g[part] becomes final, from the back to the front.
        """


class Algorithm(Protocol):
    """What a file in this folder defines, as a dataclass."""

    keeps: ClassVar[tuple[str, ...]]        # attributes that a checkpoint holds beside x and momentum: numbers, arrays
    replicated: ClassVar[bool]              # whether x and all that is kept are the same on all ranks after each step

    def start(self, net: Net, x: Array, sgd: LocalSgd) -> None:
        """Everyone, once: x is the same on all ranks, or what a resumed run had; then what is kept is set already."""

    def step(self, x: Array, gradient: Gradient, lr: float) -> None:
        """One step, in place."""

    def rest(self, x: Array) -> None:
        """Everyone: brings home what is in flight, so that x and what is kept are all there is."""

    def answer(self, x: Array) -> Array:
        """Everyone: the model that the method offers at this moment, the same on all ranks. x itself is left alone."""


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
