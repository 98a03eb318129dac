"""From published data sets to arrays: Fashion-MNIST (Xiao et al. 2017), CIFAR-10 (Krizhevsky 2009)."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.data.check import statistics
from dsgd_mpi.data.formats import Content, Dataset
from dsgd_mpi.data.pickles import array, load, text
from dsgd_mpi.errors import UsageError

FASHION_MNIST_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
                         "Ankle boot")
# SHA-256 of the unpacked files; the archives' MD5 sums, which the publisher names, depend on who packed them
FASHION_MNIST = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
LARGEST = 1 << 30                           # bytes of an unpacked file; a few kB of gzip can claim far more
Read = TypeVar("Read")
NOT_PUBLISHED = ", not as published"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_BATCH = 10_000                      # images in each of its six files
CIFAR10_IMAGE = 3 * 32 * 32                 # bytes, red plane first
CIFAR10_MOMENTS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))      # of the published training images


def fashion_mnist(folder: str | Path, as_is: bool = False) -> Content:
    """60,000 + 10,000 images (28, 28, 1) from the four idx files, gzipped or not. UsageError if one is damaged.

    MNIST, KMNIST and others have files of the same names: only those that were published are taken, unless `as_is`.
    """
    digests: dict[str, str] = {}
    folder, (x, y), (test_x, test_y) = idx_files(folder, len(FASHION_MNIST_CLASSES), digests)
    others = [name for name, digest in digests.items() if digest != FASHION_MNIST[name]]
    mean, std = (float(value[0]) for value in statistics(x))
    found = f"{len(x)} + {len(test_x)} images with mean {mean:.4f} and std {std:.4f}"
    if others and not as_is:
        raise UsageError(
            f"{folder}: expected Fashion-MNIST as published, 60000 + 10000 images with mean 0.2860 and std 0.3530, "
            f"found other content in {', '.join(others)}, {found}; MNIST and KMNIST have files of the same names: "
            "fetch those of https://github.com/zalandoresearch/fashion-mnist, or, if these are a part or a variant of "
            "them, add --as-is")
    source = "Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist"
    return Content((x, y), (test_x, test_y), FASHION_MNIST_CLASSES, source + (NOT_PUBLISHED if others else ""),
                   "MIT, Copyright (c) 2017 Zalando SE, https://tech.zalando.com",
                   f"{folder}: not Fashion-MNIST as published, {found}" if others else "")


def idx_files(folder: str | Path, classes: int, digests: dict[str, str]
              ) -> tuple[Path, tuple[Array, Array], tuple[Array, Array]]:
    """The folder that the four files are in, and images (N, 28, 28, 1) and labels (N,) of both parts. UsageError.

    Each file's SHA-256, unpacked, is added to `digests`.
    """
    folder = _idx_folder(folder_of(folder))
    parts = []
    for part in ("train", "t10k"):
        images = _idx(folder, f"{part}-images-idx3-ubyte", 3, digests)[..., None]
        labels = _idx(folder, f"{part}-labels-idx1-ubyte", 1, digests)
        if len(images) != len(labels):
            raise UsageError(f"{folder}: expected as many labels as images, found {len(labels)} for {len(images)} in "
                             f"the files {part}-*; take both from one set")
        if labels.max() >= classes:
            raise UsageError(f"{folder}: expected labels from 0 to {classes - 1} in {part}-labels-idx1-ubyte, found "
                             f"{labels.min()} to {labels.max()}; that is another set")
        parts.append((images, labels))
    return folder, parts[0], parts[1]


def _idx_folder(folder: Path) -> Path:
    """Where the files are: there, or where torchvision puts them."""
    places = (folder, folder / "raw", folder / "FashionMNIST" / "raw", folder / "MNIST" / "raw")
    return next((place for place in places for name in FASHION_MNIST
                 if (place / name).is_file() or (place / f"{name}.gz").is_file()), folder)


def _idx(folder: Path, name: str, dimensions: int, digests: dict[str, str]) -> Array:
    """An idx file: 0 0 8 dimensions, big-endian uint32 lengths, then bytes (LeCun, yann.lecun.com/exdb/mnist).

    Its SHA-256, unpacked, is added to `digests`.
    """
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise UsageError(f"{folder}: expected {name} or {name}.gz, found {listing(folder)}; "
                         "give the folder that the four files are in")
    content = read_file(path, _unpacked)
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        page = ", a web page" if content.lstrip()[:1] == b"<" else ""
        raise UsageError(f"{path}: expected an idx file that begins with {magic.hex(' ')}, found "
                         f"{content[:4].hex(' ') or 'nothing'}{page}; download it again")
    shape = np.frombuffer(content[:header].ljust(header, b"\0"), ">u4")[1:].tolist()
    expected = header + math.prod(shape)
    if len(content) != expected or 0 in shape:
        raise UsageError(f"{path}: expected {expected} bytes for {tuple(shape)}, found {len(content)}; "
                         "download it again")
    digests[name] = hashlib.sha256(content).hexdigest()
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_file(path: Path, read: Callable[[Path], Read]) -> Read:
    try:
        return read(path)
    except PermissionError as error:
        raise UsageError(f"{path}: no permission to read it; try chmod +r") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read from where it is stored ({error.strerror or error}); try again, or "
                         "from a copy elsewhere") from error


def _unpacked(path: Path) -> bytes:
    """The content of a file that may be gzipped whatever its name: browsers unpack some and leave the name."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.GzipFile(fileobj=file) if packed else file as content:
                found = content.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        if getattr(error, "errno", None):   # gzip's own have none
            raise
        raise UsageError(f"{path}: cannot be unpacked ({error}); download it again") from error
    if len(found) > LARGEST:
        raise UsageError(f"{path}: expected at most {LARGEST} bytes, found more; that is another set")
    return found


