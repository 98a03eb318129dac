"""What makes a run save its state and stop: a signal, or the approaching end of its batch job.

Batch systems send a signal before they kill a job: the one requested, usually SIGUSR1, or SIGTERM if it is preempted or
cancelled. A terminal that is closed sends SIGHUP, and Ctrl-C SIGINT; another Ctrl-C ends the process at once.
"""

from __future__ import annotations

import math
import signal
import time
from types import FrameType

STATUS = 75                                 # EX_TEMPFAIL of sysexits.h: run me again
OF_TERMINALS = (signal.SIGINT, signal.SIGHUP)       # ignored if they were, as under nohup
SECOND_S = 1.0                              # after which another SIGINT counts: launchers pass on what ranks have, too
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, *OF_TERMINALS)


class StopRequest:
    """True after a signal or the `deadline`. Create it early: without a handler these signals kill the process."""

    def __init__(self) -> None:
        self.asked, self.interrupted = False, math.inf
        self.deadline = math.inf            # seconds since 1970
        ignored = [number for number in OF_TERMINALS if signal.getsignal(number) == signal.SIG_IGN]
        self.handlers = {number: signal.SIG_IGN if number in ignored else self._ask for number in SIGNALS}
        self.listen()

    def listen(self) -> None:
        """To be called again once MPI has started: UCX takes SIGHUP for itself, to log more."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if number == signal.SIGINT and time.monotonic() > self.interrupted + SECOND_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        elif number == signal.SIGINT:
            self.interrupted = min(self.interrupted, time.monotonic())

    def __call__(self) -> bool:
        return self.asked or time.time() >= self.deadline

    def reason(self) -> str:
        """Why, as the end of a sentence."""
        return "before the job's time limit" if time.time() >= self.deadline and not self.asked else "on request"
