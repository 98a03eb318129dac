"""What surrounds a run may be unusual: a user without a home, little shared memory, a locale without UTF-8."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dsgd_mpi.arrays.cache import cache_folder
from dsgd_mpi.data.formats import data_folder
from dsgd_mpi.doctor import command, machine
from dsgd_mpi.doctor.report import Report
from tests.support import ROOT

GIB = 2**30


def test_who_has_no_home_has_a_cache_all_the_same(monkeypatch):
    def nobody(_uid):
        raise KeyError("getpwuid(): uid not found: 12345")
    for name in ("HOME", "XDG_CACHE_HOME", "DSGD_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr("pwd.getpwnam", lambda name: nobody(name))
    assert cache_folder() == data_folder() == Path(f"/tmp/dsgd_mpi-{os.getuid()}")
    monkeypatch.setenv("DSGD_DATA_DIR", "~nobody/data")
    assert data_folder() == Path("~nobody/data")
    monkeypatch.setenv("HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/.cache/dsgd_mpi")
    monkeypatch.setenv("XDG_CACHE_HOME", "/else where")
    assert cache_folder() == Path("/else where/dsgd_mpi")


@pytest.mark.parametrize(("free", "noted"), [(2**26, True), (4 * GIB, False)])
def test_little_shared_memory_is_told(free, noted):
    report = Report(talking=False)
    place = machine.Place(Path("/dev/shm"), Path("/dev/shm"), "tmpfs", "/dev/shm", "shm", free, free, True)
    assert "free of" in dict(command.shared_memory(report, place))["/dev/shm"]
    assert any("--shm-size" in note for note in report.notes) == noted


def test_folders_that_cannot_be_used_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(command.tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 80)))
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    report = Report(talking=False)
    lines = dict(command.places(report))
    assert lines["temporary"] != os.environ["TMPDIR"]
    assert "cannot be made" in lines["cache"]
    assert [note.split()[0] for note in report.notes] == ["TMPDIR", "TMPDIR", "/proc/nowhere/dsgd_mpi"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_tables_and_paths_are_printed_whatever_the_locale(encoding):
    program = ("from dsgd_mpi.terminal import print_anything; print_anything(); from dsgd_mpi.training.display import "
               "Display; Display(True).table('t', {'run folder': 'gr\u00fcn/\u4e2d'}); import click, sys; "
               "click.echo('gr\u00fcn/\u4e2d'); print('gr\u00fcn/\u4e2d'); print('gr\u00fcn/\u4e2d', file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True,
                          env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    assert done.returncode == 0, done.stderr
    assert "run folder" in done.stdout.decode(encoding, "replace")
    assert "gr\u00fcn/\u4e2d".encode(encoding, "backslashreplace") in done.stdout


PRINTING = ("from dsgd_mpi.terminal import print_anything; print_anything(); from dsgd_mpi.training.display import "
            "Display; import sys\nfor _ in range(1000): Display(True).table('t', {'a': 'b' * 90})\n"
            "print('x', flush=True); print('x', file=sys.stderr, flush=True);sys.exit(7)")


def test_output_to_a_full_disk_is_lost_and_the_program_goes_on():
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-c", PRINTING], stdout=full, stderr=full).returncode == 7


@pytest.mark.parametrize("how", [">&- 2>&-", "<&-", "> >(head -1) 2>&1", "> >(true) 2>&1"])
def test_output_that_nobody_reads_is_lost_and_the_program_goes_on(tmp_path, how):
    """And what it prints is not found in a file that it opens."""
    file = tmp_path / "file"
    program = PRINTING.replace("import sys", f"import sys; file = open({str(file)!r}, 'w'); file.write('x')", 1)
    done = subprocess.run(["bash", "-c", f'exec "$0" -c "$1" {how}', sys.executable, program], capture_output=True)
    assert (done.returncode, file.read_text()) == (7, "x"), done.stderr


def test_no_file_is_read_or_written_in_the_locale_s_encoding():
    """`make lint` finds what ruff understands; this the short forms that it does not, and output of programs."""
    found = [f"{path}: {line.strip()}" for path in Path(ROOT, "dsgd_mpi").rglob("*.py")
             for line in path.read_text("utf-8").splitlines()
             if re.search(r"\b(read|write)_text\(\)|\btext=True|universal_newlines", line)]
    assert not found
