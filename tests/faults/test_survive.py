"""Ranks are killed and the others go on, under Open MPI with ULFM; what no other MPI can is refused."""

import json
import os
import re
import signal
import subprocess
import tempfile
import textwrap
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from dsgd_mpi.config import from_toml
from tests.support import ROOT
from tests.support.jobs import MPIRUN, Job, train, until

ULFM = ("--with-ft", "ulfm")
OPEN_MPI = "Open MPI" in subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout
only_open_mpi = pytest.mark.skipif(not OPEN_MPI, reason="no other MPI has ULFM: make test MPI=openmpi")
SHORT = ("--survive", "--steps", 24, "--batch", 4, "--threads", 1, "--log-every", 1, "--checkpoint-every", 8, "--quiet")
MOST_LOST = 0.015                           # of accuracy
METHODS = [("allreduce",), ("gossip",), ("gossip", "--set", "mode=push"), ("sgp",), ("local_sgd",)]

# KILLS=WHERE:RANK:STEP,... kills that rank in its next wait for others after that step, once the operation has begun;
# or in its first checkpoint of that step or a later one
KILLING = """
    import os, signal
    from dsgd_mpi.net.launch import launched
    from dsgd_mpi.net.mpi.library import start
    from dsgd_mpi.train import main
    from dsgd_mpi.training import rankfile
    from dsgd_mpi.training.checkpoint import Checkpoints
    start()
    from dsgd_mpi.net.mpi.host import Waiting

    def kill(*args):
        os.kill(os.getpid(), signal.SIGKILL)

    def in_collective(step):
        whole, begun = Waiting.test, set()
        def test(self):
            if self.host.stop.step > step and self in begun:
                kill()
            begun.add(self)
            return whole(self)
        Waiting.test = test

    def in_checkpoint(step):
        whole = Checkpoints.save
        def save(self, at, x, optimizer, algorithm, totals):
            if at >= step and self.host.rank and algorithm.replicated:
                self.host.allgather = kill      # it writes no file
            elif at >= step:
                rankfile.write = kill           # in the thread that writes, while the run goes on
            return whole(self, at, x, optimizer, algorithm, totals)
        Checkpoints.save = save

    for where, rank, step in (each.split(":") for each in os.environ["KILLS"].split(",")):
        if int(rank) == launched().rank:
            {"collective": in_collective, "checkpoint": in_checkpoint}[where](int(step))
    main()
"""


