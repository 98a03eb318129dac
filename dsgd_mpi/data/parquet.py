"""Pictures in Parquet files as Hugging Face's `datasets` writes them.

    image   struct {bytes: binary, path: string}, or binary: a picture file's content, and its name
    label   integer, the number of the class; the names are in the metadata `huggingface` of the schema, in JSON

(https://huggingface.co/docs/hub/datasets-image.) Rows can only be read a group at a time, but training images are
stored shuffled: so the pictures' bytes are first written as they are to a file for each Parquet file, beside the
shards, until these are made:

    bytes of the pictures, one after the other; their sizes and names as JSON; the length of that, 8 bytes
"""

from __future__ import annotations

import itertools
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.hdf5 import placed
from dsgd_mpi.data import sources
from dsgd_mpi.data.layouts import Found
from dsgd_mpi.data.parts import checked_labels, chosen, class_names, parts, unknown_classes
from dsgd_mpi.data.sources import Item, printable
from dsgd_mpi.errors import UsageError

IMAGES, LABELS = ("image", "img"), ("label", "labels", "fine_label")    # columns, where the metadata do not tell
ROWS = 64                                   # in memory at a time, beside the group's pages
BUFFER_BYTES = 1 << 20
LENGTH = struct.Struct("<q")
POINTER = b"version https://git-lfs"


class _Unwanted(Exception):
    """Another job has failed."""


@dataclass(frozen=True)
class File:
    """One Parquet file: what its rows' labels are, int64 (N,), as stored, and in which column the pictures are."""

    item: Item
    column: str
    labels: Array
    names: tuple[str, ...] | None


@dataclass(frozen=True)
class Files:
    """The files of a set with labels counted from 0, and which images are for testing, bool; the names of classes."""

    files: list[File]
    labels: list[Array]
    is_test: Array                          # of all files' rows
    classes: list[str]
    remarks: tuple[str, ...]

    def __len__(self) -> int:
        return sum(map(len, self.labels))

    def jobs(self, folder: Path) -> list[tuple[str, str, str, str]]:
        """For `unpack`."""
        return [(file.item.path, file.item.name, file.column, str(_unpacked(folder, i)))
                for i, file in enumerate(self.files)]

    def found(self, folder: Path) -> Found:
        """The pictures, once all files have been unpacked."""
        items = [item for i, file in enumerate(self.files) for item in _items(file.item.name, _unpacked(folder, i))]
        parts: tuple[list[Item], list[Item]] = [], []
        for item, label, part in zip(items, np.concatenate(self.labels).tolist(), self.is_test.tolist(), strict=True):
            parts[part].append(item._replace(label=label))
        train, test = parts
        return Found(train, test, self.classes, self.remarks)


def check_pyarrow(purpose: str) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UsageError(f"{purpose} needs pyarrow, which is not installed; pip install pyarrow") from None


def find(folder: Path, test_share: float | None = None, first_label: int | None = None,
         classes: Path | None = None, image: str | None = None, label: str | None = None) -> Files:
    """The Parquet files in a folder and their labels; of the pictures nothing is read. UsageError."""
    found = parts(folder, ".parquet", "Parquet files", test_share)
    files = sources.side_by_side(lambda item: _file(item, image, label), [*found.train, *found.test])
    if other := next((file for file in files if file.names != files[0].names), None):
        raise UsageError(f"{other.item.name}: expected the classes of {files[0].item.name}, found others; give the "
                         "folder of one set")
    train = len(found.train)
    for some, what in ((files[:train], "training"), (files[train:] or files, "test")):
        if not sum(len(file.labels) for file in some):
            raise UsageError(f"{some[0].item.name}: expected {what} images, found no rows; give files that have some")
    named = class_names(classes, folder) or (list(files[0].names) if files[0].names else None)
    labels, names = checked_labels([file.labels for file in files], named, first_label, f"{folder}")
    remarks = (*found.remarks, *unknown_classes(np.concatenate(labels[:train]), names))
    is_test = (chosen(np.concatenate(labels), test_share, [f"{folder}: class {name}" for name in names]) if test_share
               else np.repeat(np.arange(len(files)) >= train, [len(each) for each in labels]))
    return Files(files, labels, is_test, names, remarks)


@contextmanager
def _opened(path: str, name: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    try:
        with pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError) as error:           # OSError without a number is pyarrow's of damaged content
        if getattr(error, "errno", None):
            raise
        with open(path, "rb") as raw:
            start = raw.read(len(POINTER))
        if start == POINTER:
            raise UsageError(f"{name}: expected a Parquet file, found a pointer of Git LFS to one; fetch it by "
                             "`git lfs pull`") from None
        web = ", a web page" if start.lstrip()[:1] == b"<" else ""
        raise UsageError(f"{name}: expected a whole Parquet file, found none{web} "
                         f"({' '.join(str(error).split())[:120]}); download it again") from error


