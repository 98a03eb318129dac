"""Shared memory that is too small for MPI's windows is told before they are made."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from types import SimpleNamespace
import mpi4py
mpi4py.rc.initialize = False                # neither is MPI started here, nor is /dev/shm made smaller
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.mpi import library, room
free, total, ranks, own = map(int, sys.argv[1:])
room.free_bytes = lambda: free
library.total_bytes = lambda: total
node = SimpleNamespace(size=ranks, Allreduce=lambda _, n: n.__imul__(ranks), Free=lambda: None)
comm = SimpleNamespace(size=ranks, Split_type=lambda _: node, Allgather=lambda own, every: every.__setitem__(..., own))
library.on_this_node = lambda: (0, ranks)
library.MPI.Get_library_version = lambda: "MPICH Version:      5.0.2"
library.MPI.Init_thread = library.MPI.Is_initialized = lambda: True
try:
    library.start()
    room.require(comm, own)
    print("room")
except UsageError as error:
    print(error.message)
"""
MB = 1 << 20


@pytest.mark.parametrize(("free", "total", "ranks", "own", "said"), [
    (60, 64, 4, 15, "room"), (60, 64, 1, 90, "room"),
    (60, 64, 4, 22, "has 60.0 MiB free, but the ranks there share 88.0 MiB; give the container more of it (docker"),
    (16, 16, 4, 0, "is 16.0 MiB large, but to start MPI on 4 ranks there takes 21.0 MiB; give the container more")])
def test_what_ranks_share_must_fit_into_what_is_free(free, total, ranks, own, said):
    words = [sys.executable, "-c", PROGRAM, str(free * MB), str(total * MB), str(ranks), str(own * MB)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert said in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1


def test_numbers_of_the_launcher_that_are_none_are_told_before_mpich_ends_at_them():
    words = [sys.executable, "-c", PROGRAM, *map(str, (60 * MB, 64 * MB, 1, 0))]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PMI_RANK": "x", "PMI_SIZE": "2"})
    assert "expected numbers from the launcher in the environment, found PMI_RANK=x, at which" in done.stdout
