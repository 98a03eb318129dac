"""A checkout of the project on a cluster: its batch scripts, submitted as they are, and what their runs leave."""

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np

from tests.support import ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "slurm").glob("*_*.sh"))
SMOKE = ("--config", "jobs/smoke.toml")
LONG = (*SMOKE, "--steps", 60, "--slow-rank", "0:0.1")         # 6 s and more
ON_ONE_NODE = ("--nodes=1", "--ntasks-per-node=2")


class Site:
    """A checkout on a cluster: what jobs write lands in a folder of the test's own."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder
        for name in ("slurm", "jobs"):
            (folder / name).symlink_to(ROOT / name)
        (folder / ".venv").symlink_to(sys.prefix)
        (folder / "logs").mkdir()
        self.env = {**cluster.env, "DSGD_THREADS": "1"}     # cores are many in name only
        self.empty = {name: cluster.env[name] for name in ("PATH", "HOME", "SLURM_CONF")}

    def command(self, *words, env=None, empty=False, limit_s=60):
        """(status, output, errors) of a program started here; `empty`: where nothing is set but what `env` says."""
        environment = {**(self.empty if empty else self.env), **(env or {})}
        done = subprocess.run(list(map(str, words)), cwd=self.folder, env=environment, text=True,
                              capture_output=True, timeout=limit_s)
        return done.returncode, done.stdout, done.stderr

    def submit(self, script, *options, sbatch=(), **environment):
        """`sbatch slurm/SCRIPT OPTIONS`, with further options of sbatch."""
        words = ("sbatch", "--parsable", *sbatch, f"slurm/{script}", *options)
        status, output, errors = self.command(*words, **environment)
        assert status == 0, errors
        return Job(self, output.strip())


class Job:
    def __init__(self, site, number):
        self.site, self.number = site, number

    def shown(self, key):
        """What SLURM says of it: shown("JobState"); a list, of all tasks of a job array in turn."""
        words = self.site.cluster.ask("scontrol", "show", "job", self.number).split()
        return [word.partition("=")[2] for word in words if word.startswith(f"{key}=")]

    def until(self, condition, limit_s=180):
        end = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < end, f"not within {limit_s} s: {self.shown('JobState')}\n{self.log()}"
            time.sleep(0.2)

    def ended(self, limit_s=180):
        """The states of all its tasks, once none of them is waiting or running."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "OUT_OF_MEMORY"}
        self.until(lambda: set(self.shown("JobState")) <= over, limit_s)
        return self.shown("JobState")

    def shell(self):
        """The processes of its batch script."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):         # it may be gone by now
                if f"job{self.number}/slurm_script".encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found

    def signal(self, name, task=None):
        """To its batch shell alone, as --signal=B: does when time runs out; to that of one task of a job array."""
        whose = self.number if task is None else f"{self.number}_{task}"
        self.site.cluster.ask("scancel", "--batch", f"--signal={name}", whose)

    def log(self):
        paths = sorted((self.site.folder / "logs").glob(f"*-{self.number}*.log"))
        return "".join(path.read_text() for path in paths)


class RunFolder:
    """What a run has left."""

    def __init__(self, path):
        self.path = path

    def lines(self):
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def steps(self):
        return [line["step"] for line in self.lines()]

    def summary(self):
        return json.loads((self.path / "summary.json").read_text())

    def model(self):
        with h5py.File(self.path / "model.h5") as file:
            return {name: file[name][()] for name in file}

    def equals(self, other):
        mine, theirs = self.model(), other.model()
        return mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)
