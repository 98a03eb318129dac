"""Copies of data sets in a folder of a node, which the processes there make together and share.

    FOLDER/dsgd_mpi-UID-NAME-DIGEST     digest of the index's path, size and date
      in-use, kept                      who uses it, and whether it stays when nobody does: see `unused`
      NAME.h5, NAME/*.h5                the files as they are in the set
      NAME.h5.sha256                    of the index, or of a set in one file

A file gets its name once all of it was written and read back: a shard as what the index has the SHA-256 of, any other
as what was read. Of a copy that is there already each file is read, so that what is whole is taken and nothing else is.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import secrets
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dsgd_mpi.arrays.hdf5 import BLOCK_BYTES
from dsgd_mpi.data import unused
from dsgd_mpi.data.formats import Dataset
from dsgd_mpi.data.storage import reading
from dsgd_mpi.errors import UsageError

MEMORY = Path("/dev/shm")                   # a file system of memory
NAME_LENGTH = 64                            # of a set, in the name of its folder: a file system has 255
MB = 10**6
Pause = Callable[[int], object]             # called between two blocks with the number of bytes done; may raise


class Place:
    """The `folder` of a set's copy below `root`, which this process uses from `enter` until `leave`.

    `asked`: how the user said where, as messages begin; `way_out`: what helps where there is no room for it.
    """

    def __init__(self, root: Path, asked: str, way_out: str) -> None:
        self.root, self.asked, self.way_out = root, asked, way_out
        self.prefix, self.folder = f"dsgd_mpi-{os.getuid()}-", root
        self._lock = -1
        self._remover: subprocess.Popen[bytes] | None = None

    def enter(self, dataset: Dataset) -> None:
        """Makes the folder or finds it. UsageError if that is not possible, or not safe."""
        with reading(dataset.path):
            about = dataset.path.stat()
        text = f"{os.path.realpath(dataset.path)} {about.st_size} {about.st_mtime_ns}"
        digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]
        self.folder = self.root / f"{self.prefix}{dataset.path.stem[:NAME_LENGTH]}-{digest}"
        with self._writing():
            self.root.mkdir(exist_ok=True)
            while self._lock < 0:           # until no other process removes it at this moment
                with suppress(FileExistsError):
                    self.folder.mkdir(mode=0o700)
                with suppress(FileNotFoundError):
                    about = self.folder.lstat()
                    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
                        raise UsageError(f"{self.asked}: expected {self.folder} to be a folder of yours, found "
                                         "another's, or no folder; remove it, or give another folder")
                    found = unused.locked(self.folder, fcntl.LOCK_SH)
                    self._lock = -1 if found is None else found

    def tidy(self) -> None:
        """Removes what killed runs have left here. From now on a child waits for the end of all who use the folder."""
        for each in self.root.glob(f"{self.prefix}*"):
            if each != self.folder:
                unused.remove_unused(each)
        command = [sys.executable, "-I", "-S", unused.__file__, str(self.folder)]
        with suppress(OSError):             # not every MPI lets its ranks start programs
            self._remover = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                             stderr=subprocess.DEVNULL, start_new_session=True)

    def check_room(self, needed: int, name: str) -> None:
        """UsageError if so many bytes have no room there."""
        with self._writing():
            found = room(self.root)
        if needed > found:
            raise UsageError(f"{self.asked}: expected {needed / MB:,.1f} MB free on {platform.node()} for the copy of "
                             f"{name}, found {found / MB:,.1f} MB; {self.way_out}")

    def keep(self) -> None:
        """It stays when nobody uses it any more."""
        with self._writing():
            (self.folder / unused.KEPT).touch()

    def leave(self) -> None:
        """Removes the copy if no process uses it any more and it is not kept."""
        if self._remover:
            self._remover.kill()
            self._remover.wait()
        if self._lock >= 0:
            os.close(self._lock)
            unused.remove_unused(self.folder)
        self._remover, self._lock = None, -1

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            way_out = self.way_out if full else "give a folder on a disk of the nodes, where you may write"
            raise UsageError(f"{self.asked}: expected a folder that can be written to on each node, found on "
                             f"{platform.node()}: {error.strerror}; {way_out}") from None


class Copies:
    """The files of a set and their copies in a place, by number. UsageError says what is wrong with either."""

    def __init__(self, dataset: Dataset, place: Place) -> None:
        self.dataset, self.place = dataset, place
        self.files = dataset.files()
        if elsewhere := dataset.in_others():
            raise UsageError(f"{place.asked}: expected a set whose images are in its own file or in shards, found "
                             f"{elsewhere} of {dataset.path} in other files; copy it into one file, or leave out the "
                             "option")
        self._sizes: dict[int, int] = {}    # each rank asks a file server for those of its own files alone
        here = dataset.path.parent
        for path in self.files:
            if not path.is_relative_to(here) or ".." in path.relative_to(here).parts:
                raise UsageError(f"{place.asked}: expected the shards of {dataset.path} in a folder beside it, found "
                                 f"{path}; move it there, or leave out the option")
        self.targets = [place.folder / path.relative_to(here) for path in self.files]
        self.path = self.targets[0]         # of the copy

    def size(self, number: int) -> int:
        if number not in self._sizes:
            with reading(self.files[number]):
                self._sizes[number] = self.files[number].stat().st_size
        return self._sizes[number]

    def total(self) -> int:
        """Bytes of the set."""
        return sum(map(self.size, range(len(self.files))))

    def missing(self) -> int:
        """Bytes for which room is needed."""
        return sum(self.size(number) for number, target in enumerate(self.targets)
                   if not target.is_file() or target.stat().st_size != self.size(number))

    def make(self, number: int, pause: Pause) -> None:
        """A whole copy of that file, made now or there already."""
        if self._whole(number, pause):
            pause(self.size(number))
            return
        source, target = self.files[number], self.targets[number]
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        try:
            with self.place._writing():
                target.parent.mkdir(parents=True, exist_ok=True)
                seen = None if number else hashlib.sha256()     # the index has those of its shards
                copy(source, part, pause, seen)
            digest = seen.hexdigest() if seen else ""
            self._check(number, part, digest, pause)
            with self.place._writing():
                os.replace(part, target)
                if number == 0:
                    _noted(target).write_text(f"{digest}  {target.name}\n", "utf-8")
        finally:
            with suppress(OSError):         # it is gone if all went well
                part.unlink()

    def _whole(self, number: int, pause: Pause) -> bool:
        """Whether there is a copy of a file, and it is what it should be."""
        target = self.targets[number]
        try:
            if target.stat().st_size != self.size(number):
                return False
            self._check(number, target, "" if number else _noted(target).read_text("utf-8")[:64], pause)
        except (UsageError, OSError, ValueError):
            return False
        return True

    def _check(self, number: int, path: Path, digest: str, pause: Pause) -> None:
        """UsageError if a copy is not what it should be."""
        if number == 0 and digest_of(path, pause) != digest:
            raise UsageError(f"{self.place.asked}: expected the copy of {self.files[0]} on {platform.node()} to read "
                             "as it was written, found other bytes; give a folder on another disk")
        if number:
            index = self.dataset.path
            try:
                self.dataset.check_shard(number - 1, path, lambda: pause(0))
            except UsageError:
                raise UsageError(f"{self.place.asked}: expected the copy of {self.files[number]} on {platform.node()} "
                                 f"to hold what {index} has the SHA-256 of, found something else; `python -m dsgd_mpi "
                                 f"data verify {index}` tells whether the file itself is damaged") from None


def _noted(path: Path) -> Path:
    """The file beside a copy that says what its SHA-256 is."""
    return path.with_name(f"{path.name}.sha256")


def copy(source: Path, target: Path, pause: Pause, digest: Any = None) -> None:
    """A new file of the same bytes, of which `digest` hears. OSError of the target; UsageError of the source."""
    with reading(source):
        file = open(source, "rb", buffering=0)          # noqa: SIM115  # closed below: errors of either are told apart
    with file, open(target, "xb", buffering=0) as out:
        while True:
            with reading(source):
                block = file.read(BLOCK_BYTES)
            if not block:
                return
            if digest:
                digest.update(block)
            left = memoryview(block)
            while left:
                left = left[out.write(left):]
            pause(len(block))


def digest_of(path: Path, pause: Pause) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with reading(path), open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            pause(0)
    return digest.hexdigest()


def room(folder: Path) -> int:
    """Bytes that a user may write there; of a file system of memory no more than there is memory."""
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    return min(free, free_memory()) if folder.resolve().is_relative_to(MEMORY) else free


def free_memory(meminfo: Path = Path("/proc/meminfo"), groups: Path = Path("/proc/self/cgroup"),
                root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this process may still take: of the machine, and of the control groups that it is in."""
    lines = dict(line.split(":") for line in meminfo.read_text("ascii").splitlines())
    found = [int(lines["MemAvailable"].split()[0]) << 10]
    for line in groups.read_text("utf-8", errors="replace").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        top, most, used, total = ((root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_") if kinds
                                  else (root, "memory.max", "memory.current", ""))       # version 1, version 2
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            # without a limit, or of a host whose groups a container does not see
            with suppress(OSError, ValueError, KeyError):
                counts = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
                files = sum(int(counts[f"{total}{kind}_file"]) for kind in ("active", "inactive"))      # given up
                found.append(int((folder / most).read_text("utf-8")) - int((folder / used).read_text("utf-8")) + files)
    return max(0, min(found))
