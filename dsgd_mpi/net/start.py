"""MPI is started: this rank's end of it, or one line that says why there is none."""

from __future__ import annotations

from typing import Any

from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.launch import MPI_WAY_OUT


def started_mpi(ranks: int) -> Any:
    """The MpiHost, of at least as many ranks as the launcher is known to have started. UsageError."""
    try:
        from dsgd_mpi.net.mpi.library import start
        start()
        from dsgd_mpi.net.mpi.host import MpiHost
    except (ImportError, RuntimeError) as error:
        raise UsageError(f"MPI could not be loaded ({str(error).splitlines()[0]}); {MPI_WAY_OUT}") from None
    host = MpiHost()
    if host.size < ranks:
        raise UsageError(f"the launcher started {ranks} ranks but MPI sees {host.size}: mpirun or srun does not belong "
                         f"to {host.library()}; use the launcher of that MPI (srun --mpi=pmi2 for MPICH, --mpi=pmix "
                         "for Open MPI; srun --mpi=list lists what it supports)")
    return host
