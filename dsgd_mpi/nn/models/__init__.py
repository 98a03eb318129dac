"""The models, found by file: each file declares in `NAMES` what it builds, and defines `graph`, which builds it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from dsgd_mpi.arrays.flat import Shape
from dsgd_mpi.errors import UsageError
from dsgd_mpi.nn.layers import Graph

Build = Callable[[str, int, Shape], Graph]


def graph(name: str, classes: int, image: Shape) -> Graph:
    """The layers of the model called `name` for images (H, W, C); UsageError if there is none of that name."""
    found = builders()
    if name not in found:
        raise UsageError(f"unknown model {name!r}; the choices are {', '.join(found)}")
    return found[name](name, classes, image)


def usual(name: str) -> tuple[int, Shape]:
    """The classes and the images (H, W, C) for which a model is known; UsageError if its file does not say."""
    if name not in builders():
        raise UsageError(f"unknown model {name!r}; the choices are {', '.join(builders())}")
    module = importlib.import_module(builders()[name].__module__)
    if not hasattr(module, "usual"):
        raise UsageError(f"{name}: expected a model whose file has a function `usual`, found none in {module.__file__}")
    found: tuple[int, Shape] = module.usual(name)
    return found


def names() -> list[str]:
    return list(builders())


def builders() -> dict[str, Build]:
    """For each name the `graph` of its file, in the order of the files."""
    found: dict[str, Build] = {}
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        twice = found.keys() & set(module.NAMES)
        assert not twice, f"{module.__file__} builds {', '.join(sorted(twice))}, which another file builds already"
        found |= dict.fromkeys(module.NAMES, module.graph)
    return found
