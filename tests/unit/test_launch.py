"""Which launcher started a process, from what the launchers of clusters set."""

import os
import sys
import threading
import time

import pytest

from dsgd_mpi.net import launch
from dsgd_mpi.net.launch import VARIABLES, forwarded, launched


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for rank, size in VARIABLES.values():
        monkeypatch.delenv(rank, raising=False)
        monkeypatch.delenv(str(size), raising=False)


@pytest.mark.parametrize(("text", "rank", "size", "launcher"), [
    ("", 0, 1, None), ("PMI_RANK=2 PMI_SIZE=3", 2, 3, "MPICH"), ("PMIX_RANK=2", 2, None, "PMIx"),
    ("PMIX_RANK=2 OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=3", 2, 3, "Open MPI"),
    ("MV2_COMM_WORLD_RANK=1 MV2_COMM_WORLD_SIZE=2", 1, 2, "MVAPICH"), ("PALS_RANKID=7", 7, None, "PALS"),
    ("FLUX_TASK_RANK=0 FLUX_JOB_SIZE=4", 0, 4, "Flux"), ("JSM_NAMESPACE_RANK=1 JSM_NAMESPACE_SIZE=6", 1, 6, "jsrun"),
    ("SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=4", 1, 4, "SLURM"),
    ("SLURM_JOB_ID=1 SLURM_NTASKS=8 SLURM_PROCID=0", 0, 1, None),       # a batch script, not a step
    ("SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 PMI_RANK=3 PMI_SIZE=4", 3, 4, "MPICH"),     # mpirun within a step
    ("PMI_RANK= PMI_SIZE=", 0, 1, None), ("PMI_RANK=x PMI_SIZE=4", 0, 1, None), ("PMI_RANK=1 PMI_SIZE=x", 0, 1, None),
    ("PMI_RANK=4 PMI_SIZE=4", 0, 1, None), ("PMI_RANK=-1 PMI_SIZE=4", 0, 1, None), ("PMIX_RANK=4294967294", 0, 1, None),
    ("PMI_RANK=1.0 PMI_SIZE=4", 0, 1, None), ("PMI_RANK=\u0663 PMI_SIZE=4", 0, 1, None),
    ("PMI_RANK= PMI_SIZE= SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=4", 1, 4, "SLURM")])
def test_rank_and_number_are_what_the_launcher_says_and_junk_says_nothing(monkeypatch, text, rank, size, launcher):
    for word in text.split():
        monkeypatch.setenv(*word.split("="))
    assert launched() == (rank, size, launcher)


@pytest.mark.parametrize("reads_after_s", [0.3, None])
def test_what_a_rank_says_last_has_left_its_pipe_before_it_aborts_unless_nobody_reads(monkeypatch, reads_after_s):
    monkeypatch.setattr(launch, "FORWARD_S", 0.6)
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as ours, open(writing, "w", encoding="utf-8") as theirs:
        monkeypatch.setattr(sys, "stderr", theirs)
        print("the last word", file=theirs)
        start = time.monotonic()
        if reads_after_s:
            threading.Timer(reads_after_s, ours.read, [100]).start()
        forwarded()
        assert (reads_after_s or 0.6) <= time.monotonic() - start < (0.55 if reads_after_s else 2)