def _file(item: Item, image: str | None, label: str | None) -> File:
    import pyarrow as pa
    try:
        with _opened(item.path, item.name) as file:
            schema = file.schema_arrow
            features = _features(schema)
            image = _column(item, schema, features, image, "Image", IMAGES)
            label = _column(item, schema, features, label, "ClassLabel", LABELS)
            _check_types(item, schema, image, label)
            column = file.read(columns=[label]).column(0)
            if column.null_count:
                raise UsageError(f"{item.name}: expected a label in each row, found {column.null_count} of "
                                 f"{len(column)} without; leave out images that have no known class")
            labels = column.cast(pa.int64()).to_numpy()
    except OSError as error:
        raise UsageError(f"{item.name}: cannot be read ({error.strerror or error}); try again, or from a copy "
                         "elsewhere") from error
    names = features.get(label, {}).get("names")
    return File(item, image, labels, tuple(map(str, names)) if isinstance(names, list) else None)


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What Hugging Face's metadata say of the columns, if there are any."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        found = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: each for name, each in found.items() if isinstance(each, dict)}
    return {}


def _column(item: Item, schema: Any, features: dict[str, dict[str, Any]], given: str | None, kind: str,
            usual: Sequence[str]) -> str:
    option = "--image-column" if kind == "Image" else "--label-column"
    there = [given] if given else [name for name in schema.names if features.get(name, {}).get("_type") == kind]
    there = there if len(there) == 1 else [name for name in usual if name in (there or schema.names)][:1] or there
    if len(there) != 1 or there[0] not in schema.names:
        raise UsageError(f"{item.name}: expected a column {given or ' or '.join(usual)}, found "
                         f"{', '.join(schema.names)[:200]}; name it by {option}")
    return there[0]


def _check_types(item: Item, schema: Any, image: str, label: str) -> None:
    import pyarrow as pa
    kind = schema.field(image).type
    fields = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {"bytes": kind}
    if not (found := fields.get("bytes")) or not (pa.types.is_binary(found) or pa.types.is_large_binary(found)):
        raise UsageError(f"{item.name}: expected {image} as a struct of bytes and path, or as binary, found {kind}; "
                         "name the column that holds picture files by --image-column")
    kind = schema.field(label).type
    if not pa.types.is_integer(kind):
        way_out = (f"number the classes by dataset.class_encode_column({label!r}) of Hugging Face's datasets"
                   if pa.types.is_string(kind) or pa.types.is_large_string(kind) else
                   "name the column with the number of the class by --label-column")
        raise UsageError(f"{item.name}: expected {label} as integers, found {kind}; {way_out}")


def _unpacked(folder: Path, number: int) -> Path:
    return folder / f"unpacked-{number:05}.bin"


def unpack(job: Sequence[str], done: Callable[[int], bool]) -> None:
    """Writes a Parquet file's pictures one after the other to a file, if that is not there. UsageError, OSError."""
    source, name, column, to = job
    stat = os.stat(source)
    of = [source, stat.st_size, stat.st_mtime_ns]
    if (there := _index(Path(to))) and there["of"] == of:
        done(len(there["sizes"]))
        return
    sizes: list[int] = []
    names: list[str] = []
    try:
        with placed(to) as out, _opened(source, name) as file:
            for batch in file.iter_batches(ROWS, columns=[column]):
                for content, called in _rows(batch.column(0)):
                    if content is None and called:
                        raise UsageError(f"{name}: expected the bytes of pictures in {column}, found only the path "
                                         f"{called[:200]} in row {len(sizes)}; write it with its files embedded, as "
                                         "push_to_hub does, or after dataset.with_format('arrow').map("
                                         "datasets.table.embed_table_storage, batched=True)")
                    out.write(content or b"")
                    sizes.append(len(content or b""))
                    names.append(os.path.basename(called or ""))
                if not done(len(batch)):
                    raise _Unwanted
            index = json.dumps({"of": of, "sizes": sizes, "names": names}).encode()
            out.write(index + LENGTH.pack(len(index)))
    except _Unwanted:
        return


def _rows(column: Any) -> Iterator[tuple[bytes | None, str | None]]:
    import pyarrow as pa
    if not pa.types.is_struct(column.type):
        return zip((each.as_py() for each in column), itertools.repeat(None))
    fields = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
    paths = fields["path"] if "path" in fields else itertools.repeat(None, len(column))
    return zip((each.as_py() for each in fields["bytes"]), (each and each.as_py() for each in paths), strict=True)


def _index(path: Path) -> dict[str, Any] | None:
    """What is at the end of an unpacked file; None if it is not there, or not whole."""
    with suppress(OSError, ValueError, struct.error), open(path, "rb") as file:
        end = file.seek(-LENGTH.size, os.SEEK_END)
        length, = LENGTH.unpack(file.read())
        file.seek(end - length)
        found: dict[str, Any] = json.loads(file.read(length))
        return found if sum(found["sizes"]) == end - length else None
    return None


def _items(name: str, path: Path) -> list[Item]:
    found = _index(path)
    if found is None:
        raise UsageError(f"{path}: expected the pictures of {name}, found nothing whole; convert again")
    starts = itertools.accumulate(found["sizes"], initial=0)
    return [Item(f"{name}/{row}{f' {printable(called)}' if called else ''}", str(path), start, size)
            for row, (start, size, called) in enumerate(zip(starts, found["sizes"], found["names"], strict=False))]
