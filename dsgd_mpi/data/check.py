"""Validates data files. Each error is one line: what was expected, what was found, and the way out.

Code in `backquotes` is the way out itself, of h5py and NumPy: `images` and `labels` are the datasets as found.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.hdf5 import blocks
from dsgd_mpi.data.shards import Shards, is_sharded
from dsgd_mpi.data.storage import check_reachable, check_written, reading
from dsgd_mpi.errors import UsageError

LIKELY = 1e-3                               # a mean or std that is further off belongs to other images
PARTS = ("train", "test")
WHOLE_BYTES = 16 << 20                      # a quick check reads so small a set whole, in a fraction of a second
SAMPLE, LEAST_SAMPLE = 500, 16              # images of a larger one
SAMPLE_S = 0.5                              # chunks may be large, and disks slow
DEVIATIONS = 5                              # of a sample's mean by chance: once in a million


def check_layout(file: h5py.File, path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """All but the images themselves: datasets, shapes, types, labels, attributes. Cheap enough for every open.

    Returns the images of each part, an HDF5 dataset or Shards, and its labels, integers (N,).
    """
    images: dict[str, Any]
    if is_sharded(file):
        images = {part: Shards(file, part, path) for part in PARTS}
    else:
        for part in PARTS:
            _check_images_shape(file, f"{part}/images", path)
        images = {part: file[f"{part}/images"] for part in PARTS}
    train, test = (images[part].shape[1:] for part in PARTS)
    if train != test:
        raise UsageError(f"{path}: expected train and test images of one shape, found {train} and {test}; "
                         "crop or scale one of them")
    found = {*file.attrs, *(["classes"] if "classes" in file else [])}
    missing = {"classes", "mean", "std", "source", "licence"} - found
    if missing:
        raise UsageError(f"{path}: expected the attributes classes, mean, std, source and licence of the file, "
                         f"found no {', '.join(sorted(missing))}; set it with h5py: file.attrs[...] = ...")
    classes = _checked_classes(class_names(file), path)
    labels = {part: _checked_labels(file, part, len(images[part]), classes, path) for part in PARTS}
    for name in ("mean", "std"):
        _check_statistic(file.attrs[name], name, train[-1], path, is_sharded(file))
    return images, labels


def class_names(file: h5py.File) -> Any:
    """As found: an attribute, or a dataset, since an attribute has no room for more than 64 KB."""
    if "classes" in file.attrs:
        return file.attrs["classes"]
    found = file["classes"]
    if not isinstance(found, h5py.Dataset):
        return []
    return found.asstr()[()] if h5py.check_string_dtype(found.dtype) else found[()]


def _dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        for link in (file.get(each, getlink=True) for each in (name.split("/")[0], name)):
            if isinstance(link, h5py.ExternalLink):
                raise UsageError(f"{path}: {name} is a link to {link.path} in {link.filename}, where it cannot be "
                                 "found or read; put that file where it was")
        names: list[str] = []
        file.visititems(lambda key, item: names.append(key) if isinstance(item, h5py.Dataset) else None)
        raise UsageError(f"{path}: expected the datasets train/images, train/labels, test/images and test/labels, "
                         f"found no {name} but {', '.join(names[:6]) or 'none at all'}; rename or convert them")
    check_reachable(found, path)            # first of all: where parts are gone, the shape may be another
    return found


def _check_images_shape(file: h5py.File, name: str, path: Path) -> None:
    images = _dataset(file, name, path)
    expected = f"{path}: expected {name} of shape (images, height, width, channels), found {images.shape}"
    if images.shape is None or 0 in images.shape:
        raise UsageError(f"{expected}, which is no image at all; convert it again")
    if images.ndim == 3:
        raise UsageError(f"{expected}; grey images have one channel: `images[()][..., None]`")
    if images.ndim != 4:
        raise UsageError(f"{expected}; give each image its height and width: images.reshape(-1, height, width, "
                         "channels)")
    labels = file.get(name.replace("images", "labels"))
    if isinstance(labels, h5py.Dataset) and labels.size == images.shape[3] != len(images):
        raise UsageError(f"{expected}, where the {labels.size} images of {labels.name[1:]} come last; images come "
                         "first: `np.transpose(images, (3, 0, 1, 2))`")
    if images.shape[1] <= 4 < min(images.shape[2:]):
        raise UsageError(f"{expected}, whose second length looks like the number of channels; channels come last: "
                         "`np.transpose(images, (0, 2, 3, 1))`, with one number for each of them in mean and std")
    if images.dtype != np.uint8:
        raise UsageError(f"{path}: expected {name} as uint8, 0 to 255, found {images.dtype}; they are normalised when "
                         f"read, so store them as they were{_as_bytes(images, path)}")

def _as_bytes(images: h5py.Dataset, path: Path) -> str:
    """What makes bytes of numbers of another type, if that is plain from the first image."""
    if images.dtype.kind not in "iuf":
        return ""
    with reading(path, images.name[1:]):
        check_written(images, path)
        first = images[0]
    if first.min() < 0 or first.max() > 255:
        return ""
    if images.dtype.kind == "f" and first.max() <= 1:
        return ": `np.uint8(np.round(images[()] * 255))` if they are from 0 to 1"
    return ": `np.uint8(np.round(images[()]))`"


def _checked_classes(found: Any, path: Path) -> list[str]:
    if isinstance(found, str):
        raise UsageError(f"{path}: expected the attribute classes to be a list of names, found the one string "
                         f"{found[:60]!r}; if it is the name of one class, `file.attrs.create('classes', "
                         f"[{found[:60]!r}], dtype=h5py.string_dtype())`")
    names = np.asarray(found)
    if names.ndim != 1 or not names.size or not all(isinstance(name, str) for name in names):
        shown = str(np.atleast_1d(names).ravel()[:3])
        raise UsageError(f"{path}: expected the attribute classes to be a list of names, found {shown}; write it with "
                         "dtype=h5py.string_dtype()")
    return list(names)


def _checked_labels(file: h5py.File, part: str, images: int, classes: list[str], path: Path) -> Array:
    labels = _dataset(file, f"{part}/labels", path)
    expected = f"{path}: expected {part}/labels as integers, one per image, found {labels.dtype} {labels.shape}"
    if labels.ndim == 2 and labels.shape[1] == 1:
        raise UsageError(f"{expected}, a column; `labels[:, 0]`")
    if labels.ndim == 2 and labels.shape == (images, len(classes)) and labels.dtype.kind in "biuf":
        check_written(labels, path)
        raise UsageError(f"{expected}; {one_hot(_read(labels, (), path), 'labels')}")
    if labels.ndim != 1:
        raise UsageError(f"{expected}; give each image the number of its class, counted from 0")
    if len(labels) != images:
        raise UsageError(f"{path}: expected as many labels as images, found {len(labels)} {part}/labels for "
                         f"{images} {part}/images; convert it again")
    if labels.dtype.kind not in "iufbO":
        raise UsageError(f"{expected}; give each image the number of its class, counted from 0")
    check_written(labels, path)
    values = _read(labels, (), path)
    if labels.dtype.kind not in "iu":
        raise UsageError(f"{expected}; {_as_integers(values)}")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= len(classes):
        raise UsageError(f"{path}: expected {part}/labels from 0 to {len(classes) - 1} for the {len(classes)} classes, "
                         f"found {low} to {high}; {_in_range(part, low, high, len(classes))}")
    return values


def one_hot(labels: Array, name: str) -> str:
    """The way out for labels (N, C)."""
    if np.all((labels == 0) | (labels == 1)) and np.all(labels.sum(axis=1) == 1):
        return f"one-hot labels become integers by `np.argmax({name}, axis=1)`"
    return "an image must be of one class; give each the number of its class, counted from 0"


def _as_integers(values: Array) -> str:
    if values.dtype.kind in "fb" and np.all(values == np.round(np.float64(values))):
        return "`labels[()].astype('int64')` changes none of them"
    if values.dtype.kind == "f":
        wrong = values[values != np.round(values)][0]
        return f"{wrong} is the number of no class, so find out where that came from"
    return "give each image the number of its class in the attribute classes, counted from 0"


def _in_range(part: str, low: int, high: int, classes: int) -> str:
    if low > 0 and high - low + 1 == classes:
        return (f"they count from {low}: `labels[()] - {low}` in train and test" if part == "train" else
                "train/labels do not count so: find out which are right")
    if low < 0:
        return "leave out images whose class is not known"
    return f"give the attribute classes all {high + 1} names, or correct the labels"


def _check_statistic(value: Any, name: str, channels: int, path: Path, sharded: bool) -> None:
    try:
        value = np.asarray(value, float)
    except (TypeError, ValueError):
        value = np.empty(0)
    # values above 1 were computed over 0..255; a channel without any spread cannot be normalised
    fits = value.shape == (channels,) and np.all((value >= 0) & (value <= 1)) and (name == "mean" or np.all(value > 0))
    if not fits:
        limits = "from 0 to 1" if name == "mean" else "above 0, up to 1"
        shown = value.ravel()[:6].tolist()
        way_out = (f"remove {path.name}, and convert again, which keeps the shards" if sharded else "compute it from "
                   f"train/images: `file.attrs.update({name}=(images[()] / 255).{name}((0, 1, 2)))`")
        raise UsageError(f"{path}: expected the attribute {name} as {channels} numbers {limits}, one per channel, of "
                         f"images / 255, found {shown}{' ...' if value.size > 6 else ''}; {way_out}")


def check_images(file: h5py.File, images: dict[str, Any], path: Path, thorough: bool = True) -> dict[str, int]:
    """Reads the images: all are stored, checksums match, mean and std are those of the training images. UsageError.

    Unless `thorough`, of a large set a sample, for a second: the first, the last and some at random. Where the sample's
    mean or std are further off than chance allows, all are read and decide, so that what passes the one check does not
    fail the other by chance. Returns how many images of each part are black, if all were read.
    """
    check_stored(file, images, path, thorough)
    train, test = (images[part] for part in PARTS)
    if not thorough and train.size + test.size > WHOLE_BYTES:
        _sampled(test, file.attrs, path, LEAST_SAMPLE)      # for what cannot be read; it need not be as train/images
        if _sampled(train, file.attrs, path, SAMPLE):
            return {}
    tallies = {part: _tallied(images[part], path) for part in PARTS}
    _check_moments(tallies["train"], len(train), file.attrs, path)
    return {part: tally.black for part, tally in tallies.items()}


def check_stored(file: h5py.File, images: dict[str, Any], path: Path, thorough: bool = False) -> None:
    """That all images and labels were written, and are there. UsageError."""
    for part in PARTS:
        if isinstance(images[part], Shards):
            images[part].check_stored(thorough)
        for found in (file.get(f"{part}/images"), file[f"{part}/labels"]):
            if found is not None:
                with reading(path, found.name[1:]):
                    check_written(found, path, thorough)


def _tallied(images: Any, path: Path) -> Tally:
    tally = Tally(images.shape[-1])
    for rows in images.rows() if isinstance(images, Shards) else (_read(images, rows, path) for rows in blocks(images)):
        tally.add(rows)
    return tally


def _check_moments(tally: Tally, count: int, attributes: Any, path: Path) -> None:
    found = dict(zip(("mean", "std"), tally.moments(), strict=True))
    check_contrast(found["mean"], found["std"], count, path, "convert it again, to the end")
    for name, value in found.items():
        if np.abs(value - attributes[name]).max() > LIKELY:
            way_out = ("the attribute or the images are of another set; if the images are right, "
                       f"`file.attrs.update({name}={value.tolist()})`")
            if tally.black:
                way_out = (f"{tally.black} of {count} images are black, as after a conversion that did not end: "
                           "convert it again")
            raise UsageError(f"{path}: expected the attribute {name} to be that of the training images, "
                             f"{value.round(4)}, found {np.round(attributes[name], 4)}; {way_out}")


def check_contrast(mean: Array, std: Array, count: int, path: Path, way_out: str = "give other images") -> None:
    """That the channels of training images can be normalised. UsageError."""
    flat = np.flatnonzero(~(std > 0))
    if len(flat):
        if len(flat) < len(std):
            way_out = f"leave out channel {flat[0]}, which is the same everywhere: np.delete(images, {flat[0]}, axis=3)"
        raise UsageError(f"{path}: expected training images, found {count} of mean {mean.round(4)} and std "
                         f"{std.round(4)}, without any contrast; {way_out}")


def _sampled(images: Any, attributes: Any, path: Path, count: int) -> bool:
    """Whether the first, the last and up to `count` images may be of a set with that mean and std."""
    mean, std = np.asarray(attributes["mean"], float), np.asarray(attributes["std"], float)
    end = time.monotonic() + SAMPLE_S
    chosen = np.random.default_rng(0).choice(len(images), min(count, len(images)), replace=False).tolist()
    found: list[list[Array]] = []
    for index in (0, len(images) - 1, *chosen):
        if len(found) >= LEAST_SAMPLE and time.monotonic() > end:
            break
        apart = _read(images, index, path) / 255 - mean
        found.append([apart.mean((0, 1)), (apart ** 2).mean((0, 1)) - std ** 2])
    # both have a mean of 0 over the set; about the mean, bright and dark images do not hide a wrong std
    sample: Array = np.array(found)
    chance = sample.std(axis=0) / np.sqrt(len(sample))
    likely = LIKELY * np.stack([np.ones_like(std), 2 * std])
    return bool(np.all(np.abs(sample.mean(axis=0)) <= likely + DEVIATIONS * chance))


def _read(dataset: Any, rows: Any, path: Path) -> Array:
    where = f"[{rows.start}:{rows.stop}]" if isinstance(rows, slice) else f"[{rows}]" if isinstance(rows, int) else ""
    with reading(path, f"{dataset.name[1:]}{where}"):
        return np.asarray(dataset[rows])


class Tally:
    """How often each value occurs in each channel of uint8 images, and how many images have no byte but 0."""

    def __init__(self, channels: int) -> None:
        self.counts = np.zeros((channels, 256), np.int64)
        self.black = 0

    def add(self, images: Array) -> None:
        """Images (N, H, W, C)."""
        for channel, counts in enumerate(self.counts):
            counts += np.bincount(images[..., channel].ravel(), minlength=256)
        self.black += int(np.count_nonzero(~images.any(axis=(1, 2, 3))))

    def moments(self) -> tuple[Array, Array]:
        """Mean and standard deviation per channel, float64 (C,), of images / 255; exact."""
        weights = self.counts / self.counts.sum(axis=1, keepdims=True)
        values = np.arange(256) / 255
        mean = weights @ values
        return mean, np.sqrt((weights * (values - mean[:, None]) ** 2).sum(axis=1))


def statistics(images: Any) -> tuple[Array, Array]:
    """Mean and standard deviation per channel, float64 (C,), of uint8 images / 255; exact: the values are counted."""
    tally = Tally(images.shape[-1])
    for rows in blocks(images):
        tally.add(images[rows])
    return tally.moments()


def empty_classes(labels: Array, classes: list[str]) -> list[str]:
    """The names of the classes that none of the labels are of."""
    counts = np.bincount(labels, minlength=len(classes))
    return [name for name, count in zip(classes, counts, strict=True) if count == 0]
