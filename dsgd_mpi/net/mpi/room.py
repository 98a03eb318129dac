"""Whether a node's shared memory has room for a window: MPI itself would end in a bus error, without a word."""

from __future__ import annotations

import os
import platform

import numpy as np
from mpi4py import MPI

from dsgd_mpi.errors import UsageError

SHARED_MEMORY = "/dev/shm"                  # where MPICH and Open MPI put the windows of ranks on one node
MOST_LETTERS = 600
WAY_OUT = ("give the container more of it (docker run --shm-size=8g, or --ipc=host; Kubernetes: an emptyDir of medium "
           "Memory), mount it larger, use fewer ranks per node, or remove what killed runs left there")


def require(comm: MPI.Intracomm, own_bytes: int) -> None:
    """Collective: UsageError, the same on all ranks, if what the ranks of some node need is not free there."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    needed = np.array([own_bytes])
    node.Allreduce(MPI.IN_PLACE, needed)
    problem = lack(int(needed[0]), free_bytes()) if node.size > 1 else ""       # one rank takes its own memory
    node.Free()
    own = np.zeros(MOST_LETTERS, np.uint8)
    text = np.frombuffer(problem.encode()[:MOST_LETTERS], np.uint8)
    own[: len(text)] = text
    every = np.empty((comm.size, MOST_LETTERS), np.uint8)
    comm.Allgather(own, every)
    for told in every[every[:, 0] > 0]:
        raise UsageError(told.tobytes().rstrip(b"\0").decode(errors="ignore"))


def lack(needed: int, free: int) -> str:
    """What is wrong, in one line; nothing if there is room."""
    if needed <= free:
        return ""
    return (f"{SHARED_MEMORY} on {platform.node()} has {free / 2**20:,.1f} MiB free, but the ranks there share "
            f"{needed / 2**20:,.1f} MiB; {WAY_OUT}")


def free_bytes() -> int:
    """As a process without privileges may use; plenty where there is no such file system."""
    return _bytes("f_bavail")


def total_bytes() -> int:
    return _bytes("f_blocks")


def _bytes(which: str) -> int:
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 1 << 62
    return int(getattr(found, which)) * found.f_frsize
