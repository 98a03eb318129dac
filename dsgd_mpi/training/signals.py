"""What asks a run to save itself and end: SIGUSR1 or SIGUSR2, SIGTERM, and the end of its batch job coming near.

Batch systems send a signal before they kill: the one asked for, as a rule SIGUSR1, or SIGTERM where a job is preempted
or cancelled.
"""

from __future__ import annotations

import math
import signal
import time
from types import FrameType

STATUS = 75                                 # EX_TEMPFAIL of sysexits.h: run me again


class StopRequest:
    """True once a signal has come or it is `deadline`; make it early: signals kill a process that expects none."""

    def __init__(self) -> None:
        self.asked = False
        self.deadline = math.inf            # seconds since 1970
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def __call__(self) -> bool:
        return self.asked or time.time() >= self.deadline

    def reason(self) -> str:
        """Why, as the end of a sentence."""
        return "in time before the job's end" if time.time() >= self.deadline and not self.asked else "as asked"
