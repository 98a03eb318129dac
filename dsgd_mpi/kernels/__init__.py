"""The kernels by name: the same operations in NumPy, in oneDNN and in cuDNN. Each is imported only when asked for."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec

from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.api import Kernels

CLASSES = {"reference": "Reference", "onednn": "OneDNN", "cudnn": "CuDNN"}      # in the module of the same name
NAMES = (*CLASSES, "auto")
log = logging.getLogger("dsgd_mpi")


def load(name: str, dtype: str = "float32") -> Kernels:
    """The kernels called `name` for activations of `dtype`; "auto" is the fastest that work here.

    UsageError if there are no such kernels, their library is missing, or they do not know the dtype.
    """
    if name not in NAMES:
        raise UsageError(f"there are no kernels called {name!r}; use one of {', '.join(NAMES)}")
    if name == "auto":
        return automatic(dtype)
    if find_spec(f"dsgd_mpi.kernels.{name}") is None:
        raise UsageError(f"the {name} kernels are not part of this version; use one of {', '.join(present())}")
    kernels: Kernels = getattr(import_module(f"dsgd_mpi.kernels.{name}"), CLASSES[name])(dtype)
    return kernels


def present() -> list[str]:
    return [name for name in NAMES if name == "auto" or find_spec(f"dsgd_mpi.kernels.{name}")]


def automatic(dtype: str) -> Kernels:
    """oneDNN if it can be had; a warning if not, since the reference is too slow to train with in earnest."""
    try:
        return load("onednn", dtype)
    except UsageError as reason:
        if dtype == "bfloat16":             # the reference has none either
            raise
        kernels = load("reference", dtype)
        log.warning("using the reference kernels, which are slow: %s", reason)
        return kernels
