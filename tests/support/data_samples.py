"""Small data sets for the tests of the data room."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.data.formats import Content, Split, write

MEAN, STD = np.array([0.2, 0.3, 0.4]), np.array([0.5, 0.6, 0.7])


def images(count: int, side: int = 8, channels: int = 3, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), np.uint8)


def content(train: int = 60, test: int = 20, **kw: int) -> Content:
    return Content((images(train, **kw), np.arange(train, dtype=np.uint8) % 4),
                   (images(test, **kw, seed=1), np.arange(test, dtype=np.uint8) % 4),
                   ("north", "east", "south", "west"), "a test", "none")


def dataset_file(folder: Path, **kw: int) -> Path:
    path = folder / "tiny.h5"
    write(path, content(**kw))
    return path


def split(count: int, side: int = 8, channels: int = 3) -> Split:
    """A split in which image i has label i."""
    return Split(images(count, side, channels), np.arange(count), MEAN[:channels], STD[:channels])
