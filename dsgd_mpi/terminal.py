"""What is printed never ends a program, whatever the locale, however full the disk, and whether anybody reads it."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

LOST = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EPIPE)


class Indifferent(io.FileIO):
    """A file in which what finds no room, or no reader any more, is lost.

    Batch systems write output to a file, often on the run's own disk; `tee` or a terminal may be gone before the run.
    """

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in LOST:
                raise
            return memoryview(data).nbytes


def print_anything() -> None:
    """Characters that the locale's encoding does not have, as in a path, are printed as \\xfc or \\u2500."""
    for name, descriptor in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        try:
            os.fstat(descriptor)
        except OSError:                     # it was closed: else the next file would get what is printed
            os.open(os.devnull, os.O_RDWR)
            mode = "r" if descriptor == 0 else "w"
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))     # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__"):
            raw = Indifferent(stream.fileno(), "w", closefd=False)
            setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, "backslashreplace",
                                                line_buffering=stream.line_buffering))
