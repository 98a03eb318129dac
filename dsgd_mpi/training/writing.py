"""A checkpoint that a thread of each rank writes while the run goes on; the threads meet in files, not in messages.

Each writes the file of its rank, then a note of that file's SHA-256. Rank 0's looks for the notes of all, and makes the
checkpoint whole as soon as it has seen them. A note that a network file system shows late makes it whole later: where
the ranks meet for the next checkpoint, or at the end, rank 0 is told what the others have written, by a message.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.training import rankfile

LOOK_S = 0.1                                # between rank 0's looks at the folder, at first
RARELY_S = 2.0                              # and later
NOTE = ".sha256"                            # rank0.h5.sha256
Sums = list[str | None]                     # of all files, in the order of ranks; None of one that was not written
log = logging.getLogger("dsgd_mpi")


class Writing:
    """One checkpoint from the moment that its state was copied. `part`: the folder that it is written to.

    `content`: the image of this rank's file; None if it writes none. `names`: of all files, in the order of ranks, own
    being `names[own]`. `conclude(sums)`, on rank 0, is called in the thread once it is known what was written.
    """

    def __init__(self, step: int, part: Path, content: Array | None, names: list[str], own: int,
                 conclude: Callable[[Sums], None] | None) -> None:
        self.step, self.part, self.content, self.names, self.own = step, part, content, names, own
        self.conclude = conclude
        self.sum: str | None = None         # SHA-256 of this rank's file, once it is written
        self.error: BaseException | None = None
        self.told: SimpleQueue[Sums] = SimpleQueue()
        self.written = threading.Event()    # this rank's file, or it never will be
        self.thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def over(self) -> bool:
        """Whether nothing of it is left to do on this rank."""
        return not self.thread.is_alive()

    def _run(self) -> None:
        try:
            self._write()
            self.written.set()
            if self.conclude:
                self.conclude(self._all())
        except BaseException as error:      # raised again where the run waits for this thread
            self.error = error
        finally:
            self.written.set()

    def _write(self) -> None:
        content, self.content = self.content, None
        if content is None:
            return
        name = self.names[self.own]
        try:
            self.sum = rankfile.write(self.part / name, content)
        except OSError as error:
            log.warning("no checkpoint at step %d: %s; the run continues", self.step, error)
            return
        if len(self.names) > 1:
            with suppress(OSError):         # rank 0 is told later
                (self.part / f"{name}{NOTE}").write_text(f"{self.sum}\n", encoding="ascii")

    def _all(self) -> Sums:
        """On rank 0: the digests of all files, from their notes or as it is told."""
        sums: Sums = [None] * len(self.names)
        sums[self.own] = self.sum
        pause_s = LOOK_S
        while len(sums) > 1 and not all(sums):
            with suppress(Empty):
                return self.told.get(timeout=pause_s)
            pause_s = min(RARELY_S, 1.5 * pause_s)
            sums = [found or noted(self.part / f"{name}{NOTE}") for found, name in zip(sums, self.names, strict=True)]
        return sums


def noted(path: Path) -> str | None:
    """The SHA-256 that is noted there; None if it is not there yet, or not all of it."""
    with suppress(OSError, ValueError):
        if found := re.fullmatch(r"([0-9a-f]{64})\n", path.read_text(encoding="ascii")):
            return found[1]
    return None
