"""Starts programs as a user would, alone or under mpirun, with a time limit that leaves nothing behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

MPIRUN = shutil.which(os.environ.get("DSGD_MPIRUN", str(Path(sys.prefix, "bin", "mpirun")))) or shutil.which("mpirun")
# what Open MPI's mpirun adds where a rank ends with another status than 0
LAUNCHERS = re.compile(r"^-{20,}\n(?:prterun|mpirun) (?s:.)*?\n-{20,}\n|^\[\S+\] PMIX ERROR: .*\n", re.MULTILINE)


class Job:
    """A program that runs; `finish` waits for it. The last rank gets the arguments `last` in addition.

    `launcher`: options of mpirun. Each process computes with one thread unless told otherwise: on cores shared with
    other tests several wait for each other, which took a run on one rank three times the processor time.
    """

    def __init__(self, *args, ranks=None, env=None, last=(), launcher=()):
        program = [sys.executable, *map(str, args)]
        command = [MPIRUN, *launcher, "-n", str(ranks), *program] if ranks else program
        if last:
            command = [MPIRUN, *launcher, "-n", str(ranks - 1), *program, ":", "-n", "1", *program, *map(str, last)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("DSGD_")}
        self.process = subprocess.Popen(
            command, env={**environment, "DSGD_THREADS": "1", **(env or {})}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

    def finish(self, limit_s=60):
        """(status, output, errors less the launcher's); AssertionError with what was printed if it takes longer."""
        try:
            output, errors = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            output, errors = self.process.communicate()
            raise AssertionError(f"still running after {limit_s} s\n{output}\n{errors}") from None
        except BaseException:               # Ctrl-C: it is in a session of its own, and would go on for ever
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        return self.process.returncode, output, LAUNCHERS.sub("", errors)


def run(*args, ranks=None, limit_s=60, env=None):
    return Job(*args, ranks=ranks, env=env).finish(limit_s)


def train(*args, ranks=None, limit_s=60, env=None, last=()):
    """`python -m dsgd_mpi.train`."""
    return Job("-m", "dsgd_mpi.train", *args, ranks=ranks, env=env, last=last).finish(limit_s)


def pids(text):
    """The Python processes whose command line holds `text`, launchers left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if text in words and "python" in words[0]:
            found.append(int(folder.name))
    return sorted(found)


def until(condition, limit_s=30):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
