"""What the doctor says of this machine, alone and on several ranks, and of machines on which something is wrong."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dsgd_mpi.doctor import machine
from dsgd_mpi.doctor.command import accelerators, folders, judge_cores, on_gpus, question_mpi
from dsgd_mpi.doctor.report import Report
from dsgd_mpi.doctor.selftest import partner, selftest, timed
from dsgd_mpi.net.simulated.cluster import Cluster
from tests.support.jobs import run

VERBS = ("mean", "exchange", "window add", "window read")
ONE_CORE_NEEDS = {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}    # Open MPI; no other reads it


def doctor(*args, ranks=None, env=None, limit_s=120):
    return run("-m", "dsgd_mpi", "doctor", *args, ranks=ranks, env={**ONE_CORE_NEEDS, **(env or {})}, limit_s=limit_s)


def fake_mpi4py(folder, content):
    """An mpi4py that goes before the real one, in this program and in those that it starts."""
    (folder / "mpi4py").mkdir()
    (folder / "mpi4py" / "__init__.py").write_text("from types import SimpleNamespace\n"
                                                     "rc = SimpleNamespace()\ndef get_config(): return {}\n")
    (folder / "mpi4py" / "MPI.py").write_text(content)
    return {"PYTHONPATH": str(folder)}


HANGING = "import ctypes; ctypes.PyDLL(None).sleep(300)\n"      # in C, with the interpreter's lock: nothing else runs


def test_alone_it_tells_what_is_here():
    status, output, errors = doctor("--out", "/tmp/nowhere/yet")
    assert (status, errors) == (0, ""), output
    for line in (r"Python +3\.", r"packages .*numpy \d.*mpi4py 4", r"HDF5 +\d.*without MPI|HDF5 +\d.*with MPI",
                 r"oneDNN +(\d|none)", r"library +(MPICH|Open MPI).*libmpi\.so", r"found +\w+", r"GPU-aware +(yes|no)",
                 r"launcher +/.*mpirun, (MPICH|Open MPI)", r"--out +/tmp/nowhere/yet \(to be made in /tmp\)",
                 r"file system +\w+, .+ on /", r"free +[\d.,]+ GiB", r"CuPy +\w+", r"SLURM"):
        assert re.search(rf"^ *{line}", output, re.MULTILINE), (line, output)
    assert output.endswith("\nnothing is wrong\n")
    assert not [line for line in output.splitlines() if line != line.rstrip()]


def test_on_ranks_it_lists_the_hosts_and_measures_every_verb():
    status, output, errors = doctor("--seconds", 0.4, ranks=2)
    assert (status, errors) == (0, ""), output
    assert re.search(rf"^  {os.uname().nodename} +2 +\d+ +\d+ GiB", output, re.MULTILINE), output
    for verb in VERBS:
        assert re.search(rf"^  {verb} +8 MiB +\d+ +[\d.]+ .s +[\d.]+ GB/s", output, re.MULTILINE), output
        assert re.search(rf"^  {verb} +4 bytes +\d+ +[\d.e+]+ .s ", output, re.MULTILINE), output
    assert output.count("nothing is wrong") == 1


# setups in which something is wrong

def test_without_mpi4py_it_says_what_to_install(tmp_path):
    status, output, errors = doctor(env=fake_mpi4py(tmp_path, "raise ImportError('no such thing here')\n"))
    assert (status, errors) == (1, "")
    assert "MPI does not start: ImportError: no such thing here" in output
    assert "pip install mpich" in output.splitlines()[-1]


@pytest.mark.parametrize("package", ["click", "rich"])
def test_a_python_without_our_packages_is_told_in_one_line(package):
    program = (f"import sys; sys.modules['{package}'] = None; sys.argv = ['dsgd_mpi', 'doctor']\n"
               "from dsgd_mpi.__main__ import main; main()")
    status, output, errors = run("-c", program)
    assert (status, output) == (2, "")
    assert errors == (f"Error: {sys.executable} has no package {package}; install dsgd_mpi for it, or use the Python "
                      "that has it (a virtual environment, a module)\n")


def test_an_mpi_library_that_is_not_there_is_named():
    status, output, _ = doctor(env={"MPI4PY_LIBMPI": "/nowhere/libmpi.so"})
    assert status == 1
    assert "/nowhere/libmpi.so: cannot open shared object file" in output
    assert "MPI4PY_LIBMPI" in output


def test_an_mpi_that_hangs_is_told_alone(tmp_path):
    status, output, _ = doctor("--limit", 4, env=fake_mpi4py(tmp_path, HANGING), limit_s=60)
    assert status == 1
    assert "MPI does not start: no answer within 4 s" in output


def test_an_mpi_that_hangs_is_told_on_ranks(tmp_path):
    status, _, errors = doctor("--limit", 4, env=fake_mpi4py(tmp_path, HANGING), ranks=2, limit_s=60)
    assert status != 0
    assert errors.count("Error: hung for 4 s in: the start of MPI") == 1


def test_an_mpi_that_crashes_is_told(tmp_path):
    environment = fake_mpi4py(tmp_path, "import os; os.kill(os.getpid(), 11)\n")
    status, output, _ = doctor(env=environment)
    assert status == 1
    assert "MPI does not start: it was killed by SIGSEGV" in output
    status, _, errors = doctor(env={**environment, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"})
    assert status == -11
    assert errors.startswith("Error: this rank was killed in: the start of MPI. ")


def test_what_we_know_ourselves_of_an_mpi_that_does_not_start_has_its_own_remedy(monkeypatch):
    report = Report(talking=False)
    monkeypatch.setattr(machine, "probe", lambda *words, **limit: ([], "Error: /dev/shm is small; mount it larger"))
    question_mpi(report, 1.0)
    assert report.problems == [("MPI does not start: /dev/shm is small", "mount it larger")]


def test_ranks_that_each_find_themselves_alone_are_told_once():
    """As srun starts them with a --mpi that is not the library's."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DSGD_")}
    ranks = [subprocess.Popen([sys.executable, "-m", "dsgd_mpi", "doctor"], text=True, stdout=subprocess.PIPE,
                              env={**environment, "SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": "2"})
             for rank in range(2)]
    outputs = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 0]    # at the first failure a launcher ends those that talk
    assert "the launcher started 2 ranks but MPI sees 1" in outputs[0]
    assert "srun --mpi=pmi2 for MPICH" in outputs[0]
    assert outputs[1] == ""


