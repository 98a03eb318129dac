"""A file is opened first by a child process: HDF5 is C that does what the bytes tell it to.

Of 10,000 files with a few wrong bytes each, HDF5 2.0 never came back from one or two (a heap of strings whose next
object is 0 bytes further on), and no exception says so. The child is a fork that shares no file with its parent; it
must come before MPI and threads, and costs some milliseconds.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from dsgd_mpi.errors import UsageError

CPU_S = 10                                  # of computation, thousands of times what a file takes; disks may be slow


def tried(act: Callable[[], object], path: Path) -> None:
    """Calls `act` in a child; UsageError if it raises one there, crashes, or computes for ever."""
    told, tell = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)     # of Python 3.12, about threads: the child needs none
        child = os.fork()
    if child == 0:
        os.close(told)
        _attempt(act, tell)
    os.close(tell)
    with open(told, encoding="utf-8") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        how = ("does not come back from it" if number == signal.SIGXCPU else f"crashes on it ({_name(number)})")
        raise UsageError(f"{path}: damaged, HDF5 {how}; copy or convert it again")
    result = json.loads(text or '["failed", "the process that tried it ended without a word"]')
    if result[0] == "refused":
        raise UsageError(result[1])
    if result[0] == "failed":
        raise RuntimeError(result[1])


def _attempt(act: Callable[[], object], tell: int) -> None:
    """In the child, which ends here: no handler, no buffer and no lock of its parent's is its own."""
    result = ["passed", ""]
    try:
        faulthandler.disable()              # the parent's: its dump would be printed beside the one line
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        own = resource.getrlimit(resource.RLIMIT_CPU)[1]
        if own == resource.RLIM_INFINITY or own > CPU_S + 5:        # else the user's is stricter, and cannot be raised
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 5))
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        act()
    except UsageError as problem:
        result = ["refused", problem.message]
    except BaseException:
        result = ["failed", traceback.format_exc()]
    finally:
        with open(tell, "w", encoding="utf-8") as pipe:
            json.dump(result, pipe)
        os._exit(0)


def _name(number: int) -> str:
    return signal.strsignal(number) or f"signal {number}"
