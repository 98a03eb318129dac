"""The batch scripts on four nodes: submitted, preempted, requeued, crashed, cancelled."""

import time

import pytest

from tests.support.checkout import LONG, ON_ONE_NODE, SCRIPTS, SMOKE
from tests.support.jobs import pids

NODES = 4
ON_TWO_NODES = ("--nodes=2", "--ntasks-per-node=2")
FAULT = """
import os
if os.environ.get("SLURM_PROCID") == "1" and "SLURM_STEP_NUM_TASKS" in os.environ:
    import dsgd_mpi.nn.model as model
    def fail(*args, calls=iter(range(5)), f=model.Model.loss_and_gradient, **options):
        if next(calls, None) is None:
            open(os.environ["FAULT"], "w").close()
            raise RuntimeError("a fault was put here")
        return f(*args, **options)
    model.Model.loss_and_gradient = fail
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_slurm_takes_the_script(site, script):
    status, _, errors = site.command("sbatch", "--test-only", f"--nodes={NODES}", f"slurm/{script}")
    assert status == 0, errors
    assert f"using {8 * NODES} processors" in errors


def test_a_job_runs_across_nodes_with_nothing_set(site, run_folder):
    run = run_folder("run")
    job = site.submit("gossip_128.sh", *SMOKE, "--steps", 6, "--threads", 1, "--out", run.path, sbatch=ON_TWO_NODES,
                      empty=True)            # one thread: cores are many in name only
    assert job.ended() == ["COMPLETED"], job.log()
    assert run.summary()["ranks"] == 4
    assert job.log().count("MPICH from PyPI: MPIR_CVAR_CH4_NETMOD=ofi") == 1


def test_what_the_site_has_chosen_stays_and_a_job_that_fails_in_mpi_init_says_how_to_choose(site, run_folder):
    job = site.submit("gossip_128.sh", *SMOKE, "--out", run_folder("run").path, sbatch=ON_TWO_NODES, empty=True,
                      env={"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "carrier-pigeon"})
    assert job.ended() == ["FAILED"], job.log()
    assert "MPICH from PyPI" not in job.log()
    assert job.log().splitlines()[-1].endswith(
        "ranks failed in MPI_Init; name a file with 'export MPIR_CVAR_CH4_NETMOD=ofi' in DSGD_ENV, or set "
        "DSGD_LAUNCH=mpirun")


def test_a_run_out_of_time_is_requeued_and_ends_as_if_never_stopped(site, run_folder):
    whole, stopped = run_folder("whole"), run_folder("stopped")
    first = site.submit("allreduce_128.sh", *LONG, "--out", whole.path, sbatch=ON_ONE_NODE)
    second = site.submit("allreduce_128.sh", *LONG, "--out", stopped.path, sbatch=ON_ONE_NODE)
    second.until(lambda: len(stopped.steps()) > 5)
    second.signal("USR1")
    assert first.ended() == ["COMPLETED"], first.log()
    assert second.ended() == ["COMPLETED"], second.log()
    assert second.shown("Restarts") == ["1"]
    assert "stopped and requeued: restart 1 of at most 10" in second.log()
    assert f"job        │ {second.number} (allreduce-128, restart 1) on node" in second.log()
    assert stopped.steps() == whole.steps() == list(range(1, 61))
    assert stopped.lines()[-1]["loss"] == whole.lines()[-1]["loss"]
    assert stopped.equals(whole)
    again = site.submit("allreduce_128.sh", *LONG, "--out", stopped.path, sbatch=ON_ONE_NODE)
    assert again.ended() == ["COMPLETED"]
    assert "already finished, at step 60" in again.log()
    assert stopped.equals(whole)


def test_a_job_in_the_way_of_a_more_urgent_one_gives_way_and_goes_on_afterwards(site, run_folder):
    run = run_folder("run")
    job = site.submit("gossip_128.sh", *LONG, "--out", run.path, sbatch=ON_ONE_NODE)
    job.until(lambda: len(run.steps()) > 10)
    urgent = ("--partition=urgent", f"--nodes={NODES}", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    site.cluster.ask("sbatch", *urgent)
    assert job.ended() == ["COMPLETED"], job.log()
    assert job.shown("Restarts") == ["1"]
    assert run.steps() == list(range(1, 61))


def test_no_more_restarts_than_allowed(site, run_folder):
    run = run_folder("run")
    job = site.submit("push_sum_128.sh", *LONG, "--out", run.path, sbatch=ON_ONE_NODE, env={"DSGD_MAX_RESTARTS": "0"})
    job.until(lambda: run.steps())
    job.signal("USR1")
    assert job.ended() == ["FAILED"]
    assert job.shown("ExitCode") == ["75:0"]
    assert "DSGD_MAX_RESTARTS=0 allows no more restarts" in job.log()
    assert run.summary()["status"] == "stopped"


def test_a_rank_that_fails_ends_the_job_with_its_message(site, run_folder, tmp_path):
    run = run_folder("run")
    (tmp_path / "sitecustomize.py").write_text(FAULT)
    fault = tmp_path / "fault"
    (tmp_path / "site.sh").write_text(f"export PYTHONPATH={tmp_path} FAULT={fault}\n")
    job = site.submit("easgd_128.sh", *LONG, "--out", run.path, sbatch=ON_ONE_NODE,
                      env={"DSGD_ENV": str(tmp_path / "site.sh")})
    job.until(fault.exists)
    assert job.ended(20) == ["FAILED"]
    assert "RuntimeError: a fault was put here" in job.log()
    assert "rank 1 on " in job.log()


def test_a_cancelled_job_saves_itself_stays_cancelled_and_leaves_nothing_half_written(site, run_folder):
    run = run_folder("run")
    job = site.submit("parameter_server_128.sh", *LONG, "--out", run.path, "--checkpoint-every", 3, sbatch=ON_ONE_NODE)
    job.until(lambda: len(run.steps()) > 10)
    site.cluster.ask("scancel", job.number)
    assert job.ended() == ["CANCELLED"]
    job.until(lambda: not pids(str(run.path)))
    assert "requeue" not in job.log()
    assert run.summary()["status"] == "stopped"
    assert not list(run.path.rglob("*.part")) + list(run.path.rglob("*.tmp"))
    time.sleep(7)                           # by when a requeued job would have begun again
    assert job.shown("JobState") == ["CANCELLED"]
    assert pids(str(run.path)) == []
