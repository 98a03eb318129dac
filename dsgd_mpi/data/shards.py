"""Images in many files behind one small index: a process opens what it reads, and reads what lies together at once.

    NAME.h5                     attributes mean, std, source, licence as of a set in one file; kind; image: H, W, C
      classes                   names
      train/labels, ...         integers (N,)
      train/shards/file         names of the shards, relative to the folder of NAME.h5: NAME/train-00000.h5
      train/shards/images       how many images each holds, int64
      train/shards/sha256       of what it holds: see `Digest`
    NAME/train-00000.h5         kind "images": images uint8 (n, H, W, C), contiguous
                                kind "jpeg": jpeg uint8 (bytes,), offsets int64 (n + 1,), shape int64 (n, 2)

Image i of a JPEG shard is jpeg[offsets[i]:offsets[i + 1]], of shape[i] = height, width; it is decoded when read.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.hdf5 import blocks
from dsgd_mpi.data import pictures
from dsgd_mpi.data.storage import reading
from dsgd_mpi.errors import UsageError

KINDS = ("images", "jpeg")
MOST_OPEN = 24                              # shards of a part at a time: a process may be allowed only 64 files
DECODED_BYTES = 16 << 20                    # of JPEG images decoded at a time where all are read


class Digest:
    """The SHA-256 of what a shard holds: its pixels, or jpeg and then offsets; and then its labels as little int64."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()

    def add(self, values: Array) -> None:
        self._sum.update(np.ascontiguousarray(values, "<i8" if values.dtype.kind == "i" else None).data)

    def text(self) -> str:
        return self._sum.hexdigest()


class _Open(NamedTuple):
    path: Path
    file: h5py.File
    data: h5py.Dataset                      # images or jpeg
    offsets: Array                          # of jpeg; else empty


