"""The kernels by name: the same operations in NumPy, in oneDNN and in cuDNN. Each is imported only when requested."""

from __future__ import annotations

import logging
from importlib import import_module

from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.api import Kernels

CLASSES = {"reference": ("reference", "Reference"), "onednn": ("cpu.onednn", "OneDNN"), "cudnn": ("gpu.cudnn", "CuDNN")}
NAMES = (*CLASSES, "auto")
log = logging.getLogger("dsgd_mpi")


def load(name: str, dtype: str = "float32", device: str = "auto") -> Kernels:
    """The kernels called `name` for activations of `dtype`; "auto" is the fastest that work on `device`.

    `device`: "cpu", "gpu", or "auto": a GPU if there is one, except for float64. UsageError if there are no such
    kernels, their library or device is missing, or they do not support the dtype.
    """
    if name not in NAMES:
        raise UsageError(f"there are no kernels called {name!r}; use one of {', '.join(NAMES)}")
    if device != "auto" and name != "auto" and (name == "cudnn") != (device == "gpu"):
        raise UsageError(f"the {name} kernels do not run with --device {device}; use --kernels auto, or --device auto")
    if name == "auto":
        return automatic(dtype, device)
    module, of = CLASSES[name]
    kernels: Kernels = getattr(import_module(f"dsgd_mpi.kernels.{module}"), of)(dtype)
    return kernels


def automatic(dtype: str, device: str) -> Kernels:
    """cuDNN on a GPU; oneDNN on a CPU, or else the reference, with a warning: it is too slow for real work."""
    if device == "gpu":
        return load("cudnn", dtype, device)
    if device == "auto" and dtype != "float64":
        try:
            return load("cudnn", dtype, "gpu")
        except UsageError:                  # no GPU
            pass
    try:
        return load("onednn", dtype)
    except UsageError as reason:
        if dtype not in ("float32", "float64"):     # nor does the reference support it
            raise
        kernels = load("reference", dtype)
        log.warning("using the reference kernels, which are slow: %s", reason)
        return kernels
