"""A run folder belongs to one run at a time, however many ask for it at once."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dsgd_mpi.config import Config
from dsgd_mpi.errors import UsageError
from dsgd_mpi.training import folder as module
from dsgd_mpi.training.folder import LOCK, SILENT_S, Claim, Holder, claimed, fresh, own, started


def left(folder, **changes):
    """A claim of the process that these changes describe."""
    holder = own()._replace(**changes)
    (folder / LOCK).write_text(json.dumps(holder._asdict()))
    return holder


def silent(folder, seconds):
    then = time.time() - seconds
    os.utime(folder / LOCK, (then, then))


def test_a_held_folder_is_refused_with_who_holds_it_and_since_when(tmp_path):
    with Claim(tmp_path) as claim, pytest.raises(UsageError) as refused:
        Claim(tmp_path)
    holder = claim.holder
    assert f"process {os.getpid()} on {holder.host}, since {holder.since}" in refused.value.message
    assert "\n" not in refused.value.message
    assert not os.listdir(tmp_path)         # released, and nothing is left of either
    Claim(tmp_path).release()


def test_a_claim_of_a_process_that_was_killed_is_taken_over_at_once(tmp_path):
    program = ("import sys, time; from pathlib import Path; from dsgd_mpi.training.folder import Claim; "
               "Claim(Path(sys.argv[1])); print('claimed', flush=True); time.sleep(60)")
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout.readline() == "claimed\n"
        with pytest.raises(UsageError, match=f"process {child.pid} on"):
            Claim(tmp_path)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)         # a zombie yet
        Claim(tmp_path).release()


def test_the_id_of_a_process_that_is_gone_may_be_another_s_now(tmp_path):
    left(tmp_path, started="1")
    assert started(os.getpid()) != "1"
    Claim(tmp_path).release()


@pytest.mark.parametrize("seconds", [SILENT_S + 60, -10**8])    # in the past, or years ahead: no living one's touch
def test_a_holder_on_another_machine_is_gone_once_it_has_been_silent_for_long(tmp_path, seconds):
    left(tmp_path, machine="another", host="far")
    silent(tmp_path, SILENT_S - 60)
    with pytest.raises(UsageError, match="on far"):
        Claim(tmp_path)
    silent(tmp_path, seconds)
    Claim(tmp_path).release()


def test_a_requeued_job_knows_its_own_claim_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    left(tmp_path, machine="another", host="far")
    with pytest.raises(UsageError, match="job 7 2, since"):             # another step of the same job
        Claim(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with pytest.raises(UsageError, match="job 7 2, since"):
        Claim(tmp_path)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    with Claim(tmp_path) as claim:
        assert (claim.holder.job, claim.holder.restarts) == ("7 2", 1)


@pytest.mark.parametrize("content", [
    b"", b"\0\0", b"[1]", b'{"host": "x"}', b"\xff\xfe",
    b'{"host": "x", "machine": "x", "pid": "x", "started": "", "job": "", "restarts": null, "since": ""}'])
def test_what_cannot_be_understood_is_waited_for_and_then_refused_or_old(tmp_path, monkeypatch, content):
    monkeypatch.setattr(module, "TAKING_S", 0.2)
    (tmp_path / LOCK).write_bytes(content)
    with pytest.raises(UsageError, match=f"{tmp_path / LOCK}: expected the claim of a run, .* remove it"):
        Claim(tmp_path)
    silent(tmp_path, SILENT_S + 60)
    Claim(tmp_path).release()


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("before", ["nothing", "a claim left behind", "a taking left behind"])
def test_of_many_at_once_one_gets_it(tmp_path, monkeypatch, links, before):
    """Each in a process of its own would take a second to start: threads race more closely."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(PermissionError(1, "no links here")))
    for turn in range(10):
        folder = tmp_path / str(turn)
        folder.mkdir()
        if before != "nothing":
            left(folder, started="1")
        if before == "a taking left behind":
            (folder / f"{LOCK}.taking").write_text((folder / LOCK).read_text())
        barrier = threading.Barrier(8)

        def attempt(_, folder=folder, barrier=barrier):
            barrier.wait()
            try:
                return Claim(folder)
            except UsageError as refused:
                return refused.message

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(attempt, range(8)))
        assert sum(isinstance(each, Claim) for each in found) == 1
        assert [each for each in found if not isinstance(each, Claim) and "is in use by process" not in each] == []
        assert os.listdir(folder) == [LOCK]
        next(each for each in found if isinstance(each, Claim)).release()


