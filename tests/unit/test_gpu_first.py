"""The first hour on a GPU: its table is what the page says, each command can be given, and no stage ends the others."""

import ctypes
import json
import shlex
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.gpu import first, once
from benchmarks.gpu import step as gpu_step
from benchmarks.gpu.first import PYTHON, STAGES, Stage
from dsgd_mpi import train
from tests.support import ROOT


def words_of(stage):
    return shlex.split(stage.command.replace("\\\n", " "), comments=True)


# the table

def test_the_page_lists_the_commands_of_the_table():
    page = (ROOT / "docs" / "gpu.rst").read_text()
    assert textwrap.indent(first.listing(), "    ").rstrip() in page, "copy what make gpu-first ARGS=--list prints"


def test_a_stage_has_a_name_of_its_own_and_the_commands_are_shell():
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    assert all(stage.question.endswith("?") for stage in STAGES)
    assert subprocess.run(["bash", "-n"], input=first.listing(), text=True, timeout=10).returncode == 0


def test_a_program_of_the_table_is_there_and_takes_its_options():
    commands = {"benchmarks.gpu.step": gpu_step.main, "benchmarks.gpu.once": once.main, "dsgd_mpi.train": train.command}
    seen = set()
    for stage in STAGES:
        words = words_of(stage)
        for module, given in [(words[i + 1], words[i + 2:]) for i, word in enumerate(words) if word == "-m"]:
            if module in commands:
                more = ["--no-save"] if module == "benchmarks.gpu.step" else []
                with commands[module].make_context(module, [*given, *more]):
                    seen.add(module)
            elif module not in ("pytest", "gpu"):       # pytest -m gpu
                assert find_spec(module), module
    assert seen == commands.keys()


def collection(*words):
    """A pytest that lists the tests of a selection."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-o", "addopts=", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_no_selection_is_empty_and_together_they_are_all_tests_on_a_gpu():
    words = {stage.name: words_of(stage) for stage in STAGES}
    given = {name: each[each.index("pytest") + 1:] for name, each in words.items() if "pytest" in each}
    memcheck = given.pop("memcheck")
    assert memcheck[-3:] == given["racecheck"][-3:]
    assert find_spec(memcheck[memcheck.index("-p") + 1])
    marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    started = {name: collection(*each) for name, each in {**given, "all": ("-m", "gpu", *marked)}.items()}
    found = {name: {line for line in process.communicate()[0].splitlines() if "::" in line}
             for name, process in started.items()}
    assert all(found.values()), {name: len(tests) for name, tests in found.items()}
    assert found["racecheck"] < found["kernels"]
    wanted = found.pop("all")
    assert set.union(*found.values()) == wanted
    assert sum(map(len, found.values())) == len(wanted) + len(found["racecheck"])       # none in two stages


def test_the_driver_needs_nothing_that_has_to_be_installed():
    done = subprocess.run([sys.executable, "-S", "-m", "benchmarks.gpu.first", "--list"], cwd=ROOT, capture_output=True,
                          text=True)
    assert (done.returncode, done.stdout) == (0, first.listing())


# the driver

HERE = (sys.executable,)
GOOD = Stage("good", "Does it?", f"{sys.executable} -c 'print(\"well\")'", HERE)
BAD = Stage("bad", "Does it?", f"{sys.executable} -c 'raise SystemExit(\"no\")'", HERE)
SLOW = Stage("slow", "Does it?", "echo begun; sleep 60.125 & sleep 60.125", HERE)
TOOLLESS = Stage("toolless", "Does it?", "never-heard-of it", ("never-heard-of",))
SKIPPED = Stage("skipped", "Does it?", "echo 3 skipped in 0.1 s; : -m pytest", HERE)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(first, "no_gpu", lambda: None)
    monkeypatch.setattr(first.tree, "commit", lambda: "abc1234")
    monkeypatch.delenv("OUT", raising=False)


def running(words):
    """Processes with this command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found += [path] if path.read_text().split("\0")[:-1] == words else []
    return found


