"""From published data sets to arrays: Fashion-MNIST (Xiao et al. 2017), CIFAR-10 (Krizhevsky 2009)."""

from __future__ import annotations

import gzip
import json
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.data.formats import Content, Dataset
from dsgd_mpi.errors import UsageError

FASHION_MNIST_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
                         "Ankle boot")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_BATCH = 10_000                      # images in each of its six files
CIFAR10_IMAGE = 3 * 32 * 32                 # bytes, red plane first


def fashion_mnist(folder: str | Path) -> Content:
    """60,000 + 10,000 images (28, 28, 1) from the four idx files, gzipped or not. UsageError if one is damaged."""
    folder = _folder(folder)
    train, test = (
        (_idx(folder, f"{part}-images-idx3-ubyte", 3)[..., None], _idx(folder, f"{part}-labels-idx1-ubyte", 1))
        for part in ("train", "t10k"))
    return Content(train, test, FASHION_MNIST_CLASSES, "Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist",
                   "MIT, Copyright (c) 2017 Zalando SE, https://tech.zalando.com")


def _idx(folder: Path, name: str, dimensions: int) -> Array:
    """An idx file: 0 0 8 dimensions, big-endian int32 lengths, then bytes (LeCun, yann.lecun.com/exdb/mnist)."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise UsageError(f"{folder}: expected {name} or {name}.gz, found {_listing(folder)}; "
                         "give the folder that the four files are in")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: cannot be unpacked ({error}); download it again") from error
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        raise UsageError(f"{path}: expected an idx file that begins with {magic.hex(' ')}, found "
                         f"{content[:4].hex(' ') or 'nothing'}; download it again")
    shape = np.frombuffer(content[:header].ljust(header, b"\0"), ">i4")[1:].tolist()
    expected = header + int(np.prod(shape))
    if len(content) != expected or 0 in shape:
        raise UsageError(f"{path}: expected {expected} bytes for {tuple(shape)}, found {len(content)}; "
                         "download it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


class _Layout(NamedTuple):
    """A published format of CIFAR-10: the names of its files, and what reads one of them as (images, labels)."""

    train: tuple[str, ...]
    test: str
    extra: tuple[str, ...]
    read: Callable[[Path], tuple[Array, Array]]


def cifar10(folder: str | Path) -> Content:
    """50,000 + 10,000 images (32, 32, 3) from Python pickles, binary files or PNG strips; a subfolder is found too."""
    folder, layout = _find_layout(_folder(folder))
    missing = [name for name in (*layout.train, layout.test, *layout.extra) if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{folder}: expected {', '.join((*layout.train, layout.test, *layout.extra))}, found no "
                         f"{', '.join(missing)}; unpack all of the archive")
    parts = [_cifar10_file(folder / name, layout) for name in (*layout.train, layout.test)]
    train = tuple(np.concatenate(arrays) for arrays in zip(*parts[:-1], strict=True))
    return Content((train[0], train[1]), parts[-1], CIFAR10_CLASSES,
                   "CIFAR-10, https://www.cs.toronto.edu/~kriz/cifar.html",
                   "none stated; Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009")


def _find_layout(folder: Path) -> tuple[Path, _Layout]:
    for place in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        for layout in _LAYOUTS:
            if any((place / name).is_file() for name in (*layout.train, layout.test)):
                return place, layout
    names = ", ".join(layout.train[0] for layout in _LAYOUTS)
    raise UsageError(f"{folder}: expected one of {names} in it or in a subfolder, found {_listing(folder)}; "
                     "give the folder that the archive was unpacked to")


def _cifar10_file(path: Path, layout: _Layout) -> tuple[Array, Array]:
    images, labels = layout.read(path)
    if len(images) != CIFAR10_BATCH or len(labels) != CIFAR10_BATCH:
        raise UsageError(f"{path}: expected {CIFAR10_BATCH} images and as many labels, found {len(images)} and "
                         f"{len(labels)}; download it again")
    return images, labels


def _from_planes(planes: Array) -> Array:
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _read_binary(path: Path) -> tuple[Array, Array]:
    content = np.fromfile(path, np.uint8)
    record = 1 + CIFAR10_IMAGE
    if len(content) % record:
        raise UsageError(f"{path}: expected records of {record} bytes, a label and an image, found {len(content)} "
                         f"bytes, {len(content) % record} too many; download it again")
    records = content.reshape(-1, record)
    return _from_planes(records[:, 1:]), records[:, 0]


class _ArraysOnly(pickle.Unpickler):
    """Builds arrays and nothing else: a pickle may name any function, and loading it would call it."""

    def find_class(self, module: str, name: str) -> Any:
        known = {"ndarray": np.ndarray, "_reconstruct": np.empty(0).__reduce__()[0], "dtype": _dtype, "encode": _latin1}
        if module.split(".")[0] in ("numpy", "_codecs") and name in known:
            return known[name]
        raise pickle.UnpicklingError(f"{module}.{name} in it")


def _dtype(code: str | bytes, align: int = 0, copy: int = 0) -> np.dtype[Any]:
    return np.dtype(code.decode() if isinstance(code, bytes) else code, align=bool(align), copy=bool(copy))


def _latin1(text: str, _encoding: str) -> bytes:
    return text.encode("latin1")


def _read_pickle(path: Path) -> tuple[Array, Array]:
    try:
        with open(path, "rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
    except Exception as error:              # bytes that are not a pickle may raise anything
        raise UsageError(f"{path}: expected a pickle of arrays, found {type(error).__name__}: {error}; "
                         "download it again") from error
    if not isinstance(content, dict) or not {b"data", b"labels"} <= set(content):
        raise UsageError(f"{path}: expected a pickle with the keys data and labels, found {type(content).__name__} "
                         f"{list(content)[:6] if isinstance(content, dict) else ''}; download it again")
    data = np.asarray(content[b"data"])
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != CIFAR10_IMAGE:
        raise UsageError(f"{path}: expected data as uint8 (N, {CIFAR10_IMAGE}), found {data.dtype} {data.shape}; "
                         "download it again")
    return _from_planes(data), np.array(content[b"labels"], np.uint8)


def _read_png(path: Path) -> tuple[Array, Array]:
    """A row of pixels is an image; one file holds the labels of all five training strips."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(f"{path}: PNG needs Pillow, which is not installed; pip install pillow") from error
    try:
        with Image.open(path) as strip:
            pixels = np.asarray(strip)
    except (OSError, SyntaxError) as error:     # Pillow says SyntaxError for a broken header
        raise UsageError(f"{path}: cannot be read as PNG ({error}); download it again") from error
    if pixels.ndim != 3 or pixels.shape[1:] != (1024, 3):
        raise UsageError(f"{path}: expected rows of 1024 RGB pixels, found {pixels.shape}; download it again")
    test = path.name == "test_batch.png"
    source = path.with_name("test_lables.json" if test else "train_lables.json")
    try:
        labels = np.array(json.loads(source.read_text()))
    except ValueError as error:
        raise UsageError(f"{source}: expected a list of labels as JSON ({error}); download it again") from error
    if not test:
        first = (int(path.stem[-1]) - 1) * CIFAR10_BATCH
        labels = labels[first:first + CIFAR10_BATCH]
    return pixels.reshape(-1, 32, 32, 3), labels.astype(np.uint8)


