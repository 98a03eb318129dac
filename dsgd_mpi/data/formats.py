"""Labelled images in one HDF5 file, or behind one (`shards`), which every process opens independently.

    train/images, test/images   uint8 (N, H, W, C)
    train/labels, test/labels   integers (N,), 0 <= label < number of classes
    attributes of the file      classes (names), mean and std (per channel, of train/images / 255), source, licence

`classes` may be a dataset instead, as it must be where the names take more than 64 KB.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from dsgd_mpi.arrays.cache import cache_folder
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.hdf5 import atomic
from dsgd_mpi.data import colours, crops
from dsgd_mpi.data.augment import Crop, Recipe
from dsgd_mpi.data.check import (
    check_contrast,
    check_images,
    check_layout,
    check_stored,
    class_names,
    empty_classes,
    statistics,
)
from dsgd_mpi.data.shards import Shards, check_as_long, read_runs
from dsgd_mpi.data.storage import cause, reading
from dsgd_mpi.data.trial import tried
from dsgd_mpi.errors import UsageError

RUN_BYTES = 128 << 20                       # of what is in one file: so much of it is taken for a shard
PICTURES = 16                               # that may be large, in memory at a time, before they are scaled
WHOLE_SIDE = 256                            # from which on the network sees 7/8 of it, 224, unless told otherwise
RESIZED_SIDE = 128                          # from which on crops are scaled, likewise
MEMORY_BYTES = 256 << 20                    # a split up to this size is kept in memory, a larger one left in the file
CHUNK_BYTES = 128 << 10                     # large images get a chunk each, so that a random one is read alone
ATTRIBUTE_BYTES, ATTRIBUTE_OF_A_NAME = 60_000, 16       # HDF5 has 64 KB for one, and takes 16 bytes for a reference
CONVERTED = ("fashion-mnist", "cifar10", "cifar100", "mnist", "imagenet")       # made by `data NAME --from FOLDER`
SHOWN = 3                                   # classes in a message
NAMES = ("fashion-mnist-12k", *CONVERTED)


class Split:
    """The train or the test images with their labels, int64 (N,), and the mean and std that normalise them.

    `images` is an array, which stays as it is, an HDF5 dataset, which is read into memory when first used unless it is
    larger than `MEMORY_BYTES`, or `Shards`. `image` is the shape (H, W, C) of one image as the network sees it.
    """

    def __init__(self, images: Any, labels: Array, mean: Array, std: Array) -> None:
        self._images = images
        self._stored: Split | None = None   # of images of another size
        self.image: tuple[int, int, int] = tuple(images.shape[1:])
        self.labels = np.asarray(labels, np.int64)
        self.mean, self.std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        self._kept: dict[int, Array] = {}   # images by their index; JPEG is kept by `Shards` as it is

    def __len__(self) -> int:
        return len(self.labels)

    def sized(self, side: int) -> Split:
        """The same images, of another size for the network, side x side."""
        other = copy(self)
        other.image, other._stored = (side, side, self.image[2]), self.stored
        return other

    @property
    def stored(self) -> Split:
        """With images of the size in which they are stored."""
        return self._stored or self

    @property
    def in_memory(self) -> bool:
        """Whether all images are, or will be once one was read."""
        images = self._images
        return not isinstance(images, Shards) and (
            not isinstance(images, h5py.Dataset) or images.size <= MEMORY_BYTES)

    @property
    def jpeg(self) -> bool:
        return isinstance(self._images, Shards) and self._images.jpeg

    @property
    def shards(self) -> tuple[int, ...]:
        """How many images lie together, one number after the other: those of each shard, or of as many bytes."""
        if isinstance(self._images, Shards):
            return tuple(np.diff(self._images.starts).tolist())
        each = max(1, RUN_BYTES // max(1, math.prod(self.stored.image)))
        return tuple(min(each, len(self) - start) for start in range(0, len(self), each))

    def keep(self, indices: Array) -> None:
        """Reads the images at `indices`, integers (B,), into memory, as they are stored, for `read` until `forget`."""
        if self.in_memory:
            return
        indices = np.sort(indices)
        if isinstance(self._images, Shards):
            self._images.announce(indices)
        if self.jpeg:
            self._images.kept.update(zip(indices.tolist(), self._images.encoded(indices), strict=True))
            return
        found = np.empty((len(indices), *self.stored.image), np.uint8)
        self.stored._read(indices, found)
        self._kept.update(zip(indices.tolist(), found, strict=True))

    def forget(self, indices: Array) -> None:
        """That they were kept."""
        kept = self._images.kept if self.jpeg else self._kept
        for index in indices.tolist():
            kept.pop(index, None)

    def read(self, indices: Array, out: Array, draws: Array | None = None) -> None:
        """Makes `out`, uint8 (B, H, W, C) in C order, of the images at `indices`, integers (B,).

        With `draws`, (B, DRAWS) of `augment.draw`, random crops of them; else they are as they are stored or, where the
        network sees another size, as test images are seen. From a file, consecutive ones are read by one call.
        UsageError says why the file cannot be read.
        """
        if draws is None and self.image == self.stored.image:
            self._whole(indices, out)
            return
        height, width, _ = self.image
        for first in range(0, len(indices), PICTURES):
            for place, picture in enumerate(self._pictures(indices[first:first + PICTURES]), first):
                with self._decoding(indices[place]):
                    out[place] = (crops.middle(picture, height) if draws is None else
                                  crops.random_crop(picture, draws[place], height, width))

    def _pictures(self, indices: Array) -> Iterable[Any]:
        """Whole images, as JPEG if they are stored so."""
        if self.jpeg:
            return self._images.encoded(indices)    # type: ignore[no-any-return]
        found = np.empty((len(indices), *self.stored.image), np.uint8)
        self._whole(indices, found)
        return found

    def _decoding(self, index: int) -> AbstractContextManager[None]:
        return self._images.decoding(index) if isinstance(self._images, Shards) else nullcontext()

    def _whole(self, indices: Array, out: Array) -> None:
        """Images as they are stored, those that are kept from memory."""
        kept = [self._kept.get(index) for index in indices.tolist()] if self._kept else []
        if all(image is None for image in kept):
            self.stored._read(indices, out)
            return
        for place, image in enumerate(kept):
            if image is None:
                self.stored._read(indices[place:place + 1], out[place:place + 1])
            else:
                out[place] = image

    def _read(self, indices: Array, out: Array) -> None:
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

    @property
    def image(self) -> tuple[int, int, int]:
        """As the network sees it."""
        return self.train.image

    @property
    def stored(self) -> tuple[int, int, int]:
        return self.train.stored.image

    def sized(self, side: int | None = None) -> Dataset:
        """The same file, its images of another size for the network, side x side.

        By default, square ones of 256 pixels or more are seen at 7/8 of their side, 224 of 256, and all others as they
        are stored. UsageError if they cannot be scaled.
        """
        height, width, channels = self.stored
        if not side and height == width >= WHOLE_SIDE and channels in crops.CHANNELS:
            side = height * 7 // 8
        other = copy(self)
        other.train, other.test = self.train.stored, self.test.stored
        if side and (side, side) != (height, width):
            crops.check(self.path, channels)
            other.train, other.test = other.train.sized(side), other.test.sized(side)
        return other

    def recipe(self, crop: Literal["auto", Crop] = "auto", jitter: float = 0.0, pca_noise: float = 0.0,
               mixup: float = 0.0) -> Recipe:
        """How training images are augmented: auto is "resized" if they are JPEG, or square and of 128 pixels or more.

        UsageError if they cannot be.
        """
        height, width, channels = self.stored
        large = height == width >= RESIZED_SIDE and channels in crops.CHANNELS
        if crop == "auto":
            crop = "resized" if large or self.kind == "JPEG" else "padded"
        if crop == "resized":
            crops.check(self.path, channels)
        found = Recipe(crop, jitter, pca_noise, mixup)
        colours.check(found, self.path, channels)
        return found

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
        return "JPEG" if self.train.jpeg else "pixels"

    def files(self, only: str = "") -> list[Path]:
        """All that its content is in; more than one file if it is sharded. `only`: that of the images of one part."""
        shards = [each for part, each in self._images.items() if isinstance(each, Shards) and only in ("", part)]
        return [*([] if shards and only else [self.path]),
                *(each.file_of(number) for each in shards for number in range(len(each.names)))]

    def bytes_each(self) -> float:
        """What an image takes where it is stored, on average."""
        return sum(path.stat().st_size for path in self.files()) / (len(self.train) + len(self.test))

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
            check_contrast(mean, std, len(content.train[0]), path)
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
