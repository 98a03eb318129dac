"""HDF5 files that exist whole or not at all: written next to the target, read back, then renamed onto it.

HDF5 itself does not guarantee that: a writer that is killed leaves a file that cannot be opened, and a process that
runs out of disk space when it closes one crashes at exit (HDF5 2.0). So the file is made in memory and written by us.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import h5py
import numpy as np

from dsgd_mpi.arrays.flat import Array

BLOCK_BYTES = 4 << 20                       # read at a time: little memory, and few system calls
ABANDONED_S = 3600                          # a live writer touches its file far more often than that
Result = TypeVar("Result")


@contextmanager
def atomic(path: str | Path, verify: Callable[[h5py.File], None] | None = None) -> Iterator[h5py.File]:
    """An empty h5py.File to write to, which becomes `path` (or replaces it) when the block ends without an error.

    It takes as much memory as the file is large. `verify(file)` gets the file as read back from the disk and raises if
    anything is wrong; without one, every dataset is read once, which finds damage in those with `fletcher32=True`.
    Whatever goes wrong, `path` is unchanged and nothing half-written is left; only a killed process leaves a hidden
    file, which a later write to `path` removes. An OSError (disk full, no permission) names `path`. A symbolic link
    is followed.
    """
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        yield file

    def read_back(part: Path) -> None:
        with h5py.File(part, "r", locking=False) as file:
            (verify or read_everything)(file)
    place(path, memory.getbuffer(), read_back)


def place(path: str | Path, content: Any, verify: Callable[[Path], Result]) -> Result:
    """Writes a file of these bytes as `atomic` does; what `verify(part)` finds in what was written. OSError."""
    with _beside(path) as part:
        _write(part, content)
        found = verify(part)
    return found


@contextmanager
def placed(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to in parts, which becomes `path` as that of `atomic` does, but is not read back. OSError."""
    with _beside(path) as part, open(part, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _beside(path: str | Path) -> Iterator[Path]:
    """The name of a file to be written, which then takes the place of `path`, or is gone after an error."""
    path = Path(os.path.realpath(path))
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        _remove_abandoned(path)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"{path} was not written and is unchanged: {error.strerror or error}") from error
    finally:
        with suppress(OSError):             # it is gone if all went well
            part.unlink()
    with suppress(OSError):                 # not every file system does this for a folder
        _fsync(path.parent)                 # the rename itself is in it


def digest_if_same(path: Path, content: Array) -> str:
    """The SHA-256 of a file that holds these bytes, uint8 (size,); OSError if it does not."""
    found, start = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            found.update(block)
            end = start + len(block)
            if not np.array_equal(np.frombuffer(block, np.uint8), content[start:end]):
                raise OSError(f"it reads otherwise than it was written, after byte {start}")
            start = end
    if start != len(content):
        raise OSError(f"{start} of {len(content)} bytes were written")
    return found.hexdigest()


class Memory(io.RawIOBase):
    """A file in memory for h5py to write to; `content()` is all of it, until the next one is begun by `clear`.

    Its memory stays with it, and is NumPy's, in large pages: 94 MB take 14 ms where io.BytesIO takes 55, or several
    times that where the system has no page at hand.
    """

    def __init__(self) -> None:
        self.bytes, self.at, self.size = np.empty(0, np.uint8), 0, 0

    def clear(self, room: int = 0) -> None:
        """An empty file, with room for that many bytes, to begin with."""
        self.at = self.size = 0
        self._make_room(room)

    def content(self) -> Array:
        return self.bytes[: self.size]

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        found = self.content()[self.at:][: len(buffer)]
        buffer[: len(found)] = found.data
        self.at += len(found)
        return len(found)

    def write(self, values: Any) -> int:
        end = self.at + len(values)
        if self.at > self.size:
            self.truncate(self.at)
        self._make_room(end)
        self.bytes[self.at:end] = np.frombuffer(values, np.uint8)
        self.at, self.size = end, max(end, self.size)
        return len(values)

    def truncate(self, size: int | None = None) -> int:
        size = self.at if size is None else size
        self._make_room(size)
        self.bytes[self.size:size] = 0
        self.size = size
        return size

    def _make_room(self, end: int) -> None:
        if end > len(self.bytes):
            larger = np.empty(max(end, 2 * len(self.bytes)), np.uint8)
            larger[: self.size] = self.content()
            self.bytes = larger


def read_everything(file: h5py.File) -> None:
    """Reads every dataset once; OSError if a checksum (fletcher32) does not match or the file is truncated."""
    _read(file, lambda name, values: None)


def read_finite(file: h5py.File) -> None:
    """`read_everything`; OSError too if a dataset holds a number that is not finite."""
    def check(name: str, values: Any) -> None:
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise OSError(f"{name} holds numbers that are not finite")

    _read(file, check)


def _read(file: h5py.File, check: Callable[[str, Any], None]) -> None:
    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            for rows in blocks(item):
                check(name, item[rows])

    file.visititems(visit)


def blocks(dataset: Any) -> Iterator[Any]:
    """Slices along the first axis, whole chunks each, that cover a dataset or array in about `BLOCK_BYTES` each."""
    if dataset.ndim == 0 or dataset.size == 0:
        yield ()
        return
    row_bytes = max(1, dataset.dtype.itemsize * dataset.size // len(dataset))
    chunks = getattr(dataset, "chunks", None)               # an array has none
    chunk = chunks[0] if chunks else 1
    rows = max(1, BLOCK_BYTES // (row_bytes * chunk)) * chunk
    for start in range(0, len(dataset), rows):
        yield slice(start, min(start + rows, len(dataset)))


def _remove_abandoned(path: Path) -> None:
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError):             # another process may be removing it
            if time.time() - part.stat().st_mtime > ABANDONED_S:
                part.unlink()


def _write(path: Path, content: Any) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
