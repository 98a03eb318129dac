"""Files are opened only if they are files: to open a pipe would wait for ever, and a device may have no end."""

from __future__ import annotations

import errno
import os
import resource
import stat
from pathlib import Path

from dsgd_mpi.errors import UsageError

OPEN, LEAST_OPEN = 1024, 64                 # files and sockets of a process: wanted, and what MPI and HDF5 need


def regular(path: str, flags: int) -> int:
    """An `opener` of `open`; OSError if there is something else of that name."""
    mode = os.stat(path).st_mode if os.path.exists(path) else stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return os.open(path, flags, 0o666)


def allow_many() -> None:
    """Raises the limit of open files where it is low. UsageError if it must not be high enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN:
        return
    allowed = OPEN if hard == resource.RLIM_INFINITY else min(OPEN, hard)
    if allowed < LEAST_OPEN:
        raise UsageError(f"expected to be allowed at least {LEAST_OPEN} open files, found {allowed}; raise the limit "
                         f"before the job starts: ulimit -n {OPEN}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def moved_away(path: Path) -> Path:
    """The new name of what is not ours but has a name that we need."""
    names = (path.with_name(f"{path.name}.other{count or ''}") for count in range(10**6))
    other = next(name for name in names if not os.path.lexists(name))
    os.rename(path, other)
    return other


def read_text(path: Path, errors: str = "strict") -> str:
    """All of a file in UTF-8."""
    with open(path, encoding="utf-8", errors=errors, opener=regular) as file:
        return file.read()
