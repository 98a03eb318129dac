"""The batch scripts on 16 nodes, at full size: by `make test-slurm`."""

import csv
import os
import re
import signal
import sys

import pytest

from tests.support.checkout import LONG, ON_ONE_NODE, SCRIPTS, SMOKE, Job, RunFolder
from tests.support.jobs import pids

pytestmark = pytest.mark.slurm
NODES = 16
TWO_NODES = ("--nodes=2",)                  # 16 ranks
GRID = """
model = "resnet8"
steps = 20
batch = 8
lr = 0.05
[grid]
ranks = [1, 2, 4, 8, 16]
algorithms = ["allreduce", "gossip", "easgd"]
"""
SLOW_GRID = """
model = "resnet8"
steps = 40
batch = 4
lr = 0.05
log_every = 1
checkpoint_every = 5
slow_rank = "0:0.15"
[grid]
ranks = [2]
algorithms = ["allreduce", "gossip", "easgd"]
"""

STUDY = """
[study]
name = "s"
executor = "slurm"
target = 0.2
seeds = [0, 1]
[base]
model = "resnet8"
steps = 20
batch = 8
eval_every = 0.01
[axes]
ranks = [1, 2]
algorithm = ["allreduce", "gossip mode=push"]
[tune]
lr = [0.05, 0.1]
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_slurm_takes_the_script_as_it_is(site, script):
    status, _, errors = site.command("sbatch", "--test-only", f"slurm/{script}")
    assert status == 0, errors
    assert "using 128 processors" in errors


def test_128_ranks_train_to_the_end_with_nothing_set(site):
    job = site.submit("gossip_128.sh", *SMOKE, empty=True)
    assert job.ended(600) == ["COMPLETED"], job.log()
    assert "MPICH from PyPI: MPIR_CVAR_CH4_NETMOD=ofi" in job.log()
    run = RunFolder(site.folder / "runs" / f"gossip-128-{job.number}")
    summary = run.summary()
    assert (summary["status"], summary["algorithm"], summary["ranks"]) == ("finished", "gossip", 128)
    assert summary["images"] == 20 * 4 * 128
    assert run.steps() == list(range(1, 21))
    assert summary["consensus_distance"] > 0
    print(job.log())


@pytest.mark.parametrize("algorithm", ["allreduce", "parameter_server", "easgd", "push_sum"])
def test_16_ranks_of_every_algorithm(site, run_folder, algorithm):
    run = run_folder("run")
    job = site.submit(f"{algorithm}_128.sh", *SMOKE, "--out", run.path, sbatch=TWO_NODES)
    assert job.ended() == ["COMPLETED"], job.log()
    assert run.summary()["ranks"] == 16
    assert run.summary()["algorithm"] == algorithm.replace("push_sum", "sgp")       # what people type, and what it is
    assert run.summary()["status"] == "finished"


def test_mpirun_is_the_other_way(site, run_folder):
    run = run_folder("run")
    job = site.submit("allreduce_128.sh", *SMOKE, "--out", run.path, sbatch=TWO_NODES, env={"DSGD_LAUNCH": "mpirun"})
    assert job.ended() == ["COMPLETED"], job.log()
    assert run.summary()["ranks"] == 16
    assert "threads each: mpirun -n 16 " in job.log()


def test_a_run_in_a_terminal(site, run_folder):
    run = run_folder("run")
    words = ("slurm/interactive.sh", "--ntasks-per-node=4", "--", "--out", run.path)
    status, output, errors = site.command(*words, limit_s=180)
    assert status == 0, output + errors
    assert run.summary()["ranks"] == 4
    assert "result" in output


@pytest.mark.parametrize("signal_option", ["--signal=B:USR1@60", "--signal=B:CONT@1"])
def test_a_job_at_its_time_limit_is_saved_and_goes_on(site, run_folder, signal_option):
    """By SLURM's signal, and where that is of no use by the trainer's own clock."""
    run = run_folder("run")
    minutes, steps = (2, 600) if "USR1" in signal_option else (1, 500)      # of 0.15 s and more: they do not fit in
    job = site.submit("allreduce_128.sh", *SMOKE, "--steps", steps, "--slow-rank", "0:0.15", "--out", run.path,
                      sbatch=(*ON_ONE_NODE, f"--time={minutes}", signal_option))
    assert job.ended(400) == ["COMPLETED"], job.log()
    assert int(job.shown("Restarts")[0]) >= 1
    assert ("stopped at step" in job.log()) == ("the run continues" not in job.log())
    assert ("before the job's time limit" in job.log()) == ("USR1" not in signal_option)
    assert run.steps() == list(range(1, steps + 1))


def test_a_rank_that_is_killed_ends_the_job(site, run_folder):
    run = run_folder("run")
    job = site.submit("gossip_128.sh", *LONG, "--steps", 10_000, "--out", run.path, sbatch=ON_ONE_NODE)
    job.until(lambda: run.steps())
    os.kill(pids(str(run.path))[-1], signal.SIGKILL)
    assert job.ended(30) == ["FAILED"]
    assert job.shown("Restarts") == ["0"]


def test_a_job_whose_ranks_were_killed_starts_again_on_the_same_node_from_its_checkpoint(site, run_folder):
    """As when another of its nodes has failed: nothing could be saved, and MPI's shared memory is still there."""
    run = run_folder("run")
    job = site.submit("allreduce_128.sh", *LONG, "--out", run.path, "--checkpoint-every", 10,
                      sbatch=(*ON_ONE_NODE, "--nodelist=node2"))
    job.until(lambda: len(run.steps()) > 20)
    shell = job.shell()
    assert shell
    for pid in shell:
        os.kill(pid, signal.SIGSTOP)        # it would see the ranks fail
    for pid in pids(str(run.path)):
        os.kill(pid, signal.SIGKILL)
    site.cluster.ask("scontrol", "requeue", job.number)
    assert job.ended() == ["COMPLETED"], job.log()
    assert job.shown("Restarts") == ["1"]
    assert run.steps() == list(range(1, 61))


