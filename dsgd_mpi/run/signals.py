"""SIGUSR1 and SIGUSR2 ask a run to save itself and end: what batch systems send before they kill."""

from __future__ import annotations

import signal
from types import FrameType

STATUS = 75                                 # EX_TEMPFAIL of sysexits.h: run me again


class StopRequest:
    """True once either signal has come; make it early, since they kill a process that does not expect them."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def __call__(self) -> bool:
        return self.asked
