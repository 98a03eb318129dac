"""Reads a rank's images window by window (`shuffle`), in a thread of its own: the next while those of one are used.

So each window is read in the order in which it is stored, and at most two are in memory, or as many as the batches that
are being made take images from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from threading import Condition, Thread

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.data.formats import Split

WINDOWS = 2                                 # read before their time


class Ahead:
    """`windows` gives for each: the number of images that all ranks have drawn when it ends, and this rank's, int64.

    The thread runs until `end()` or the end of the process.
    """

    def __init__(self, split: Split, windows: Iterator[tuple[int, Array]]) -> None:
        self.split, self.windows = split, windows
        self.read: deque[tuple[int, Array]] = deque()
        self.wanted = self.reached = 0      # in images that all ranks have drawn
        self.error: BaseException | None = None
        self.stopped, self.changed = False, Condition()
        self.thread = Thread(target=self._work, name="images", daemon=True)
        self.thread.start()

    def wait(self, drawn: int) -> None:
        """Until all that is drawn before then is in memory; raises what the thread has failed by."""
        with self.changed:
            self.wanted = max(drawn, self.wanted)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.reached >= drawn or self.error or self.stopped)
            if self.error:
                raise self.error

    def forget(self, drawn: int) -> None:
        """What was drawn before then: its batches are made."""
        with self.changed:
            while self.read and self.read[0][0] <= drawn:
                self.split.forget(self.read.popleft()[1])
            self.changed.notify_all()

    def end(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def _work(self) -> None:
        try:
            for end, images in self.windows:
                with self.changed:
                    self.changed.wait_for(lambda: self.stopped or self.reached < self.wanted
                                          or len(self.read) < WINDOWS)
                    if self.stopped:
                        break
                self.split.keep(images)
                with self.changed:
                    self.read.append((end, images))
                    self.reached = end
                    self.changed.notify_all()
        except BaseException as error:      # who waits for the images must be told
            with self.changed:
                self.error = error
                self.changed.notify_all()
        for _, images in self.read:
            self.split.forget(images)
