"""Faults on request, for a drill or a test: what really happens then, at a step and on a rank that are named.

    kill@RANK:STEP      the process is killed             stop@RANK:STEP    it is stopped, as by SIGSTOP
    hang@RANK:STEP      the step never returns            raise@RANK:STEP   an exception in the middle of a run
    nan@RANK:STEP       a loss and a gradient that are not numbers, as from a weight that is none
    diskfull@RANK:STEP  from then on no file of that rank can grow (RLIMIT_FSIZE)
    corrupt@RANK:STEP   a byte of that rank's part of a checkpoint is changed once it is complete
    slow@RANK:SECONDS   each gradient takes that much longer

A fault comes before the step of that number, counted from 1, or the next one that the rank takes; `corrupt` with the
first checkpoint from then on. A run that is resumed has none of them unless they are given again, nor what is past.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.config import Most, convert
from dsgd_mpi.errors import UsageError

KINDS = ("kill", "stop", "hang", "raise", "nan", "diskfull", "corrupt", "slow")
ENDLESS_S = 1e9
NAMED_S = 10.0                              # within which rank 0 gives a complete checkpoint its name


class Fault(NamedTuple):
    """`at`: a step, counted from 1, or seconds."""

    kind: str
    rank: int
    at: float


def parse(text: str | None) -> list[Fault]:
    """Of `--inject`; UsageError if there is no such fault."""
    return [parse_one(each.strip()) for each in text.split(",")] if text else []


def parse_one(text: str) -> Fault:
    kind, at, where = text.partition("@")
    rank, colon, when = where.partition(":")
    if kind not in KINDS or not at or not colon:
        raise UsageError(f"--inject: expected KIND@RANK:STEP with one of {', '.join(KINDS)} (slow@RANK:SECONDS), found "
                         f"{text!r}")
    limits = Annotated[float, 0, Most(86400)] if kind == "slow" else Annotated[int, 1]
    return Fault(kind, convert(Annotated[int, 0], rank, f"--inject {text}: RANK"),
                 convert(limits, when, f"--inject {text}: {'SECONDS' if kind == 'slow' else 'STEP'}"))


class Faults:
    """Those of one rank."""

    def __init__(self, faults: list[Fault] = [], rank: int = 0) -> None:    # noqa: B006  it is not changed
        self.own = [fault for fault in faults if fault.rank == rank]
        self.delay_s = sum(fault.at for fault in self.own if fault.kind == "slow")
        self.step = 0
        self.now: list[str] = []            # what befalls this step

    def before(self, step: int) -> None:
        """The step of that number, counted from 1, or the next one that this rank takes."""
        if not self.step:                   # the first one of this run: what came before it is past
            self.own = [fault for fault in self.own if fault.at >= step]
        self.step = step
        due = [fault for fault in self.own if fault.kind not in ("slow", "corrupt") and fault.at <= step]
        self.own = [fault for fault in self.own if fault not in due]
        self.now = [fault.kind for fault in due]
        for kind in self.now:
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif kind == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif kind == "hang":
                time.sleep(ENDLESS_S)
            elif kind == "raise":
                raise RuntimeError(f"injected at step {step}")
            elif kind == "diskfull":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    @contextmanager
    def spoiling(self, x: Array, trained: int) -> Iterator[None]:
        """While a gradient at x is computed, the last of its trained parameters may be no number."""
        if "nan" not in self.now:
            yield
            return
        last = slice(trained - 1, trained)
        kept = x[last].copy()
        x[last] = np.nan
        yield
        x[last] = kept

    def saved(self, file: Path) -> None:
        """A checkpoint is complete, of which that is this rank's part, as soon as rank 0 has named it."""
        for fault in [fault for fault in self.own if fault.kind == "corrupt" and fault.at <= self.step]:
            end = time.monotonic() + NAMED_S
            while not file.exists() and time.monotonic() < end:
                time.sleep(0.01)
            if not file.exists():
                continue                    # it was not written, for lack of room: the next one, then
            self.own.remove(fault)
            with open(file, "r+b") as content:
                content.seek(file.stat().st_size // 2)
                byte = content.read(1)
                content.seek(-1, os.SEEK_CUR)
                content.write(bytes([byte[0] ^ 0xFF]))