class _Layout(NamedTuple):
    """A published format of CIFAR-10: the names of its files, and what reads one of them as (images, labels)."""

    train: tuple[str, ...]
    test: str
    extra: tuple[str, ...]
    read: Callable[[Path], tuple[Array, Any]]


def cifar10(folder: str | Path) -> Content:
    """50,000 + 10,000 images (32, 32, 3) from Python pickles, binary files or PNG strips; a subfolder is found too."""
    folder, layout = _find_layout(folder_of(folder))
    missing = [name for name in (*layout.train, layout.test, *layout.extra) if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{folder}: expected {', '.join((*layout.train, layout.test, *layout.extra))}, found no "
                         f"{', '.join(missing)}; unpack all of the archive")
    parts = [_cifar10_file(folder / name, layout) for name in (*layout.train, layout.test)]
    train = tuple(np.concatenate(arrays) for arrays in zip(*parts[:-1], strict=True))
    published, found = _is_cifar10(train, parts[-1])
    return Content((train[0], train[1]), parts[-1], CIFAR10_CLASSES,
                   "CIFAR-10, https://www.cs.toronto.edu/~kriz/cifar.html" + ("" if published else NOT_PUBLISHED),
                   "none stated; Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
                   "" if published else f"{folder}: not CIFAR-10 as published, {found}")


def _is_cifar10(train: tuple[Array, ...], test: tuple[Array, Array]) -> tuple[bool, str]:
    """Whether number, classes and colours are those of the published set, and what was found.

    The layouts differ in all bytes, and nobody else uses these names, so this is no ground to refuse anything.
    """
    counts = [np.bincount(labels, minlength=10) for labels in (train[1], test[1])]
    mean, std = statistics(train[0])
    even = all(np.ptp(each) == 0 for each in counts)
    alike = np.allclose((mean, std), CIFAR10_MOMENTS, rtol=0, atol=1e-4)
    per_class = " + ".join(f"{each.min()} to {each.max()}" for each in counts)
    return even and alike, f"{per_class} images of each class, mean {mean.round(4)}, std {std.round(4)}"


def _find_layout(folder: Path) -> tuple[Path, _Layout]:
    for place in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        for layout in _LAYOUTS:
            if any((place / name).is_file() for name in (*layout.train, layout.test)):
                return place, layout
    names = ", ".join(layout.train[0] for layout in _LAYOUTS)
    raise UsageError(f"{folder}: expected one of {names} in it or in a subfolder, found {listing(folder)}; "
                     "give the folder that the archive was unpacked to")


def _cifar10_file(path: Path, layout: _Layout) -> tuple[Array, Array]:
    images, found = read_file(path, layout.read)
    labels = _labels(found, path)
    if len(images) != CIFAR10_BATCH or len(labels) != CIFAR10_BATCH:
        raise UsageError(f"{path}: expected {CIFAR10_BATCH} images and as many labels, found {len(images)} and "
                         f"{len(labels)}; download it again")
    return images, labels


