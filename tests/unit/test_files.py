"""A pipe or a folder that has the name of a file of ours makes nobody wait for ever, and ends no run."""

import os
import resource
import signal
import subprocess
import sys

import pytest

from dsgd_mpi.config import from_toml
from dsgd_mpi.errors import UsageError
from dsgd_mpi.files import allow_many, read_text, regular
from dsgd_mpi.study.plot import read_json, whole_lines
from dsgd_mpi.training.checkpoint import best_of
from dsgd_mpi.training.folder import LOCK, Claim
from dsgd_mpi.training.output import Output
from dsgd_mpi.training.record import columns_of, keep_lines, keep_table
from dsgd_mpi.training.results import lacking

NAMES = ("config.toml", "env.json", "metrics.jsonl", "model.h5", "summary.csv", "summary.json", LOCK)


@pytest.fixture(params=[os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)],
                ids=["pipe", "folder", "device"])
def spoilt(tmp_path, request):
    """A folder in which every file of a run is something else; what opens one for ever ends after ten seconds."""
    for name in NAMES:
        request.param(tmp_path / name)
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError))
    signal.alarm(10)
    yield tmp_path
    signal.alarm(0)


def test_what_is_no_file_is_not_opened(spoilt):
    for name in NAMES:
        with pytest.raises(OSError, match=r"it is no file|Is a directory"):
            read_text(spoilt / name)
    with open(spoilt / "new", "w", encoding="utf-8", opener=regular) as file:
        file.write("x")
    assert read_text(spoilt / "new") == "x"


def test_a_run_goes_on_without_it(spoilt, caplog):
    assert lacking(spoilt, 5) == (["summary.csv", "summary.json", "model.h5"], {})
    assert best_of(spoilt) is None
    assert columns_of(spoilt / "summary.csv") == []
    keep_lines(spoilt / "metrics.jsonl", int, 5)
    output = Output(spoilt)
    output.add("metrics.jsonl", "1\n")
    output.put("summary.json", "{}")        # takes the place of anything but a folder
    output.close()
    assert "lines of steps after 5 could not be removed" in caplog.text
    assert "metrics.jsonl was not written: 1 line missing" in caplog.text
    assert (spoilt / "summary.json").is_dir() == (spoilt / "model.h5").is_dir()


def test_what_cannot_do_without_refuses_it(spoilt):
    for act in (lambda: from_toml(spoilt / "config.toml"), lambda: read_json(spoilt / "env.json"),
                lambda: whole_lines(spoilt / "metrics.jsonl"), lambda: Claim(spoilt)):
        with pytest.raises(UsageError) as refused:
            act()
        assert str(spoilt) in refused.value.message
        assert "\n" not in refused.value.message


def test_options_may_come_from_a_pipe_of_the_shell():
    ends = os.pipe()
    os.write(ends[1], b"lr = 0.125\n")
    os.close(ends[1])
    assert from_toml(f"/dev/fd/{ends[0]}")["lr"] == 0.125
    os.close(ends[0])


@pytest.mark.parametrize("content", [b"\xff\x00\x81junk\nmore\n", b"step," + b"x" * 200_000 + b"\n1,2\n", b"a,b\n"])
def test_what_is_no_table_of_a_run_makes_way_for_one_and_is_kept(tmp_path, caplog, content):
    path = tmp_path / "summary.csv"
    path.write_bytes(content)
    keep_table(path)
    assert (tmp_path / "summary.csv.other").read_bytes() == content
    assert not path.exists()
    assert f"{path} is no table of this run; it is now summary.csv.other" in caplog.text
    path.write_text("step,accuracy\n5,0.5\n")
    keep_table(path)
    assert path.read_text() == "step,accuracy\n5,0.5\n"


@pytest.mark.parametrize(("soft", "hard", "allowed"), [(20, 500, 500), (20, 5000, 1024), (2000, 5000, 2000),
                                                       (20, -1, 1024), (-1, -1, -1), (64, 64, 64)])
def test_a_low_limit_of_open_files_is_raised_as_far_as_it_may_be(monkeypatch, soft, hard, allowed):
    now = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda what: now[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: now.append(limits))
    allow_many()
    assert now[-1] == (allowed, hard)


def test_too_few_open_files_are_said_before_mpi_starts(tmp_path):
    job = f"ulimit -n 20; exec {sys.executable} -m dsgd_mpi.train --steps 1 --out {tmp_path / 'run'}"
    done = subprocess.run(["bash", "-c", job], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("Error: expected to be allowed at least 64 open files, found 20; raise the limit before the "
                           "job starts: ulimit -n 1024\n")
