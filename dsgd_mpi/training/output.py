"""Files of the run folder that never end a run: what a disk does not take now waits in memory until it does.

A disk may be full, a quota used up, a file server away for a while. That is said once, and once more at the end about
what was never written.
"""

from __future__ import annotations

import io
import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path

from dsgd_mpi.files import regular

MOST_BYTES = 16 << 20                       # that wait for one file: days of metrics.jsonl
log = logging.getLogger("dsgd_mpi")


class Lines:
    """A file that grows by lines. Of one that was written in part the rest follows, so that no line is ever torn."""

    def __init__(self, path: Path) -> None:
        self.path, self.waiting, self.lost = path, bytearray(), 0
        self.file: io.FileIO | None = None  # open during the whole run: a file server would make each close wait
        self.refused: OSError | None = None

    def add(self, text: str) -> None:
        """Whole lines. Beyond `MOST_BYTES` that wait they are counted and forgotten."""
        if len(self.waiting) > MOST_BYTES:
            self.lost += text.count("\n")
        else:
            self.waiting += text.encode()
        self.write()

    def write(self) -> None:
        try:
            self.file = self.file or io.FileIO(self.path, "a", opener=regular)
            while self.waiting:
                del self.waiting[: self.file.write(self.waiting)]
            self.refused = None
        except OSError as error:
            self.refused = error
            self._drop()                    # it may be stale: opened anew next time

    def close(self) -> None:
        """What was written reaches the disk: some file servers find only now that there is no room."""
        try:
            self.write()
            if self.file:
                os.fsync(self.file.fileno())
        except OSError as error:
            self.refused = error
        self._drop()

    def missing(self) -> str:
        """What was not written."""
        lines = self.lost + self.waiting.count(b"\n")
        if lines:
            return f"{lines} line{'s' if lines > 1 else ''}"
        return "some of it" if self.refused else ""

    def _drop(self) -> None:
        file, self.file = self.file, None
        with suppress(OSError):
            if file:
                file.close()


class Whole:
    """A file that is written in one go: complete, or as it was before."""

    def __init__(self, path: Path) -> None:
        self.path, self.text = path, ""
        self.refused: OSError | None = None

    def write(self) -> None:
        try:
            if self.text:
                write_whole(self.path, self.text)
            self.text, self.refused = "", None
        except OSError as error:
            self.refused = error

    close = write

    def missing(self) -> str:
        return "all of it" if self.text else ""


class Output:
    """The files of one run by their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Lines | Whole] = {}
        self.said: set[str] = set()

    def add(self, name: str, text: str) -> None:
        """Lines to the end of a file."""
        file = self.files.setdefault(name, Lines(self.folder / name))
        assert isinstance(file, Lines)
        file.add(text)
        self.after(file)

    def put(self, name: str, text: str) -> None:
        """A whole file."""
        file = self.files.setdefault(name, Whole(self.folder / name))
        assert isinstance(file, Whole)
        file.text = text
        file.write()
        self.after(file)

    def after(self, written: Lines | Whole) -> None:
        """Once one file could be written, so may those that wait; once one could not, that is said."""
        if written.refused is None:
            for file in self.files.values():
                if file.refused:
                    file.write()
        elif written.path.name not in self.said:
            self.said.add(written.path.name)
            log.warning("%s cannot be written (%s): its content is kept in memory and tried again; the run continues",
                        written.path, written.refused.strerror)

    def close(self) -> None:
        """A last attempt. What is missing now is said."""
        for file in self.files.values():
            file.close()
            if missing := file.missing():
                why = file.refused.strerror if file.refused else f"more than {MOST_BYTES >> 20} MiB waited"
                log.warning("%s was not written: %s missing (%s)", file.path, missing, why)


def write_whole(path: Path, text: str) -> None:
    """The complete file, or as it was before; OSError."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())         # a file server may find only now that there is no room
        part.replace(path)
    finally:
        with suppress(OSError):             # it is gone if all went well
            part.unlink()
