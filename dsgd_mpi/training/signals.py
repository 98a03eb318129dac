"""What makes a run save its state and stop: SIGUSR1, SIGUSR2, SIGTERM, or the approaching end of its batch job.

Batch systems send a signal before they kill a job: the one requested, usually SIGUSR1, or SIGTERM if it is preempted or
cancelled.
"""

from __future__ import annotations

import math
import signal
import time
from types import FrameType

STATUS = 75                                 # EX_TEMPFAIL of sysexits.h: run me again


class StopRequest:
    """True after a signal or the `deadline`. Create it early: without a handler these signals kill the process."""

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
        return "before the job's time limit" if time.time() >= self.deadline and not self.asked else "on request"