def test_who_was_stopped_for_long_notices_that_another_has_the_folder_now(tmp_path, monkeypatch):
    lost = []
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    monkeypatch.setattr(threading, "excepthook", lambda failure: lost.append(failure.exc_value))
    claim = Claim(tmp_path)
    silent(tmp_path, 1000)
    end = time.monotonic() + 10
    while time.time() - (tmp_path / LOCK).stat().st_mtime > 900:        # it is touched
        assert time.monotonic() < end
    other = left(tmp_path, pid=1, host="far")
    while not lost:
        assert time.monotonic() < end
    assert isinstance(lost[0], UsageError)
    assert "was taken over by process 1 on far" in lost[0].message
    claim.release()
    assert Holder(**json.loads((tmp_path / LOCK).read_text())) == other  # not its to remove


def test_one_second_one_name_many_folders(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: fresh(tmp_path / "runs", "now"), range(8)))
    assert sorted(folder.name for folder in found) == ["now"] + [f"now-{number}" for number in range(2, 9)]


def test_a_new_run_is_named_after_the_ranks_that_there_are_and_keeps_its_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PMI_SIZE", "5")
    with claimed(Config(), 0, 3) as one, claimed(Config(seed=1), 0, 3) as two:
        assert one.folder != two.folder
        assert one.folder.name.endswith("-allreduce-resnet8-3")
        assert f'out = "{one.folder}"' in (one.folder / "config.toml").read_text()
    assert claimed(Config(), 1, 3) is None


def test_a_folder_that_holds_a_run_is_gone_on_with_only_by_that_run(tmp_path):
    claimed(Config(out=str(tmp_path / "r")), 0, 1).release()
    for config, kind in ((Config(), "a run"), (Config(auto_resume=True, seed=1), "another run")):
        with pytest.raises(UsageError, match=f"already holds {kind}; continue it with --resume"):
            claimed(module.replace(config, out=str(tmp_path / "r")), 0, 1)
    claimed(Config(auto_resume=True, out=str(tmp_path / "r")), 0, 1).release()
    assert os.listdir(tmp_path / "r") == ["config.toml"]


@pytest.mark.parametrize("make", [lambda path: path.write_text(""), lambda path: path.symlink_to("/nonexistent/x")])
def test_where_no_folder_can_be_made_one_line_says_so(tmp_path, make):
    make(tmp_path / "r")
    for out in (tmp_path / "r", tmp_path / "r" / "deeper"):
        with pytest.raises(UsageError, match="cannot be created"):
            claimed(Config(out=str(out)), 0, 1)
    with pytest.raises(UsageError, match=r"cannot be claimed \(No such file"):
        claimed(Config(resume=str(tmp_path / "none")), 0, 1)
    with pytest.raises(UsageError, match=r"cannot be created \(File name too long\); choose another --out"):
        claimed(Config(out=str(tmp_path / ("x" * 300))), 0, 1)


def test_a_folder_made_in_vain_is_removed(tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(module, "write_whole", full)
    with pytest.raises(UsageError, match="No space left on device"):
        claimed(Config(out=str(tmp_path / "r")), 0, 1)
    assert not (tmp_path / "r").exists()


def refused_with(claim, error):
    with pytest.raises(type(error)), claim:
        raise error


def test_a_run_that_is_refused_before_its_first_step_leaves_no_folder(tmp_path):
    for lines, error, there in (("", UsageError("no"), False), ("line\n", UsageError("no"), True),
                                ("", RuntimeError("no"), True)):
        claim = claimed(Config(out=str(tmp_path / "r")), 0, 1)
        (tmp_path / "r" / "metrics.jsonl").write_text(lines)
        refused_with(claim, error)
        assert (tmp_path / "r").exists() == there
        shutil.rmtree(tmp_path / "r", ignore_errors=True)
    claimed(Config(out=str(tmp_path / "r")), 0, 1).release()
    refused_with(claimed(Config(resume=str(tmp_path / "r")), 0, 1), UsageError("no"))
    assert os.listdir(tmp_path / "r") == ["config.toml"]
