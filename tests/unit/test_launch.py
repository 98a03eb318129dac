"""Which launcher started a process, from what the launchers of clusters set."""

import pytest

from dsgd_mpi.net.launch import VARIABLES, launched


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
