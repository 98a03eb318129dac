"""Reports where this process hangs or dies: while MPI hangs, no Python signal handler and no thread would run."""

from __future__ import annotations

import os
import select
import signal
import sys
from types import TracebackType

DONE = "done"                               # no stage has this name


class HangGuard:
    """A second process, forked before MPI starts, that kills this one if it reports no new stage for too long.

    Which stage it was is printed, with `told`, if this rank is `talking`. It is printed as well where MPI ends this
    process, as it does when it cannot start, unless the launcher has stopped listening by then.
    """

    def __init__(self, told: str, talking: bool) -> None:
        reader, self.writer = os.pipe()
        sys.stdout.flush()
        if os.fork():
            os.close(reader)
            return
        os.close(self.writer)
        try:
            os.setsid()                     # a launcher that kills the ranks leaves this process alone
            watch(reader, told, talking)
        finally:
            os._exit(0)                     # the parent's cleanup is not for this process to do

    def stage(self, name: str, limit_s: float) -> None:
        """From now on, it is `name` that hangs if it takes longer than `limit_s`."""
        os.write(self.writer, f"{limit_s}\t{name}\n".encode())

    def __enter__(self) -> HangGuard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stage(DONE, 0)
        os.close(self.writer)


def watch(reader: int, told: str, talking: bool) -> None:
    parent, stage, limit_s = os.getppid(), "the start", None
    while select.select([reader], [], [], limit_s)[0]:
        news = os.read(reader, 10_000).decode().splitlines()
        if not news:
            say(f"this rank was killed in: {stage}. {told}", talking)
            return
        seconds, _, stage = news[-1].partition("\t")
        limit_s = float(seconds)
        if stage == DONE:
            return
    say(f"hung for {limit_s:g} s in: {stage}. {told}", talking)
    os.kill(parent, signal.SIGKILL)


def say(text: str, talking: bool) -> None:
    if talking:
        os.write(2, f"Error: {text}\n".encode())
