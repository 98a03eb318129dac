"""What is printed never ends a program, whatever the locale, and however full the disk that the output goes to."""

from __future__ import annotations

import errno
import io
import sys
from typing import Any

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE)


class Indifferent(io.FileIO):
    """A file in which what finds no room is lost: batch systems write output to a file, often on the run's own disk."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            return memoryview(data).nbytes


def print_anything() -> None:
    """Characters that the locale's encoding does not have, as in a path, are printed as \\xfc or \\u2500."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__"):
            raw = Indifferent(stream.fileno(), "w", closefd=False)
            setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, "backslashreplace",
                                                line_buffering=stream.line_buffering))
