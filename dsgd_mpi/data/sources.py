"""Where pictures come from: files in folders, and members of tar files, also of tar files within a tar file.

Nothing is unpacked: a member of an uncompressed tar file is a run of its bytes.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from dsgd_mpi.data.pictures import EXTENSIONS, Broken, Picture, picture
from dsgd_mpi.errors import UsageError

LARGEST = 1 << 24                           # bytes of a list
READERS = 16                                # of folders and of what is in packed files
Argument = TypeVar("Argument")
Result = TypeVar("Result")

class Item(NamedTuple):
    """A picture of `size` bytes from byte `offset` of a file on, with the name that the user knows it by."""

    name: str
    path: str
    offset: int
    size: int
    label: int = -1

    @property
    def stem(self) -> str:
        """The name without folders and extension."""
        return Path(self.name).stem

    def content(self) -> bytes:
        """UsageError if the file cannot be read; Broken if it ends before."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                found = file.read(self.size)
        except OSError as error:
            raise UsageError(f"{self.name}: cannot be read ({error.strerror}); mend that, and convert again: the "
                             "shards that are whole are kept") from error
        if len(found) < self.size:
            raise Broken(f"{len(found)} of {self.size} bytes")
        return found

    def picture(self, size: int, jpeg: bool) -> Picture:
        return picture(self.content(), self.name, size, jpeg)


def printable(path: Path | str) -> str:
    """A name that may be stored and shown in a line: bytes in it that are no UTF-8 become \\xff, line ends \\n."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return text if text.isprintable() else re.sub(r"[\0-\x1f\x7f-\x9f\u2028\u2029]", _escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def is_picture(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not os.path.basename(name).startswith(".")


def folders(folder: Path) -> list[Path]:
    """Subfolders, by name; hidden ones left out."""
    return sorted(path for path in _entries(folder) if path.is_dir() and not path.name.startswith("."))


def in_folder(folder: Path, fits: Callable[[str], bool] = is_picture, others: list[str] | None = None) -> list[Item]:
    """The pictures in a folder and those below it, by name; or other files whose names fit.

    The names of what does not fit, hidden files apart, are added to `others`.
    """
    found, seen = [], set()                 # a link may lead to a folder above it
    for above, below, names in os.walk(folder, onerror=_cannot, followlinks=True):
        if (real := os.path.realpath(above)) in seen:
            below[:] = []
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(above, name)
            if not fits(name):
                if others is not None and not name.startswith("."):
                    others.append(printable(path))
            elif (about := _stat(path)) and stat.S_ISREG(about.st_mode):
                found.append(Item(printable(path), path, 0, about.st_size))
    return found


def _stat(path: str) -> os.stat_result | None:
    with suppress(OSError):                 # a link to nowhere
        return os.stat(path)
    return None


def side_by_side(look: Callable[[Argument], Result], at: Iterable[Argument]) -> list[Result]:
    """`look(each)`, by more threads than there are cores: most of the time the file system is waited for."""
    with ThreadPoolExecutor(READERS, "look") as pool:
        return list(pool.map(look, at))


def loose(folder: Path) -> list[str]:
    """The pictures and tar files right in a folder, by name."""
    return [printable(path) for path in sorted(_entries(folder))
            if (is_picture(path.name) or path.suffix == ".tar") and path.is_file()]


def tars(folder: Path) -> list[Path]:
    return [path for path in sorted(_entries(folder)) if path.suffix == ".tar" and path.is_file()]


def members(item: Item) -> Iterator[Item]:
    """All files in a tar file, in its order; it may be a member of another. UsageError."""
    end = item.offset + item.size
    try:
        with open(item.path, "rb") as file:
            file.seek(item.offset)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while member := tar.next():
                    tar.members = []        # type: ignore[attr-defined]  # else it keeps all of them
                    if member.offset_data + member.size > end:
                        raise tarfile.ReadError("unexpected end of data")
                    if member.isreg():
                        yield Item(f"{item.name}/{printable(member.name)}", item.path, member.offset_data, member.size)
                file.seek(tar.offset)       # blocks of zeros: else a file cut between members would pass for a smaller
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("no blocks of zeros at its end")
    except (tarfile.TarError, EOFError) as error:
        raise UsageError(f"{item.name}: expected a whole tar file, not compressed, found none ({error}); download it "
                         "again, or unpack it if it is compressed") from error
    except OSError as error:
        raise UsageError(f"{item.name}: cannot be read ({error.strerror or error}); try again, or from a copy "
                         "elsewhere") from error


def of_file(path: Path) -> Item:
    return Item(printable(path), str(path), 0, path.stat().st_size)


def read(path: Path) -> bytes:
    """All of a list. UsageError."""
    try:
        with open(path, "rb") as file:
            return file.read(LARGEST)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give a file that can") from error


def text(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: expected a list in UTF-8, found other bytes; download it again") from None


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        return _cannot(error)


def _cannot(error: OSError) -> list[Path]:
    raise UsageError(f"{error.filename}: cannot be read ({error.strerror}); try chmod +rx") from error
