"""Small data sets for the tests of the data room."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.data import pictures, sharding
from dsgd_mpi.data.formats import Content, Split, write
from dsgd_mpi.data.pictures import Broken, Picture

MEAN, STD = np.array([0.2, 0.3, 0.4]), np.array([0.5, 0.6, 0.7])


def images(count: int, side: int = 8, channels: int = 3, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), np.uint8)


def photograph(height: int, width: int) -> Array:
    """Slopes, edges and a little noise, as a photograph has them: uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(-4, 5, (height, width, 3))
    slopes = np.stack([x + y, 2 * y, 200 - x], axis=2) * 300 // (height + width) - 60 * (x > y)[..., None]
    return np.clip(slopes + noise, 0, 255).astype(np.uint8)


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


class Pixels(NamedTuple):
    """An image that is already there, as an item of a sharded set."""

    name: str
    label: int
    values: Array
    size: int = 1

    def picture(self, jpeg: bool = False) -> Picture:
        if self.name in BROKEN:
            raise Broken("half a picture")
        if not jpeg:
            return Picture(self.values, b"", self.values.shape[:2], ("grey",) if self.name == "train 0" else ())
        stored = pictures.encoded(Image.fromarray(self.values))
        return Picture(pictures.decoded(stored, len(self.values)), stored, self.values.shape[:2], ())


BROKEN: set[str] = set()                    # names


def plan(jpeg: bool = False, made: Content | None = None) -> sharding.Plan:
    """Of the same images as `content`, with as many as five in a shard (`small_shards`)."""
    made = made or content()
    items = {part: [Pixels(f"{part} {i}", int(label), values)
                    for i, (values, label) in enumerate(zip(*getattr(made, part), strict=True))]
             for part in ("train", "test")}
    return sharding.Plan(items["train"], items["test"], made.classes, made.source, made.licence,
                         made.train[0].shape[1:], lambda item: item.picture(jpeg), jpeg)


def order(count: int) -> Array:
    """Which training image is stored where."""
    return np.random.default_rng(sharding.SHUFFLE_SEED).permutation(count)