class Shards:
    """The images of one part, `len` of them, each uint8 `image` (H, W, C), as if they were one array (N, H, W, C).

    Opens shards when something of them is read, at most `MOST_OPEN` at a time, and may be used by several threads.
    Whatever is wrong with a shard is a UsageError that names it.
    """

    ndim, dtype, chunks = 4, np.dtype(np.uint8), None

    def __init__(self, index: h5py.File, part: str, path: Path) -> None:
        self.path, self.part, self.name = path, part, f"/{part}/images"
        self.names, counts, self.sums = _shards(index, part, path)
        self.image, self.jpeg = _image(index, path), index.attrs["kind"] == "jpeg"
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.shape = (int(self.starts[-1]), *self.image)
        self.size = int(np.prod(self.shape))
        self._labels = index[f"{part}/labels"]
        self.kept: dict[int, memoryview] = {}               # JPEG images by their index: see `Split.keep`
        self._open: OrderedDict[int, _Open] = OrderedDict()
        self._lock = threading.Lock()
        if self.jpeg:
            pictures.check_decoder(path)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice) -> Array:
        """One image or a run of them, as of an array."""
        if not isinstance(rows, slice):
            rows = range(len(self))[rows]
            return self[rows:rows + 1][0]
        indices = np.arange(len(self))[rows]
        out = np.empty((len(indices), *self.image), np.uint8)
        self.read(indices, out)
        return out

    def read(self, indices: Array, out: Array) -> None:
        """Copies the images at `indices`, integers (B,), to `out`, uint8 (B, H, W, C) in C order.

        JPEG images are decoded and made H x W as `pictures.fitted` does it.
        """
        if self.jpeg:
            for place, content in enumerate(self.encoded(indices)):
                with self.decoding(indices[place]):
                    out[place] = pictures.decoded(content, self.image[0])
            return
        with self._lock:
            for shard, places in self._by_shard(indices):
                opened = self._opened(shard)
                with reading(opened.path, "images"):
                    read_runs(opened.data, indices[places] - self.starts[shard], out, places)
                    check_as_long(opened.file)

    def decoding(self, index: int) -> AbstractContextManager[None]:
        """Whatever is raised inside is a UsageError that names the image."""
        return reading(self.path, f"{self.part} image {index}")

    def announce(self, indices: Array) -> None:
        """Asks the system to read the images at `indices`, integers (B,), all at once, since they are needed soon."""
        with self._lock:
            for shard, places in self._by_shard(indices):
                opened, local = self._opened(shard), indices[places] - self.starts[shard]
                offsets = opened.offsets if self.jpeg else np.arange(self._count(shard) + 1) * math.prod(self.image)
                announce(opened.data, [(int(offsets[local[start]]), int(offsets[local[stop - 1] + 1]))
                                       for start, stop in pairwise(_bounds(local, np.arange(len(local))))])

    def encoded(self, indices: Array) -> list[memoryview]:
        """The bytes of the JPEG images at `indices`, integers (B,), in that order."""
        if self.kept:
            kept = [self.kept.get(index) for index in indices.tolist()]
            missing = [place for place, content in enumerate(kept) if content is None]
            others = dict(zip(missing, self._encoded(indices[missing]), strict=True)) if missing else {}
            return [others[place] if content is None else content for place, content in enumerate(kept)]
        return self._encoded(indices)

    def _encoded(self, indices: Array) -> list[memoryview]:
        found: list[memoryview] = [memoryview(b"")] * len(indices)
        with self._lock:
            for shard, places in self._by_shard(indices):
                opened = self._opened(shard)
                local = indices[places] - self.starts[shard]
                for start, stop in pairwise(_bounds(local, np.arange(len(local)))):
                    offsets = opened.offsets[local[start]:local[stop - 1] + 2]
                    run = np.empty(offsets[-1] - offsets[0], np.uint8)
                    with reading(opened.path, "jpeg"):
                        opened.data.read_direct(run, np.s_[int(offsets[0]):int(offsets[-1])])
                        check_as_long(opened.file)
                    for place, (a, b) in zip(places[start:stop], pairwise(offsets - offsets[0]), strict=True):
                        found[place] = run.data[a:b]
        return found

    def _by_shard(self, indices: Array) -> Iterator[tuple[int, Array]]:
        """Each shard that has some of these images, and the places in `indices`, in the order of the images there."""
        order = np.argsort(indices, kind="stable")
        shards = np.searchsorted(self.starts, indices[order], side="right") - 1
        for start, stop in pairwise([*np.flatnonzero(np.diff(shards, prepend=-1)), len(order)]):
            yield int(shards[start]), order[start:stop]

    def _opened(self, shard: int) -> _Open:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        while len(self._open) >= MOST_OPEN:
            self._open.popitem(last=False)[1].file.close()
        found = self._open[shard] = self._checked(shard)
        return found

    def file_of(self, shard: int) -> Path:
        return self.path.parent / self.names[shard]

    def _checked(self, shard: int, path: Path | None = None) -> _Open:
        """Opens a shard, or a copy of it at `path`, and compares what it says of itself with the index."""
        path, kind = path or self.file_of(shard), KINDS[self.jpeg]
        if not path.is_file():
            raise UsageError(f"{path}: expected the images {self.starts[shard]} to {self.starts[shard + 1] - 1} of "
                             f"{self.path}, found no file; put it back, the shards move together with their index")
        with reading(path):
            # readers need no locks, and on some cluster file systems they fail or hang
            file = h5py.File(path, "r", locking=False)
            try:
                data, offsets, count = file.get(kind), np.empty(0, np.int64), self._count(shard)
                expected: tuple[int, ...] = (count, *self.image)
                if self.jpeg and isinstance(data, h5py.Dataset):
                    offsets, expected = file["offsets"][()], data.shape
                    ends = offsets[[0, -1]].tolist()
                    if len(offsets) != count + 1 or ends != [0, len(data)] or np.diff(offsets).min() < 0:
                        raise UsageError(f"{path}: expected {count + 1} offsets from 0 to {len(data)}, found "
                                         f"{len(offsets)} others; {self._again}")
                if not isinstance(data, h5py.Dataset) or data.shape != expected or data.dtype != np.uint8:
                    shown = f"{data.dtype} {data.shape}" if isinstance(data, h5py.Dataset) else "none"
                    raise UsageError(f"{path}: expected {kind} as uint8 {expected}, found {shown}; {self._again}")
                if file.attrs.get("sha256") != self.sums[shard]:
                    raise UsageError(f"{path}: expected the shard that {self.path} names, found one of another "
                                     f"conversion; {self._again}")
            except BaseException:
                file.close()
                raise
        return _Open(path, file, data, offsets)

    def _count(self, shard: int) -> int:
        return int(self.starts[shard + 1] - self.starts[shard])

    @property
    def _again(self) -> str:
        return f"remove it and {self.path.name}, and convert again, which keeps all other shards"

    def check_stored(self, thorough: bool) -> None:
        """That the shards are there; unless `thorough`, only the first and the last are opened."""
        for shard in range(len(self.names)):
            if thorough or shard in (0, len(self.names) - 1):
                with self._lock:
                    self._opened(shard)
            elif not self.file_of(shard).is_file():
                self._checked(shard)

    def rows(self) -> Iterator[Array]:
        """All images, some at a time, uint8 (n, H, W, C); that they and the labels are those of the digests."""
        labels = self._labels[()].astype(np.int64)
        for shard, (first, last) in enumerate(pairwise(self.starts.tolist())):
            digest = Digest()
            with self._lock:
                opened = self._opened(shard)
            for part in blocks(opened.data):
                with reading(opened.path, opened.data.name[1:]):
                    read = opened.data[part]
                digest.add(read)
                if not self.jpeg:
                    yield read
            if self.jpeg:
                digest.add(opened.offsets)
            digest.add(labels[first:last])
            self._compare(shard, digest, opened.path)
            step = max(1, DECODED_BYTES // int(np.prod(self.image)))
            for start in range(first, last, step) if self.jpeg else ():
                yield self[start:min(start + step, last)]

    def check_copy(self, shard: int, path: Path, labels: Array, pause: Callable[[], object]) -> None:
        """That a file holds what the shard should; `labels` of its images, int64 (n,). UsageError.

        `pause()` is called now and then.
        """
        opened, digest = self._checked(shard, path), Digest()
        with opened.file:
            for part in blocks(opened.data):
                with reading(path, opened.data.name[1:]):
                    digest.add(opened.data[part])
                pause()
        for values in (opened.offsets, labels) if self.jpeg else (labels,):
            digest.add(values)
        self._compare(shard, digest, path)

    def _compare(self, shard: int, digest: Digest, path: Path) -> None:
        if digest.text() != self.sums[shard]:
            raise UsageError(f"{path}: damaged, its SHA-256 does not match the one in {self.path}; {self._again}")

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].file.close()


