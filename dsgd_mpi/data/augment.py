"""Bytes to normalised floats, and the augmentation of He et al. 2015 (arXiv:1512.03385, section 4.2) for small images.

    x <- (byte / 255 - mean) / std;   pad with zeros, that is with the mean;   crop at random;   mirror half of them
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.kernels.api import Bytes

Crop = Literal["padded", "resized"]         # of training images: as small ones are here, or as in `crops`

# what an image's numbers in [0, 1) are for: where its crop begins, down and across; whether it is mirrored; areas and
# ratios of the ten boxes that are tried; factors and order of jitter; noise; mixup
PLACE, MIRROR, TRIES, FACTORS, ORDER, NOISE, MIX = slice(0, 2), 2, slice(3, 23), slice(23, 26), 26, slice(27, 30), 30
DRAWS = 31


@dataclass(frozen=True)
class Recipe:
    """How training images are augmented: by a crop and mirroring, in `colours`, and by `mixup`, where this is not 0."""

    crop: Crop = "padded"
    jitter: float = 0.0
    pca_noise: float = 0.0
    mixup: float = 0.0


class Transform:
    """Both ways from bytes to network input, for batches of up to `batch` images (H, W, C); not thread-safe.

    Everywhere `images` is uint8 and `out` float32, both (B, H, W, C) in C order, and `mean` and `std` have length C.
    """

    def __init__(self, batch: int, image: tuple[int, int, int], mean: Array, std: Array) -> None:
        self.height, self.width, channels = image
        # a row of pixels at a time: NumPy's inner loop over three channels alone would be many times slower
        self.scale = np.tile(1 / (255 * np.asarray(std)), self.width).astype(np.float32)
        self.shift = np.tile(-np.asarray(mean) / std, self.width).astype(np.float32)
        self.channels, self.mean = channels, np.asarray(mean)
        self.pad = self.height // 8
        # the border is written only here
        self.padded = np.zeros((batch, self.height + 2 * self.pad, self.width + 2 * self.pad, channels), np.float32)

    def normalise(self, images: Array, out: Array) -> None:
        """Normalises only, for test images. `out` may be a window of larger images."""
        rows = _rows(out)
        np.multiply(_rows(images), self.scale, out=rows)
        np.add(rows, self.shift, out=rows)

    def augment(self, images: Array, out: Array, draws: Array) -> None:
        """Normalises, shifts by up to H // 8 pixels each way and mirrors, according to `draws` from `draw`."""
        padded = self.padded[:len(images)]
        rows, columns = (slice(self.pad, self.pad + length) for length in (self.height, self.width))
        self.normalise(images, padded[:, rows, columns])
        pixels = self._pixels(draws)
        np.take(padded.reshape(-1, out.shape[-1]), pixels, axis=0, out=out, mode="clip")

    def move(self, images: Array, draws: Array) -> None:
        """Shifts and mirrors the bytes themselves; what comes in from outside is the level nearest to the mean."""
        padded = np.empty((len(images), *self.padded.shape[1:]), np.uint8)
        padded[...] = np.rint(255 * self.mean)
        padded[:, self.pad:self.pad + self.height, self.pad:self.pad + self.width] = images
        np.take(padded.reshape(-1, self.channels), self._pixels(draws), axis=0, out=images, mode="clip")

    def bytes(self, images: Array, draws: Array | None) -> Bytes:
        """The same, to be done on a device; without draws, as `normalise` does it."""
        one = slice(0, self.channels)       # pixel of a row
        return Bytes(images, None if draws is None else self.places(draws), self.scale[one], self.shift[one], self.pad)

    def places(self, draws: Array) -> Array:
        """Row and column at which each crop begins in the padded image, and whether it is mirrored: int32 (B, 3)."""
        shift = draws[:, PLACE] * (2 * self.pad + 1)
        return np.concatenate([shift, draws[:, MIRROR, None] < 0.5], axis=1).astype(np.int32)

    def _pixels(self, draws: Array) -> Array:
        """Index into the pixels of all padded images, for each output pixel: int (B, H, W)."""
        _, height, width, _ = self.padded.shape
        places, across = self.places(draws).astype(np.intp), np.arange(self.width)
        columns = places[:, 1:2] + np.where(places[:, 2:], across[::-1], across)
        rows = (np.arange(len(draws)) * height + places[:, 0])[:, None] + np.arange(self.height)
        return rows[:, :, None] * width + columns[:, None, :]


def _rows(images: Array) -> Array:
    batch, height, width, channels = images.shape
    return images.reshape(batch, height, width * channels)     # a view, of a window too


def draw(seed: int, epoch: int, images: Array) -> Array:
    """Numbers in [0, 1) for each of the images with the indices `images`, integers (B,): float64 (B, DRAWS).

    They depend on nothing else: an image is cropped alike in whichever step and on whichever rank it is used. They are
    those of SplitMix64 (Steele, Lea, Flood 2014), which gives its n-th number without those before, begun anywhere.
    """
    # NumPy pads a short seed with zeros: without the one, it would be that of the epoch's permutation (seed, epoch)
    begin = np.random.SeedSequence((seed, epoch, 1)).generate_state(1, np.uint64)
    number = np.asarray(images).astype(np.uint64)[:, None] * np.uint64(DRAWS) + np.arange(1, DRAWS + 1, dtype=np.uint64)
    z = begin + number * np.uint64(0x9e3779b97f4a7c15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xbf58476d1ce4e5b9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94d049bb133111eb)
    return ((z ^ z >> np.uint64(31)) >> np.uint64(11)) * 2.0**-53