def test_an_mpirun_of_another_mpi_is_told_and_the_right_one_named(tmp_path):
    """As another MPI's mpirun does: it starts processes that know nothing of each other."""
    right = Path(sys.executable).parent / "mpirun"
    if not right.exists():
        pytest.skip("this environment has no mpirun of its own to be named")
    wrong = tmp_path / "mpirun"
    wrong.write_text('#!/bin/sh\n[ $1 = --version ] && exec echo "mpirun (Open MPI) 4.1.4"\n'
                     'shift 2\n"$@" & "$@"; wait\n')
    wrong.chmod(0o755)
    status, output, _ = doctor(env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert status == 1
    assert f"{wrong}, Open MPI" in output
    assert re.search(rf"{wrong} does not belong to [^:]+: each of 2 ranks found itself alone", output)
    assert f"call {right}, or put" in output


def test_a_place_that_cannot_be_written_to_is_told():
    status, output, _ = doctor("--out", "/proc/runs")
    assert status == 1
    assert "/proc cannot be written to" in output
    assert "choose another --out" in output


def test_little_room_and_memory_as_disk_are_told():
    report = Report(talking=False)
    here = machine.place(Path("/tmp"))
    list(folders(report, here._replace(free=1 << 20, kind="tmpfs")))
    assert "0.00 GiB left" in report.problems[0][0]
    assert "lost" in report.notes[0]


@pytest.mark.parametrize(("ranks", "cores", "there", "wrong", "noted"), [
    (4, 4, 8, 0, 0), (4, 1, 8, 1, 0), (4, 2, 2, 0, 1),
])
def test_ranks_without_a_core_of_their_own_are_told(ranks, cores, there, wrong, noted):
    report = Report(talking=False)
    judge_cores(report, "node1", [{"cores": range(cores), "cores_there": there}] * ranks)
    assert (len(report.problems), len(report.notes)) == (wrong, noted)


CUPY = {"answer": {"version": "14", "runtime": "13.0", "driver": "13.0", "devices": []}}


@pytest.mark.parametrize(("cupy", "cudnn", "noted"), [
    (CUPY, {"answer": "9.28"}, ""), (CUPY, {"error": "no cudnn"}, "convolutions on GPUs are our own"),
    ({"error": "no cupy"}, {"error": "no cudnn"}, "ranks compute on the CPU"),
])
def test_what_gpus_lack_is_told_with_what_serves_instead(monkeypatch, cupy, cudnn, noted):
    monkeypatch.setattr(machine, "gpus", lambda: ["NVIDIA H200"])
    report, libraries = Report(talking=False), {"cupy": cupy, "cudnn": cudnn}
    assert dict(accelerators(report, libraries))["found"] == "1 x NVIDIA H200"
    assert len(report.notes) == bool(noted)
    assert all(noted in note for note in report.notes)
    assert on_gpus(libraries) is (cupy is CUPY)


# parts

@pytest.mark.parametrize("size", range(1, 10))
def test_partners_are_each_others(size):
    assert all(partner(partner(rank, size), size) == rank for rank in range(size))
    assert sum(partner(rank, size) == rank for rank in range(size)) == size % 2


def test_the_self_test_finds_a_wrong_mean():
    def main(host):
        honest = host.mean
        if host.rank == 1:
            host.mean = lambda x: honest(x + 1)
        return list(selftest(host, 0.01, lambda stage: None))

    with pytest.raises(RuntimeError, match=r"mean: expected 1\.5, found 1\.75"):
        Cluster(4).run(main)


def test_the_self_test_reads_the_simulated_clock_too():
    timings = Cluster(4).run(lambda host: list(selftest(host, 0.01, lambda stage: None)))[0]
    assert [timing.verb for timing in timings] == [*VERBS, *VERBS]
    assert all(timing.median_s > 0 for timing in timings if timing.verb in ("mean", "exchange"))


def test_ten_times_the_seconds_are_ten_times_the_turns():
    def turns(seconds):
        def main(host):
            x = np.zeros(100, np.float32)
            return timed(host, "mean", x.size, lambda: host.mean(x).wait(), seconds).turns
        return Cluster(2).run(main)[0]

    assert turns(0.02) == pytest.approx(10 * turns(0.002), rel=0.1)


def test_a_file_system_is_found_by_its_innermost_mount():
    assert machine.mounted(Path("/proc/self"))[:2] == ("proc", "/proc")
    assert machine.mounted(Path("/"))[1] == "/"


def test_a_question_ends_in_time_with_all_that_it_started():
    start = time.monotonic()
    answer = machine.ask("sh", "-c", "sleep 77 & sleep 77", limit_s=0.3)
    assert (answer.status, answer.why) == (124, "no answer within 0.3 s")
    assert time.monotonic() - start < 3
    assert machine.ask("/nowhere/tool").status == 127
