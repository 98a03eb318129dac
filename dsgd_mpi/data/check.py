"""Validates data files. Each error is one line: what was expected, what was found, and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.hdf5 import blocks
from dsgd_mpi.errors import UsageError

LIKELY = 1e-3                               # a mean or std that is further off belongs to other images


def check_layout(file: h5py.File, path: Path) -> None:
    """All but the images themselves: datasets, shapes, types, labels, attributes. Cheap enough for every open."""
    for part in ("train", "test"):
        _check_images_shape(file, f"{part}/images", path)
    train, test = file["train/images"].shape[1:], file["test/images"].shape[1:]
    if train != test:
        raise UsageError(f"{path}: expected train and test images of one shape, found {train} and {test}; "
                         "crop or scale one of them")
    missing = {"classes", "mean", "std", "source", "licence"} - set(file.attrs)
    if missing:
        raise UsageError(f"{path}: expected the attributes classes, mean, std, source and licence of the file, "
                         f"found no {', '.join(sorted(missing))}; set it with h5py: file.attrs[...] = ...")
    classes = np.atleast_1d(file.attrs["classes"])
    if not all(isinstance(name, str) for name in classes):
        raise UsageError(f"{path}: expected the attribute classes to be a list of names, found {classes[:3]}; "
                         "write it with dtype=h5py.string_dtype()")
    for part in ("train", "test"):
        _check_labels(file, part, len(classes), path)
    for name in ("mean", "std"):
        _check_statistic(file.attrs[name], name, train[-1], path)


def _dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        names: list[str] = []
        file.visititems(lambda key, item: names.append(key) if isinstance(item, h5py.Dataset) else None)
        raise UsageError(f"{path}: expected the datasets train/images, train/labels, test/images and test/labels, "
                         f"found no {name} but {', '.join(names[:6]) or 'none at all'}; rename or convert them")
    return found


def _check_images_shape(file: h5py.File, name: str, path: Path) -> None:
    images = _dataset(file, name, path)
    if images.ndim != 4 or 0 in images.shape:
        raise UsageError(f"{path}: expected {name} of shape (images, height, width, channels), found {images.shape}; "
                         "grey images have one channel: images[..., None]")
    if images.dtype != np.uint8:
        raise UsageError(f"{path}: expected {name} as uint8, 0 to 255, found {images.dtype}; "
                         "they are normalised when read, so store them as they were")


def _check_labels(file: h5py.File, part: str, classes: int, path: Path) -> None:
    labels = _dataset(file, f"{part}/labels", path)
    images = len(file[f"{part}/images"])
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"{path}: expected {part}/labels as integers, one per image, found {labels.dtype} "
                         f"{labels.shape}; one-hot labels become integers by argmax(axis=1)")
    if len(labels) != images:
        raise UsageError(f"{path}: expected as many labels as images, found {len(labels)} {part}/labels for "
                         f"{images} {part}/images; convert it again")
    values = _read(labels, (), path)
    if values.min() < 0 or values.max() >= classes:
        raise UsageError(f"{path}: expected {part}/labels from 0 to {classes - 1} for the {classes} classes, found "
                         f"{values.min()} to {values.max()}; correct the labels or the attribute classes")


def _check_statistic(value: Any, name: str, channels: int, path: Path) -> None:
    try:
        value = np.asarray(value, float)
    except (TypeError, ValueError):
        value = np.empty(0)
    # values above 1 were computed over 0..255; a channel without any spread cannot be normalised
    fits = value.shape == (channels,) and np.all((value >= 0) & (value <= 1)) and (name == "mean" or np.all(value > 0))
    if not fits:
        limits = "from 0 to 1" if name == "mean" else "above 0, up to 1"
        raise UsageError(f"{path}: expected the attribute {name} as {channels} numbers {limits}, one per channel, of "
                         f"images / 255, found {value.tolist()}; compute it again")


def check_images(file: h5py.File, path: Path) -> None:
    """Reads all images: checksums must match, and mean and std must be those of the training images."""
    for rows in blocks(file["test/images"]):
        _read(file["test/images"], rows, path)
    try:
        found = dict(zip(("mean", "std"), statistics(file["train/images"]), strict=True))
    except OSError:
        for rows in blocks(file["train/images"]):       # once more, to say where
            _read(file["train/images"], rows, path)
        raise
    for name, value in found.items():
        if np.abs(value - file.attrs[name]).max() > LIKELY:
            raise UsageError(f"{path}: expected the attribute {name} to be that of the training images, "
                             f"{value.round(4)}, found {np.round(file.attrs[name], 4)}; set it to what was expected")


def _read(dataset: h5py.Dataset, rows: Any, path: Path) -> Array:
    try:
        return dataset[rows]
    except OSError as error:
        where = f"[{rows.start}:{rows.stop}]" if isinstance(rows, slice) else ""
        raise UsageError(f"{path}: damaged, {dataset.name[1:]}{where} cannot be read or its checksum does not match; "
                         "copy or convert it again") from error


def statistics(images: Any) -> tuple[Array, Array]:
    """Mean and standard deviation per channel, float64 (C,), of uint8 images / 255; exact: the values are counted."""
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for rows in blocks(images):
        block = images[rows]
        for channel in range(channels):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    weights = counts / counts.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255
    mean = weights @ values
    return mean, np.sqrt((weights * (values - mean[:, None]) ** 2).sum(axis=1))