def killing(tmp_path, kills, *args, ranks, limit_s=60):
    """(status, errors) of a training in which ranks are killed."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(KILLING))
    job = Job(program, *args, ranks=ranks, env={"KILLS": kills, "PYTHONPATH": str(ROOT)}, launcher=ULFM)
    status, _, errors = job.finish(limit_s)
    return status, ours(errors)


def ours(errors):
    """Without what Open MPI says of a collective that has failed."""
    return [line for line in errors.splitlines() if line and not line.startswith("NBC_Progress: an error 7")]


def summary(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def test_without_ulfm_it_is_refused_in_one_line_with_the_command_to_run(tmp_path):
    status, output, errors = train("--survive", "--steps", 2, "--out", tmp_path / "run", ranks=2)
    assert (status, output) == (2, "")
    line, = [line for line in errors.splitlines() if line.startswith("Error: ") or not OPEN_MPI]     # which adds more
    assert line.startswith("Error: --survive: expected ")
    assert f"run mpirun --with-ft ulfm -n 2 python -m dsgd_mpi.train --survive --steps 2 --out {tmp_path}/run" in line
    assert not (tmp_path / "run").exists()


@only_open_mpi
@pytest.mark.parametrize(("method", "kills"), [
    (("allreduce",), "collective:0:5"), (("gossip", "--set", "mode=push"), "checkpoint:1:8"),
    (("sgp",), "checkpoint:0:8,collective:2:18")])
def test_the_others_go_on(tmp_path, method, kills):
    folder = tmp_path / "run"
    status, errors = killing(tmp_path, kills, *SHORT, "--out", folder, "--algorithm", *method, ranks=4)
    dead = [int(each.split(":")[1]) for each in kills.split(",")]
    assert status == 0, errors
    assert len(errors) == len(dead)
    for rank, line in zip(dead, errors, strict=True):
        assert re.search(rf"lost rank {rank} \(pid \d+ on \S+\) after step \d+; \d ranks go on from there: global "
                         r"batch \d+, rate [\d.]+, \d+ steps in all$", line), line
    found = summary(folder)
    assert (found["status"], found["ranks"]) == ("finished", 4 - len(dead))
    assert [each["rank"] for each in found["lost"]] == dead
    assert (folder / "model.h5").exists()
    assert not (folder / "run.lock").exists()
    assert not list(folder.glob(".checkpoint-*"))
    assert from_toml(folder / "config.toml")["survive"]
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    status, _, errors = train("--resume", folder, "--no-survive", "--steps", found["steps"] + 9, "--quiet",
                              ranks=4 - len(dead))
    assert (status, errors) == (0, ""), "its checkpoints are those of the ranks that were left"


def after_a_loss(folder, *args):
    """A job whose rank 0 was killed, after a few more steps, and the processes of its ranks."""
    job = Job("-m", "dsgd_mpi.train", "--survive", "--steps", 4000, "--batch", 4, "--threads", 1, "--log-every", 1,
              "--checkpoint-every", 10, "--quiet", "--inject", "kill@0:12", "--out", folder, *args, ranks=3,
              launcher=ULFM)
    until(lambda: (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text().count('"ranks"') > 3)
    return job, [rank["pid"] for rank in json.loads((folder / "env.json").read_text())["ranks"]]


@only_open_mpi
@pytest.mark.soak
def test_a_rank_that_is_stopped_after_a_loss_is_still_named(tmp_path):
    job, pids = after_a_loss(tmp_path / "run", "--hang-timeout", 2)
    os.kill(pids[2], signal.SIGSTOP)
    try:
        status, _, errors = job.finish(60)
    finally:
        with suppress(ProcessLookupError):      # the launcher may have been quicker
            os.kill(pids[2], signal.SIGKILL)
    assert status == 4
    line, = [line for line in ours(errors) if line.startswith("Error: ")]
    assert "stopped by a signal) does not answer; rank 1 waits in " in line, "by their numbers of env.json"
    assert f": rank 2 (pid {pids[2]}" in line
    assert {path.name for path in (tmp_path / "run").glob("hang-*")} == {"hang-rank1.txt"}


@only_open_mpi
@pytest.mark.soak
def test_a_request_to_stop_is_still_heard_after_a_loss(tmp_path):
    job, pids = after_a_loss(tmp_path / "run")
    os.kill(pids[1], signal.SIGTERM)
    status, _, errors = job.finish(60)
    assert status == 75, errors
    assert summary(tmp_path / "run")["status"] == "stopped"


@cache
def undisturbed(method):
    with tempfile.TemporaryDirectory() as folder:
        return drilled(Path(folder), method, "none")


def drilled(folder, method, where):
    """The accuracy of three epochs on 8 ranks, of which two are killed."""
    words = ("--survive", "--epochs", 3, "--threads", 1, "--eval-every", 3, "--eval-own", 0, "--checkpoint-every", 60,
             "--quiet", "--out", folder / "run", "--algorithm", *method)
    if where in ("none", "compute"):
        faults = ("--inject", "kill@5:91,kill@0:181") if where == "compute" else ()
        status, _, errors = Job("-m", "dsgd_mpi.train", *words, *faults, ranks=8, launcher=ULFM).finish(600)
    else:
        status, errors = killing(folder, f"{where}:5:90,{where}:0:180", *words, ranks=8, limit_s=600)
    found = summary(folder / "run")
    assert (status, found["status"]) == (0, "finished"), errors
    assert [each["rank"] for each in found.get("lost", [])] == ([] if where == "none" else [5, 0])
    return found["accuracy"]


@only_open_mpi
@pytest.mark.soak
@pytest.mark.parametrize("where", ["compute", "collective", "checkpoint"])
@pytest.mark.parametrize("method", METHODS, ids=" ".join)
def test_two_of_eight_ranks_may_die_and_the_accuracy_stays(tmp_path, method, where):
    found = drilled(tmp_path, method, where)
    assert found > undisturbed(method) - MOST_LOST