def is_sharded(file: h5py.File) -> bool:
    return any(f"{part}/shards" in file for part in ("train", "test"))


def read_runs(images: h5py.Dataset, rows: Array, out: Array, places: Array | None = None) -> None:
    """Copies images[rows] to out[places], or to `out` as they come; consecutive ones by one call."""
    # HDF5's own selection of scattered images is a hundred times slower than reading them one by one
    places = np.arange(len(rows)) if places is None else places
    for start, stop in pairwise(_bounds(rows, places)):
        first, place = int(rows[start]), int(places[start])
        images.read_direct(out, np.s_[first:first + stop - start], np.s_[place:place + stop - start])


def announce(data: h5py.Dataset, runs: list[tuple[int, int]]) -> None:
    """Asks the system to read these bytes, from and to, of a dataset that lies in one piece; of another, nothing."""
    start = data.id.get_offset()
    if start is not None and hasattr(os, "posix_fadvise"):
        handle = data.file.id.get_vfd_handle()
        for first, last in runs:
            os.posix_fadvise(handle, start + first, last - first, os.POSIX_FADV_WILLNEED)


def _bounds(rows: Array, places: Array) -> list[int]:
    """Where runs begin, and the end."""
    apart = (np.diff(rows, prepend=-2) != 1) | (np.diff(places, prepend=-2) != 1)
    return [*np.flatnonzero(apart).tolist(), len(rows)]


def check_as_long(file: h5py.File) -> None:
    """OSError if a file is shorter than when it was opened: HDF5 has handed out zeros for what is gone."""
    size, opened = os.fstat(file.id.get_vfd_handle()).st_size, file.id.get_filesize()
    if size < opened:
        raise OSError(f"eof = {size}, stored_eof = {opened}")


def _shards(index: h5py.File, part: str, path: Path) -> tuple[list[str], Array, list[str]]:
    """Names, numbers of images and SHA-256 of a part's shards."""
    found: list[Any] = []
    with suppress(KeyError, TypeError, AttributeError, ValueError):
        group = index[f"{part}/shards"]
        found = [group["file"].asstr()[()], group["images"][()], group["sha256"].asstr()[()]]
    if not found or not (np.ndim(found[0]) == np.ndim(found[1]) == np.ndim(found[2]) == 1
                         and 0 < len(found[0]) == len(found[1]) == len(found[2])
                         and found[1].dtype.kind in "iu" and found[1].min() > 0):
        raise UsageError(f"{path}: expected {part}/shards with file, images and sha256, one for each shard, found "
                         "others; convert it again")
    return [str(name) for name in found[0]], found[1].astype(np.int64), [str(each) for each in found[2]]


def _image(index: h5py.File, path: Path) -> tuple[int, int, int]:
    image, kind = np.asarray(index.attrs.get("image", 0)), index.attrs.get("kind")
    if image.shape != (3,) or image.dtype.kind not in "iu" or image.min() < 1 or kind not in KINDS:
        raise UsageError(f"{path}: expected the attributes image, as height, width, channels, and kind, one of "
                         f"{', '.join(KINDS)}, found {image.tolist()} and {kind!r}; convert it again")
    height, width, channels = image.tolist()
    return height, width, channels
