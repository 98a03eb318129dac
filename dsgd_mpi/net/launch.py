"""What a launcher passes to its ranks in the environment, for what must be known before MPI starts."""

from __future__ import annotations

import os
from typing import NamedTuple

# launcher: its variables for rank and number of ranks
VARIABLES = {
    "MPICH": ("PMI_RANK", "PMI_SIZE"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "SLURM": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
}
# what to do if MPI cannot be loaded
MPI_WAY_OUT = ("pip install mpich, or load the module of your cluster's MPI; if its library is not called libmpi.so, "
               "build mpi4py against it: pip install --no-binary mpi4py mpi4py")


class Launch(NamedTuple):
    rank: int
    size: int


def launched() -> Launch:
    """This process's rank and size according to its launcher; (0, 1) without one."""
    for rank, size in VARIABLES.values():
        if rank in os.environ and size in os.environ:
            return Launch(int(os.environ[rank]), int(os.environ[size]))
    return Launch(0, 1)
