"""What a launcher passes to its ranks in the environment, for what must be known before MPI starts."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
import termios
import time
from contextlib import suppress
from typing import NamedTuple

# launcher: its variables for rank and number of ranks, None where it tells only the rank. The first that is set counts:
# SLURM's are also set for a shell in which another launcher is called, and so may PMIx's be
VARIABLES = {
    "MPICH": ("PMI_RANK", "PMI_SIZE"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "MVAPICH": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    "jsrun": ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
    "Flux": ("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    "PALS": ("PALS_RANKID", None),
    "ALPS": ("ALPS_APP_PE", None),
    "PMIx": ("PMIX_RANK", None),
    "SLURM": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
}
# the same of this process among those on its node
LOCAL = (("MPI_LOCALRANKID", "MPI_LOCALNRANKS"), ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
         ("MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"), ("SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"))
FORWARD_S, LOOK_S = 2.0, 0.01               # for a launcher to read what was written; between two looks
# what to do if MPI cannot be loaded
MPI_WAY_OUT = ("pip install mpich, or load the module of your cluster's MPI; if its library is not called libmpi.so, "
               "build mpi4py against it: pip install --no-binary mpi4py mpi4py")


class Launch(NamedTuple):
    """What a launcher says of this process. It decides who prints; how many ranks there are, MPI itself decides."""

    rank: int
    size: int | None                        # None: not known before MPI starts
    launcher: str | None


def launched() -> Launch:
    """By its launcher's variables; (0, 1, None) without one. Variables that are no such numbers are passed over."""
    for launcher, (rank_name, size_name) in VARIABLES.items():
        rank, size = number(rank_name), number(size_name)
        if rank is not None and (size_name is None or (size is not None and rank < size)):
            return Launch(rank, size, launcher)
    return Launch(0, 1, None)


def on_this_node() -> tuple[int, int]:
    """Rank and number of ranks on this node, as far as the launcher tells; (0, 1) where it does not."""
    for rank_name, size_name in LOCAL:
        rank, size = number(rank_name), number(size_name)
        if rank is not None and size is not None and rank < size:
            return rank, size
    return 0, 1


def forwarded() -> None:
    """Waits, FORWARD_S at most, until the launcher has read what this process has written to its pipes.

    What is still in them when a rank aborts may be lost: MPICH's does not look there again.
    """
    end = time.monotonic() + FORWARD_S
    for file in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):     # it may be closed
            file.flush()
            while unread(file.fileno()) and time.monotonic() < end:
                time.sleep(LOOK_S)


def unread(descriptor: int) -> int:
    """How many bytes a pipe holds; 0 of anything else."""
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return 0
    return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)


def number(name: str | None) -> int | None:
    text = os.environ.get(name, "").strip() if name else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
