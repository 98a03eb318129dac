"""The MPI library before it starts: that it cannot work under this launcher is told in our words, not in its own."""

from __future__ import annotations

import faulthandler
import os
import platform
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import mpi4py

from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.launch import VARIABLES, launched, number, on_this_node

mpi4py.rc.initialize, mpi4py.rc.finalize = False, True      # started below; ended with the process, as ever
from mpi4py import MPI  # noqa: E402

from dsgd_mpi.net.mpi.room import SHARED_MEMORY, WAY_OUT, total_bytes  # noqa: E402

PMI = [name for name in VARIABLES["MPICH"] if name]
LONGEST_S = 900.0                           # for MPI to start on all ranks
START_BYTES = 5_500_000                     # a rank, of MPICH and UCX; in a little less, they end in a crash


def start() -> None:
    """Starts MPI. UsageError where it would end this process: MPICH without PMIx, which Open MPI's mpirun uses."""
    about = MPI.Get_library_version()
    if launched().launcher in ("Open MPI", "PMIx") and about.startswith("MPICH") and "pmix" not in about.lower():
        raise UsageError(f"the launcher is Open MPI's mpirun or another that uses PMIx, but the MPI library is MPICH "
                         f"{about.split()[2]} without PMIx; use the mpirun of that MPI (it may be beside this Python) "
                         "or srun --mpi=pmi2, or a Python environment with Open MPI")
    junk = [f"{name}={os.environ[name]}" for name in PMI if os.environ.get(name) and number(name) is None]
    if about.startswith("MPICH") and junk:
        raise UsageError(f"expected numbers from the launcher in the environment, found {' '.join(junk)}, at which "
                         f"MPICH would end; unset {' and '.join(PMI)}, or start ranks by its mpirun")
    local, ranks_here = on_this_node()
    needed, there = START_BYTES * ranks_here, total_bytes()
    if about.startswith("MPICH") and there < needed:
        ranks = f"{ranks_here} rank{'s' if ranks_here > 1 else ''}"
        problem = UsageError(f"{SHARED_MEMORY} on {platform.node()} is {there / 2**20:,.1f} MiB large, but to start "
                             f"MPI on {ranks} there takes {needed / 2**20:,.1f} MiB; {WAY_OUT}")
        if local == 0 and launched().rank:  # rank 0, which reports what is raised, is on another node
            problem.show()
        raise problem
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)     # of mpi4py, on each rank: another launcher is told once
        if not MPI.Is_initialized():
            with mortal():
                MPI.Init_thread()


@contextmanager
def mortal() -> Iterator[None]:
    """MPI waits for all ranks to start, and no Python code runs on this one meanwhile: SIGTERM kills it, and Ctrl-C.

    So does LONGEST_S, which ranks never take that have not ended instead of starting, with a stack.
    """
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    for each, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(each, signal.SIG_DFL)
    faulthandler.dump_traceback_later(LONGEST_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        for each, handler in before.items():
            signal.signal(each, handler)