def test_a_job_that_has_lost_a_node_starts_again_on_others_from_its_newest_checkpoint(site, run_folder):
    """The node is off: nothing is sent to anybody. The other ranks notice before SLURM does."""
    run = run_folder("run")
    job = site.submit("gossip_128.sh", *LONG, "--out", run.path, "--checkpoint-every", 10, "--hang-timeout", 8,
                      sbatch=("--nodes=2", "--ntasks-per-node=2"))
    job.until(lambda: len(run.steps()) > 12)
    lost = site.cluster.ask("scontrol", "show", "hostnames", job.shown("NodeList")[0]).split()[-1]
    site.cluster.lose(lost)
    job.until(lambda: "stopped and requeued: restart 1 of at most 10" in job.log(), limit_s=240)
    site.cluster.ask("scontrol", "update", f"nodename={lost}", "state=down", "reason=a test")
    assert job.ended() == ["COMPLETED"], job.log()
    assert job.shown("Restarts") == ["1"]
    assert "a node no longer answers" in job.log()
    assert "10 to 60, " in job.log()        # steps
    assert run.steps() == list(range(1, 61))


def test_of_a_job_array_those_tasks_alone_start_again_that_lose_a_node_or_are_out_of_time(site):
    """By the number of the last task SLURM means the whole array. A node that is set down sends no USR1."""
    (site.folder / "grid.toml").write_text(SLOW_GRID)
    job = site.submit("scaling_array.sh", sbatch=(*ON_ONE_NODE, "--array=0-2"), env={"DSGD_GRID": "grid.toml"})
    runs = [RunFolder(site.folder / "runs" / f"scaling-{job.number}" / f"00002-{name}")
            for name in ("allreduce", "easgd", "gossip")]
    job.until(lambda: all(len(run.steps()) > 7 for run in runs))
    node = site.cluster.ask("squeue", "-h", "-o", "%N", "-j", f"{job.number}_0")
    site.cluster.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=a test")
    last = site.cluster.ask("squeue", "-h", "-o", "%A", "-j", f"{job.number}_2")
    assert last == job.number
    job.signal("USR1", task=2)
    assert job.ended() == ["COMPLETED"] * 3, job.log()
    shown = dict(zip(job.shown("ArrayTaskId"), job.shown("Restarts"), strict=True))
    assert shown == {"0": "1", "1": "0", "2": "1"}, job.log()
    assert job.log().count("stopped and requeued: restart 1 of at most 10") == 1
    assert [run.steps() for run in runs] == [list(range(1, 41))] * 3


def test_a_job_array_fills_a_folder_that_plot_draws(site):
    (site.folder / "grid.toml").write_text(GRID)
    job = site.submit("scaling_array.sh", sbatch=(*TWO_NODES, "--array=0-14%4"), env={"DSGD_GRID": "grid.toml"})
    assert job.ended(600) == ["COMPLETED"] * 15, job.log()
    folder = site.folder / "runs" / f"scaling-{job.number}"
    runs = [RunFolder(path).summary() for path in sorted(folder.iterdir())]
    assert [run["ranks"] for run in runs] == [1] * 3 + [2] * 3 + [4] * 3 + [8] * 3 + [16] * 3
    assert [run["algorithm"] for run in runs[:3]] == ["allreduce", "easgd", "gossip"]
    status, output, errors = site.command(sys.executable, "-m", "dsgd_mpi", "plot", folder, "--to", folder)
    assert (status, errors) == (0, "")
    assert (folder / "scaling.png").exists()
    assert (folder / "curves.png").exists()
    with open(folder / "scaling.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], int(row["ranks"])) for row in rows] == [
        (name, ranks) for name in ("allreduce", "easgd", "gossip") for ranks in (1, 2, 4, 8, 16)]
    print(output)


def test_a_study_is_a_job_array_and_the_same_command_keeps_its_results_and_submits_what_is_left(site):
    (site.folder / "s.toml").write_text(STUDY)
    words = (sys.executable, "-m", "dsgd_mpi", "study", "s.toml", "--sbatch", " ".join(ON_ONE_NODE))
    for cells in (8, 4):                    # two rates of each, and then the other seed at the better one
        status, output, errors = site.command(*words)
        assert status == 0, errors
        assert f"{cells} cells submitted" in output
        job = Job(site, re.search(r"Submitted batch job (\d+)", output)[1])
        assert job.ended(600) == ["COMPLETED"] * cells, job.log()
    status, output, errors = site.command(*words)
    assert (status, errors) == (0, "")
    assert "all cells that are known have a result" in output
    assert len(list((site.folder / "runs/studies/s").glob("*.json"))) == 12
    print(site.command(*words, "--table")[1])
