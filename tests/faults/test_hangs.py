"""Ranks that hang are named, in one line and within the time that is asked for, and the job ends."""

import json
import os
import re
import signal
import textwrap
import time
from contextlib import suppress

import pytest

from tests.support import ROOT
from tests.support.jobs import Job, train, until

LONG = ("--steps", 400, "--batch", 4, "--log-every", 1, "--checkpoint-every", 10, "--threads", 1, "--quiet")


def begun(folder):
    """Until some steps have been taken; the ranks' process ids."""
    until(lambda: len(list(folder.glob("checkpoint-*"))) > 0)
    return [rank["pid"] for rank in json.loads((folder / "env.json").read_text())["ranks"]]


@pytest.mark.parametrize(("stopped", "options"), [
    (1, ("allreduce",)), (0, ("parameter_server",)),
    pytest.param(2, ("gossip", "--set", "mode=push"), marks=pytest.mark.soak)])
def test_a_rank_that_is_stopped_is_named_and_the_job_ends(tmp_path, stopped, options):
    folder = tmp_path / "run"
    job = Job("-m", "dsgd_mpi.train", *LONG, "--hang-timeout", 2, "--out", folder, "--algorithm", *options, ranks=3)
    pid = begun(folder)[stopped]
    os.kill(pid, signal.SIGSTOP)
    try:
        status, _, errors = job.finish(60)
    finally:
        with suppress(ProcessLookupError):      # the launcher may have been quicker
            os.kill(pid, signal.SIGKILL)
    assert status == 4
    line, *rest = [line for line in errors.splitlines() if line.startswith("Error: ")]
    assert re.match(rf"Error: no progress for \d+ s at step \d+: rank {stopped} \(pid {pid} on \S+, stopped by a "
                    r"signal\) does not answer; rank.* in .*; continue with --resume ", line)
    assert not rest
    others = {f"hang-rank{rank}.txt" for rank in range(3) if rank != stopped}
    assert {path.name for path in folder.glob("hang-*")} == others
    assert "waiting" in (folder / min(others)).read_text()
    assert list(folder.glob("checkpoint-*"))


def test_a_rank_that_is_asked_to_stop_does_not_wait_for_one_that_never_will(tmp_path):
    """It ends as a run that was stopped, to be run again."""
    folder = tmp_path / "run"
    program = tmp_path / "program.py"
    program.write_text("from dsgd_mpi.training import watch\nwatch.STOP_S = 2.0\n"
                       "from dsgd_mpi.train import main\nmain()")
    job = Job(program, *LONG, "--out", folder, ranks=2, env={"PYTHONPATH": str(ROOT)})
    pids = begun(folder)
    os.kill(pids[1], signal.SIGSTOP)
    try:
        time.sleep(0.5)
        os.kill(pids[0], signal.SIGTERM)
        status, _, errors = job.finish(60)
    finally:
        with suppress(ProcessLookupError):      # the launcher may have been quicker
            os.kill(pids[1], signal.SIGKILL)
    assert status == 75
    assert f"rank 1 (pid {pids[1]} on " in errors


def test_sigterm_ends_ranks_that_wait_in_mpi_for_one_that_will_not_start(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import sys, time\nif sys.argv[-1] == 'late':\n    time.sleep(1000)\n"
                       "from dsgd_mpi.train import main\nmain()")
    job = Job(program, *LONG, "--out", tmp_path / "run", ranks=2, last=("late",), env={"PYTHONPATH": str(ROOT)})
    time.sleep(2)
    assert job.process.poll() is None
    job.process.terminate()
    assert job.finish(20)[0] != 0
    assert not (tmp_path / "run").exists()


def test_a_rank_that_computes_for_longer_is_waited_for(tmp_path):
    status, _, errors = train("--steps", 2, "--batch", 4, "--threads", 1, "--quiet", "--hang-timeout", 1,
                              "--slow-rank", "1:3", "--out", tmp_path / "run", ranks=2)
    assert (status, errors) == (0, "")


STUCK = """
    import time
    from dsgd_mpi.data.loader import Batches
    from dsgd_mpi.train import main
    whole = Batches._filled
    def filled(self, step, *args):
        if step == 12 and self.rank == self.size - 1:
            time.sleep(1000)
        return whole(self, step, *args)
    Batches._filled = filled
    main()
"""


@pytest.mark.parametrize("ranks", [None, 2])
def test_a_loader_that_is_stuck_is_found_with_others_and_alone(tmp_path, ranks):
    folder, program = tmp_path / "run", tmp_path / "program.py"
    program.write_text(textwrap.dedent(STUCK) if ranks else "from dsgd_mpi.training import watch\n"
                       "watch.ANSWERS_S = 2.0\n" + textwrap.dedent(STUCK))
    job = Job(program, *LONG, "--hang-timeout", 2, "--out", folder, ranks=ranks, env={"PYTHONPATH": str(ROOT)})
    status, _, errors = job.finish(60)
    assert status == 4, errors
    if ranks:
        assert re.search(r"rank 1 \(pid \d+ on \S+\) does not answer; rank 0 waits in mean", errors)
    else:
        assert "Error: nothing has moved on rank 0 (pid " in errors
    assert "in filled" in (folder / f"hang-rank{(ranks or 1) - 1}.txt").read_text()


HANGING_DISK = """
    import os, threading, time
    from dsgd_mpi.train import main
    whole, calls = os.fsync, []
    def fsync(descriptor):
        if threading.current_thread().name == "checkpoint":
            calls.append(1)
            if len(calls) > 10:
                time.sleep(1000)
        whole(descriptor)
    os.fsync = fsync
    main()
"""


@pytest.mark.parametrize(("ranks", "whole"), [(2, r"all ranks wait; rank 0 waits in the writing of the checkpoint of "
                                               r"step (\d+) to \S+/run, rank 1 waits in allgather; "),
                                              pytest.param(None, "rank 0 waits in the writing of the checkpoint of "
                                                           r"step (\d+) to \S+/run; ", marks=pytest.mark.soak)])
def test_a_file_system_that_hangs_under_a_checkpoint_is_found_when_the_next_is_due(tmp_path, ranks, whole):
    folder, program = tmp_path / "run", tmp_path / "program.py"
    program.write_text(textwrap.dedent(HANGING_DISK))
    job = Job(program, *LONG, "--hang-timeout", 2, "--out", folder, ranks=ranks, env={"PYTHONPATH": str(ROOT)})
    status, _, errors = job.finish(60)
    assert status == 4, errors
    found = re.search(rf"no progress for \d+ s at step (\d+): {whole}stacks are in ", errors)
    assert found, errors
    reached, writing = map(int, found.groups())
    assert writing < reached <= writing + 10, "steps were taken meanwhile"
    assert "in fsync" in (folder / "hang-rank0.txt").read_text()
    assert f"checkpoint-{writing - 10:09d}" in {path.name for path in folder.iterdir()}
