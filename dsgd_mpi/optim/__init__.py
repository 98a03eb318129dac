"""Optimizers, one file each, found by its name; its dataclass's fields are its options. Learning-rate schedules."""

from __future__ import annotations

import pkgutil

from dsgd_mpi.config import class_in
from dsgd_mpi.errors import UsageError
from dsgd_mpi.optim.api import Optimizer


def names() -> list[str]:
    """The modules that define an optimizer, in this folder and in any that was appended to `__path__`."""
    return [name for name in _modules() if class_in(f"{__name__}.{name}", Optimizer)]


def find(name: str) -> type[Optimizer]:
    """The optimizer's class; UsageError if there is none of that name."""
    found = class_in(f"{__name__}.{name}", Optimizer) if name in _modules() else None
    if found is None:
        raise UsageError(f"unknown optimizer {name!r}; the choices are {', '.join(names())}")
    return found


def _modules() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))
