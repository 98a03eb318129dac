"""The batch job that a run is part of, and when the run must stop so that it is saved before the job ends.

SLURM 23.02 and later set SLURM_JOB_END_TIME; otherwise squeue is asked.
"""

from __future__ import annotations

import math
import os
import subprocess
import time
from contextlib import suppress
from datetime import datetime, timezone
from typing import NamedTuple

ASKING_S = 10                               # the most that squeue may take
SHARE = 0.1                                 # of the time left at the start: the most that stopping early may cost


class BatchJob(NamedTuple):
    """As SLURM describes it; `end` in seconds since 1970, infinite if there is no limit or none is known."""

    number: str
    name: str
    nodes: str                              # in SLURM's notation: node[1-16]
    restarts: int
    end: float

    def deadline(self, margin_s: float) -> float:
        """When to stop: `margin_s` before the end, or less in a short job. Infinite with a margin of 0."""
        left = self.end - time.time()
        return self.end - min(margin_s, SHARE * left) if margin_s and left < math.inf else math.inf

    def described(self) -> str:
        again = f", restart {self.restarts}" if self.restarts else ""
        left = max(0, self.end - time.time())
        limit = "no time limit known" if left == math.inf else f"{clock(left)} left"
        return f"{self.number} ({self.name}{again}) on {self.nodes}, {limit}"


def batch_job() -> BatchJob | None:
    """The one that this process is part of. Starts a process: not to be called after MPI has started."""
    number = os.environ.get("SLURM_JOB_ID")
    if not number:
        return None
    restarts = os.environ.get("SLURM_RESTART_COUNT", "")
    return BatchJob(number, os.environ.get("SLURM_JOB_NAME", ""), os.environ.get("SLURM_JOB_NODELIST", ""),
                    int(restarts) if restarts.isdecimal() else 0, end_of(number))


def end_of(number: str) -> float:
    with suppress(ValueError):
        end = float(os.environ.get("SLURM_JOB_END_TIME", ""))
        if end > 0:                         # nor is it NaN
            return end
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        asked = ["squeue", "--noheader", "--jobs", number, "--format", "%e"]
        # it prints local time without a zone: an hour comes twice a year; and as the user wants it printed
        environment = {**os.environ, "TZ": "UTC0", "SLURM_TIME_FORMAT": "standard"}
        done = subprocess.run(asked, capture_output=True, encoding="utf-8", timeout=ASKING_S, check=True,
                              env=environment)
        return datetime.fromisoformat(done.stdout.strip()).replace(tzinfo=timezone.utc).timestamp()
    return math.inf                         # NONE or N/A, or no squeue


def clock(seconds: float) -> str:
    """1-02:03:04, as SLURM writes it."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}-" * bool(days) + f"{hour:02}:{minute:02}:{second:02}"