def test_a_stage_that_fails_in_whichever_way_does_not_end_the_others(tmp_path, monkeypatch, gpu, capsys):
    monkeypatch.setattr(first, "STAGES", (BAD, SLOW, TOOLLESS, SKIPPED, GOOD))
    start = time.monotonic()
    assert first.main(["--out", str(tmp_path), "--limit", "1"]) == 1
    assert time.monotonic() - start < 30
    assert not running(["sleep", "60.125"])
    said = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert [" ".join(line.split()) for line in said] == [
        "bad failed 0 s no", "slow timed out 1 s killed; its last line: begun",
        "toolless not started 0 s never-heard-of is not there",
        "skipped failed 0 s no test passed; 3 skipped in 0.1 s", "good passed 0 s well"]
    assert (tmp_path / "gpu-first" / "good.txt").read_text() == "well\n"
    record = json.loads((tmp_path / "gpu-first" / "stages.json").read_text())
    assert {name: each["ended"] for name, each in record.items()} == {
        "bad": "failed", "slow": "timed out", "toolless": "not started", "skipped": "failed", "good": "passed"}
    assert record["good"]["commit"] == "abc1234"


def test_what_has_passed_is_not_repeated_unless_it_is_named_or_the_code_has_changed(tmp_path, monkeypatch, gpu):
    count = tmp_path / "count"
    counted = Stage("counted", "Does it?", f"echo x >> {count}", HERE)
    monkeypatch.setattr(first, "STAGES", (counted, BAD))
    call = ["--out", str(tmp_path)]
    for _ in range(2):
        assert first.main(call) == 1
    assert count.read_text() == "x\n"
    assert first.main([*call, "--stages", "counted"]) == 0
    assert count.read_text() == "x\nx\n"
    monkeypatch.setattr(first.tree, "commit", lambda: "def5678")
    first.main(call)
    assert count.read_text() == "x\nx\nx\n"


def test_a_stage_knows_where_its_results_go_and_which_python_to_use(tmp_path, monkeypatch, gpu):
    told = Stage("told", "Does it?", f"{PYTHON} -c 'import os; print(os.environ[\"DSGD_RESULTS\"], "
                                     "os.environ[\"XDG_CACHE_HOME\"])'")
    saving = Stage("saving", "Does it?", "echo benchmarks.gpu.step")
    monkeypatch.setattr(first, "STAGES", (Stage("environment", "Is it installed?", "false", ()), told, saving))
    assert first.main(["--out", str(tmp_path), "--python", sys.executable, "--no-save"]) == 0
    folder = tmp_path / "gpu-first"
    assert (folder / "told.txt").read_text() == f"{tmp_path} {folder / 'cache'}\n"
    assert (folder / "saving.txt").read_text() == "benchmarks.gpu.step --no-save\n"
    assert not (folder / "environment.txt").exists()


# what is refused

class Driver:
    """libcuda.so.1, as far as it is asked."""

    def __init__(self, status, devices):
        self.status, self.devices = status, devices

    def cuInit(self, flags):
        return self.status

    def cuDeviceGetCount(self, count):
        count._obj.value = self.devices
        return 0


@pytest.mark.parametrize(("driver", "why"), [
    (None, "there is no NVIDIA driver (libcuda.so.1 cannot be loaded)"),
    (Driver(999, 0), "the NVIDIA driver does not start (CUDA error 999)"),
    (Driver(0, 0), "the NVIDIA driver finds no device"),
    (Driver(0, 1), None)])
def test_the_driver_is_asked_whether_there_is_a_gpu(monkeypatch, driver, why):
    def load(name):
        if driver is None:
            raise OSError(name)
        return driver
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert first.no_gpu() == why


def refusal(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        first.main(words)
    assert ended.value.code == 2
    said, = capsys.readouterr().err.splitlines()
    return said


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(first, "no_gpu", lambda: "there is none")
    assert refusal(capsys, "--out", str(tmp_path)) == (
        "Error: no GPU can be used: there is none; --list prints what would be run on one")
    assert not list(tmp_path.iterdir())


def test_make_gpu_first_ends_with_status_2_where_there_is_no_gpu():
    if first.no_gpu() is None:
        pytest.skip("there is a GPU here")
    done = subprocess.run(["make", "--silent", "gpu-first", f"PYTHON={sys.executable}"], cwd=ROOT, capture_output=True,
                          text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: no GPU can be used: {first.no_gpu()}; ")


def test_unknown_stages_and_a_tree_that_no_commit_vouches_for_are_refused(monkeypatch, gpu, tmp_path, capsys):
    said = refusal(capsys, "--stages", "probe,dreams")
    assert said.startswith("Error: --stages: expected some of environment, probe, ")
    assert said.endswith("; found dreams")

    def refuse():
        raise ValueError("expected a working tree without changes")
    monkeypatch.setattr(first.tree, "commit", refuse)
    assert refusal(capsys, "--out", str(tmp_path)) == "Error: expected a working tree without changes"
    monkeypatch.setattr(first, "STAGES", (GOOD,))
    assert first.main(["--out", str(tmp_path), "--no-save"]) == 0