def _layout(suffix: str, read: Callable[[Path], tuple[Array, Array]], extra: tuple[str, ...] = ()) -> _Layout:
    return _Layout(tuple(f"data_batch_{i}{suffix}" for i in range(1, 6)), f"test_batch{suffix}", extra, read)


_LAYOUTS = (
    _layout("", _read_pickle),
    _layout(".bin", _read_binary),
    _layout(".png", _read_png, ("train_lables.json", "test_lables.json")),      # so spelled
)


def subset(dataset: Dataset, train: int = 12_000, test: int = 2_000, seed: int = 0) -> Content:
    """The same number of images of each class, in the order of `dataset`; the seed decides which."""
    parts = []
    for which, (part, split, count) in enumerate((("train", dataset.train, train), ("test", dataset.test, test))):
        _check_classes(part, split.labels, dataset)
        chosen = _balanced(part, split.labels, count, len(dataset.classes), np.random.default_rng((seed, which)))
        images = np.empty((count, *split.image), np.uint8)
        split.read(chosen, images)
        parts.append((images, split.labels[chosen].astype(np.uint8 if len(dataset.classes) <= 256 else np.int64)))
    return Content(parts[0], parts[1], dataset.classes, dataset.source, dataset.licence)


def _check_classes(part: str, labels: Array, dataset: Dataset) -> None:
    for label in np.setdiff1d(np.arange(len(dataset.classes)), labels)[:1]:
        raise UsageError(f"{dataset.path}: expected {part} images of each class, found none of class "
                         f"{dataset.classes[label]!r}, label {label}; take its name out of the attribute classes, and "
                         "its images out of the other part, and subtract 1 from all higher labels")


def _balanced(part: str, labels: Array, count: int, classes: int, rng: np.random.Generator) -> Array:
    fewest = int(np.bincount(labels, minlength=classes).min())
    if count % classes or not 0 < count // classes <= fewest:
        raise UsageError(f"--{part}: expected a multiple of {classes} images up to {classes * fewest} for as many of "
                         f"each class, found {count}; use {classes * max(1, min(fewest, count // classes))}")
    chosen = [rng.choice(np.flatnonzero(labels == label), count // classes, replace=False) for label in range(classes)]
    return np.sort(np.concatenate(chosen))


def _folder(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise UsageError(f"{path}: expected a folder, found {'a file' if path.exists() else 'nothing'}; "
                         "give the one that the data set was unpacked to")
    return path


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "an empty folder"
