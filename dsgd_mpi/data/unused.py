"""A copy of a data set that no process uses any more is removed, unless it is kept: by who leaves last, or by a child.

A process that uses a folder has its file LOCK locked, shared. The kernel ends that with the process, whatever ended it.
As a program, with nothing but Python's own modules, this waits until all have ended, so that nothing is left of a job
that was killed: `python unused.py FOLDER`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

LOCK, KEPT = "in-use", "kept"               # files in the folder
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)    # meant for the ranks


def locked(folder: Path, how: int) -> int | None:
    """An open file that locks the folder, or None if it was removed meanwhile. BlockingIOError with LOCK_NB."""
    with suppress(FileNotFoundError):
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, how)
            if os.path.samestat(os.fstat(lock), os.stat(folder / LOCK)):
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
    return None


def remove_unused(folder: Path, wait: bool = False) -> None:
    """Removes a folder that is neither in use nor kept; with `wait`, once it is no longer in use."""
    with suppress(OSError):
        lock = locked(folder, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)) if (folder / LOCK).exists() else None
        if lock is None:
            return
        try:
            if not (folder / KEPT).exists():
                for path in folder.iterdir():
                    if path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    elif path.name != LOCK:
                        path.unlink()
                (folder / LOCK).unlink()
                folder.rmdir()
        finally:
            os.close(lock)


if __name__ == "__main__":
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    remove_unused(Path(sys.argv[1]), wait=True)
