"""Labelled images in one HDF5 file, or behind one (`shards`), which every process opens independently.

    train/images, test/images   uint8 (N, H, W, C)
    train/labels, test/labels   integers (N,), 0 <= label < number of classes
    attributes of the file      classes (names), mean and std (per channel, of train/images / 255), source, licence

`classes` may be a dataset instead, as it must be where the names take more than 64 KB.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dsgd_mpi.arrays.cache import cache_folder
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.hdf5 import atomic
from dsgd_mpi.data.check import check_images, check_layout, check_stored, class_names, empty_classes, statistics
from dsgd_mpi.data.shards import Shards, check_as_long, read_runs
from dsgd_mpi.data.storage import cause, reading
from dsgd_mpi.data.trial import tried
from dsgd_mpi.errors import UsageError

MEMORY_BYTES = 256 << 20                    # a split up to this size is kept in memory, a larger one left in the file
CHUNK_BYTES = 128 << 10                     # large images get a chunk each, so that a random one is read alone
ATTRIBUTE_BYTES, ATTRIBUTE_OF_A_NAME = 60_000, 16       # HDF5 has 64 KB for one, and takes 16 bytes for a reference
CONVERTED = ("fashion-mnist", "cifar10", "cifar100", "mnist", "imagenet")       # made by `data NAME --from FOLDER`
SHOWN = 3                                   # classes in a message
NAMES = ("fashion-mnist-12k", *CONVERTED)


class Split:
    """The train or the test images with their labels, int64 (N,), and the mean and std that normalise them.

    `images` is an array, which stays as it is, an HDF5 dataset, which is read into memory when first used unless it is
    larger than `MEMORY_BYTES`, or `Shards`. `image` is the shape (H, W, C) of one image.
    """

    def __init__(self, images: Any, labels: Array, mean: Array, std: Array) -> None:
        self._images = images
        self.image: tuple[int, int, int] = tuple(images.shape[1:])
        self.labels = np.asarray(labels, np.int64)
        self.mean, self.std = np.asarray(mean, np.float64), np.asarray(std, np.float64)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Array, out: Array) -> None:
        """Copies the images at `indices`, integers (B,), to `out`, uint8 (B, H, W, C) in C order.

        From a file, consecutive ones are read by one call. UsageError says why the file cannot be read.
        """
        if isinstance(self._images, Shards):
            self._images.read(indices, out)
            return
        try:
            if isinstance(self._images, h5py.Dataset) and self._images.size <= MEMORY_BYTES:
                whole = self._images[()]
                check_as_long(self._images.file)
                self._images = whole
            if isinstance(self._images, h5py.Dataset):
                read_runs(self._images, indices, out)
                check_as_long(self._images.file)
            else:
                np.take(self._images, indices, axis=0, out=out, mode="clip")    # the other modes make a second copy
        except Exception as error:          # h5py may raise anything
            if not isinstance(self._images, h5py.Dataset):
                raise
            path = Path(self._images.file.filename)
            raise UsageError(f"{path}: {cause(error, path, self._images.name[1:])}") from error


class Dataset:
    """A file of labelled images, open for reading, whose `image`s are of shape (H, W, C).

    Everything but the images is checked; UsageError says what is wrong and how to mend it.
    """

    def __init__(self, path: str | Path, name: str | None = None) -> None:
        self.path = Path(path)
        self.name = name or self.path.stem
        self._images: dict[str, Any] = {}
        self._file = _open(self.path)
        try:
            with reading(self.path):
                self._images, labels = check_layout(self._file, self.path)
                attributes = self._file.attrs
                self.classes = [str(name) for name in class_names(self._file)]
                self.mean, self.std = np.array(attributes["mean"], float), np.array(attributes["std"], float)
                self.source, self.licence = str(attributes["source"]), str(attributes["licence"])
                self.train, self.test = (Split(self._images[part], labels[part], self.mean, self.std)
                                         for part in ("train", "test"))
        except BaseException:
            self.close()
            raise
        self.image = self.train.image

    def verify(self, thorough: bool = True) -> list[str]:
        """Reads every image, or in about a second a sample; UsageError if what is stored is not what is claimed.

        Returns what is strange but no error, a line each: classes without images, and black images.
        """
        with reading(self.path):
            black = check_images(self._file, self._images, self.path, thorough)
        remarks = []
        for part, split in (("train", self.train), ("test", self.test)):
            if empty := empty_classes(split.labels, self.classes):
                more = f" and {len(empty) - SHOWN} more" if len(empty) > SHOWN else ""
                remarks.append(f"{self.path}: no image in {part}/images is of class "
                               f"{', '.join(map(repr, empty[:SHOWN]))}{more}")
            if black.get(part):
                remarks.append(f"{self.path}: {black[part]} of {len(split)} {part}/images are black, every byte is 0")
        return remarks

    def told(self, what: str) -> list[str]:
        """What its conversion told, a line each: of `remarks`, or of images that were `skipped`."""
        with reading(self.path, what):
            found = self._file.get(what)
            return [str(line) for line in found.asstr()[()]] if isinstance(found, h5py.Dataset) else []

    @property
    def kind(self) -> str:
        images = self._images["train"]
        return "JPEG" if isinstance(images, Shards) and images.jpeg else "pixels"

    def files(self) -> list[Path]:
        """All that its content is in; more than one file if it is sharded."""
        shards = [each for each in self._images.values() if isinstance(each, Shards)]
        return [self.path, *(each.file_of(number) for each in shards for number in range(len(each.names)))]

    def in_others(self) -> str:
        """The first of its datasets that is kept in another file, which is no shard; "" if none is."""
        for name in ("classes", *(f"{part}/{what}" for part in self._images for what in ("images", "labels"))):
            found = self._file.get(name)
            if isinstance(found, h5py.Dataset) and (found.is_virtual or found.external or found.file != self._file):
                return name
        return ""

    def check_shard(self, number: int, path: Path, pause: Callable[[], object]) -> None:
        """That the file `path` holds what that shard should, of all in the order of `files`. UsageError."""
        for split, images in zip((self.train, self.test), self._images.values(), strict=True):
            if number < len(images.names):
                first, last = images.starts[number:number + 2]
                images.check_copy(number, path, split.labels[first:last], pause)
                return
            number -= len(images.names)
        raise IndexError(number)

    def touch(self) -> None:
        """Reads the first and the last image, and what says where all are; UsageError if they are not stored."""
        with reading(self.path):
            check_stored(self._file, self._images, self.path)
            for images in self._images.values():
                images[0], images[len(images) - 1]

    def close(self) -> None:
        for images in self._images.values():
            if isinstance(images, Shards):
                images.close()
        self._file.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(path: Path) -> h5py.File:
    if not os.path.isfile(path):            # pathlib's raises for some paths
        raise UsageError(_not_found(path))
    if not os.access(path, os.R_OK):
        raise UsageError(f"{path}: no permission to read it; try chmod +r")
    with reading(path):
        if h5py.is_hdf5(path):
            # readers need no locks, and on some cluster file systems they fail or hang
            return h5py.File(path, "r", locking=False)
    raise UsageError(f"{path}: expected an HDF5 file, found something else; "
                     "`python -m dsgd_mpi data --help` tells how to make one")


def check(path: str | Path) -> None:
    """Reads the whole file; UsageError says what was expected, what was found and the way out."""
    with Dataset(path) as dataset:
        dataset.verify()


def data_folder() -> Path:
    """Where converted data sets are kept: $DSGD_DATA_DIR, else $XDG_CACHE_HOME/dsgd_mpi, else ~/.cache/dsgd_mpi."""
    if folder := os.environ.get("DSGD_DATA_DIR"):
        return Path(os.path.expanduser(folder))          # never raises
    return cache_folder()


def open_dataset(name_or_path: str | Path) -> Dataset:
    """Opens `fashion-mnist-12k`, which comes with the package, a converted data set by name, or a .h5 file by path.

    A relative path is looked for from here and then from the folder of converted data sets.
    """
    name = str(name_or_path)
    if name == "fashion-mnist-12k":
        return Dataset(str(files("dsgd_mpi.data") / "fashion-mnist-12k.h5"), name)
    if name in CONVERTED:
        path = data_folder() / f"{name}.h5"
        if not os.path.exists(path):
            raise UsageError(f"{name} is not at {path}; make it with `python -m dsgd_mpi data {name} --from FOLDER` "
                             "(its --help says which folder), or set DSGD_DATA_DIR to the folder it is in")
        return _opened(path, name)
    if Path(name).suffix not in (".h5", ".hdf5"):
        raise UsageError(_not_found(Path(name)))
    path = Path(name) if os.path.exists(name) else data_folder() / name
    if not os.path.exists(path) and not os.path.isabs(name):
        raise UsageError(f"{_not_found(Path(name))}. Looked for in {os.getcwd()} and in {data_folder()}; give its path "
                         "by --data, or the folder it is in by DSGD_DATA_DIR")
    return _opened(path if os.path.exists(path) else Path(name))


def _opened(path: Path, name: str | None = None) -> Dataset:
    """After a trial, since HDF5 may crash on a damaged file or never come back from it."""
    def read_a_little() -> None:
        with Dataset(path, name) as dataset:
            dataset.touch()

    tried(read_a_little, path)
    return Dataset(path, name)


def _not_found(path: Path) -> str:
    """The message for a path or name that does not exist; it suggests a similar one."""
    if os.path.exists(path):
        return f"{path}: expected the path of a .h5 file or one of {', '.join(NAMES)}"
    here = [str(path.with_name(p.name)) for p in path.parent.glob("*.h*5")] if os.path.isdir(path.parent) else []
    near = difflib.get_close_matches(str(path), [*here, *NAMES], n=1)
    return (f"{path}: no such file or data set; " + (f"did you mean {near[0]}? Expected " if near else "expected ")
            + f"the path of a .h5 file or one of {', '.join(NAMES)}")


@dataclass(frozen=True)
class Content:
    """The content of a file: images uint8 (N, H, W, C) with labels (N,), the class names, and its origin.

    `remark` is a line for the user about what is strange in it, if anything is.
    """

    train: tuple[Array, Array]
    test: tuple[Array, Array]
    classes: Sequence[str]
    source: str
    licence: str
    remark: str = ""


def write(path: str | Path, content: Content, compression: str | None = None, **notes: Any) -> None:
    """Writes `content`, checked and whole or not at all; `notes` become further attributes of the file.

    `compression` is None or "gzip", which is smaller and read ten times slower. UsageError if it cannot be written.
    """
    path = Path(path)
    prepare(path)
    try:
        with atomic(path, verify=lambda file: _check_all(file, path)) as file:
            for part, (images, labels) in (("train", content.train), ("test", content.test)):
                _write_split(file, part, images, labels, compression)
            mean, std = statistics(content.train[0])
            file.attrs.update(mean=mean, std=std, source=content.source, licence=content.licence, **notes)
            write_classes(file, content.classes)
    except OSError as error:
        raise UsageError(f"{error}; free some space or choose another path by --to") from error


def prepare(path: Path) -> None:
    """Makes the folder that a data file is to be written to. UsageError."""
    if path.suffix not in (".h5", ".hdf5"):
        raise UsageError(f"{path}: expected a path that ends in .h5")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path.parent} cannot be created ({error.strerror}); choose another path by --to") from None


def write_classes(file: h5py.File, names: Sequence[str]) -> None:
    """As an attribute where they find room in one, as a dataset where not."""
    if sum(ATTRIBUTE_OF_A_NAME + len(name.encode()) for name in names) < ATTRIBUTE_BYTES:
        file.attrs.create("classes", list(names), dtype=h5py.string_dtype())
    else:
        file.create_dataset("classes", data=list(names), dtype=h5py.string_dtype())


def _write_split(file: h5py.File, part: str, images: Array, labels: Array, compression: str | None) -> None:
    rows = max(1, min(len(images), CHUNK_BYTES // max(1, images[0].nbytes)))
    level = 9 if compression == "gzip" else None
    file.create_dataset(f"{part}/images", data=images, chunks=(rows, *images.shape[1:]), fletcher32=True,
                        compression=compression, compression_opts=level)
    file.create_dataset(f"{part}/labels", data=labels, chunks=labels.shape, fletcher32=True)


def _check_all(file: h5py.File, path: Path) -> None:
    check_images(file, check_layout(file, path)[0], path)
