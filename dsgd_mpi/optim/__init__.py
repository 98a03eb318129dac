"""Optimizers, one file each, found by its name; its dataclass's fields are its options. Learning-rate schedules."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil

from dsgd_mpi.errors import UsageError
from dsgd_mpi.optim.api import Optimizer


def names() -> list[str]:
    """The modules that define an optimizer, in this folder and in any that was appended to `__path__`."""
    return [name for name in _modules() if _optimizer_of(name)]


def find(name: str) -> type[Optimizer]:
    """The optimizer's class; UsageError if there is none of that name."""
    found = _optimizer_of(name) if name in _modules() else None
    if found is None:
        raise UsageError(f"unknown optimizer {name!r}; the choices are {', '.join(names())}")
    return found


def _modules() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def _optimizer_of(name: str) -> type[Optimizer] | None:
    """The dataclass derived from `Optimizer` that a module defines, if any."""
    module = importlib.import_module(f"{__name__}.{name}")
    found = [thing for thing in vars(module).values() if isinstance(thing, type) and issubclass(thing, Optimizer)
             and thing is not Optimizer and dataclasses.is_dataclass(thing) and thing.__module__ == module.__name__]
    assert len(found) <= 1, f"{module.__name__} must define one optimizer"
    return found[0] if found else None
