"""The MPI library before it starts: that it cannot work under this launcher is told in our words, not in its own."""

from __future__ import annotations

import warnings

import mpi4py

from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.launch import launched

mpi4py.rc.initialize, mpi4py.rc.finalize = False, True      # started below; ended with the process, as ever
from mpi4py import MPI  # noqa: E402


def start() -> None:
    """Starts MPI. UsageError where it would end this process: MPICH without PMIx, which Open MPI's mpirun uses."""
    about = MPI.Get_library_version()
    if launched().launcher in ("Open MPI", "PMIx") and about.startswith("MPICH") and "pmix" not in about.lower():
        raise UsageError(f"the launcher is Open MPI's mpirun or another that uses PMIx, but the MPI library is MPICH "
                         f"{about.split()[2]} without PMIx; use the mpirun of that MPI (it may be beside this Python) "
                         "or srun --mpi=pmi2, or a Python environment with Open MPI")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)     # of mpi4py, on each rank: another launcher is told once
        if not MPI.Is_initialized():
            MPI.Init_thread()