def _labels(found: Any, path: Path) -> Array:
    """Labels, a list or an array, as uint8 (N,); none of them is changed. UsageError."""
    if isinstance(found, list) and all(isinstance(label, int) for label in found):
        found = np.array(found, np.int64 if all(abs(label) < 2**63 for label in found) else object)
    if isinstance(found, list):
        wrong = next(label for label in found if not isinstance(label, int))
        raise UsageError(f"{path}: expected labels as integers from 0 to 9, found {wrong!r:.60}; write the number of "
                         "each image's class")
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iuO" or found.ndim != 1:
        kind = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        raise UsageError(f"{path}: expected labels as integers from 0 to 9, one per image, found {kind}; write the "
                         "number of each image's class")
    if len(found) and not 0 <= found.min() <= found.max() < len(CIFAR10_CLASSES):
        raise UsageError(f"{path}: expected labels from 0 to 9, found {found.min()} to {found.max()}; that is another "
                         "set, or its labels were changed")
    return found.astype(np.uint8)


def from_planes(planes: Array) -> Array:
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _read_binary(path: Path) -> tuple[Array, Array]:
    content = np.fromfile(path, np.uint8)
    record = 1 + CIFAR10_IMAGE
    if len(content) % record:
        raise UsageError(f"{path}: expected records of {record} bytes, a label and an image, found {len(content)} "
                         f"bytes, {len(content) % record} too many; download it again")
    records = content.reshape(-1, record)
    return from_planes(records[:, 1:]), records[:, 0]


def _read_pickle(path: Path) -> tuple[Array, Any]:
    made = path.read_bytes()
    try:
        content = load(made)
    except Exception as error:              # bytes that are not a pickle may raise anything
        raise UsageError(f"{path}: expected a pickle of arrays, found {type(error).__name__}: "
                         f"{' '.join(str(error).split())[:200]}; download it again") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a pickle with the keys data and labels, found {type(content).__name__}; "
                         "download it again")
    content = {text(key): array(value) for key, value in content.items()}
    if not {"data", "labels"} <= set(content):
        raise UsageError(f"{path}: expected a pickle with the keys data and labels, found the keys "
                         f"{', '.join(list(content)[:6])[:200] or 'none'}; download it again")
    data = content["data"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (len(data), CIFAR10_IMAGE):
        kind = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise UsageError(f"{path}: expected data as uint8 (N, {CIFAR10_IMAGE}), found {kind}; download it again")
    return from_planes(data), content["labels"]


def _read_png(path: Path) -> tuple[Array, Any]:
    """A row of pixels is an image; one file holds the labels of all five training strips."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(f"{path}: PNG needs Pillow, which is not installed; pip install pillow") from error
    try:
        with Image.open(path) as strip:
            pixels = np.asarray(strip)
    except Exception as error:              # Pillow raises anything, SyntaxError for a broken header
        raise UsageError(f"{path}: cannot be read as PNG ({error}); download it again") from error
    if pixels.ndim != 3 or pixels.shape[1:] != (1024, 3):
        raise UsageError(f"{path}: expected rows of 1024 RGB pixels, found {pixels.shape}; download it again")
    test = path.name == "test_batch.png"
    source = path.with_name("test_lables.json" if test else "train_lables.json")
    try:
        labels = json.loads(source.read_text("utf-8"))
        if not isinstance(labels, list):
            raise ValueError(f"found {type(labels).__name__}")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source}: expected a list of labels as JSON ({error}); download it again") from error
    if not test:
        first = (int(path.stem[-1]) - 1) * CIFAR10_BATCH
        labels = labels[first:first + CIFAR10_BATCH]
    return pixels.reshape(-1, 32, 32, 3), labels


def _layout(suffix: str, read: Callable[[Path], tuple[Array, Any]], extra: tuple[str, ...] = ()) -> _Layout:
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


def folder_of(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise UsageError(f"{path}: expected a folder, found {'a file' if path.exists() else 'nothing'}; "
                         "give the one that the data set was unpacked to")
    if not os.access(path, os.R_OK | os.X_OK):
        raise UsageError(f"{path}: no permission to read it; try chmod +rx")
    return path


def listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "an empty folder"
