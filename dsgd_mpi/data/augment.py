"""Bytes to normalised floats, and the augmentation of He et al. 2015 (arXiv:1512.03385, section 4.2) for small images.

    x <- (byte / 255 - mean) / std;   pad with zeros, that is with the mean;   crop at random;   mirror half of them
"""

from __future__ import annotations

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.kernels.api import Bytes


class Transform:
    """Both ways from bytes to what a network takes, for batches of up to `batch` images (H, W, C); not for two threads.

    Everywhere `images` is uint8 and `out` float32, both (B, H, W, C) in C order, and `mean` and `std` have length C.
    """

    def __init__(self, batch: int, image: tuple[int, int, int], mean: Array, std: Array) -> None:
        self.height, self.width, channels = image
        # a row of pixels at a time: NumPy's inner loop over three channels alone would be many times slower
        self.scale = np.tile(1 / (255 * np.asarray(std)), self.width).astype(np.float32)
        self.shift = np.tile(-np.asarray(mean) / std, self.width).astype(np.float32)
        self.channels = channels
        self.pad = self.height // 8
        # the border is written here, once
        self.padded = np.zeros((batch, self.height + 2 * self.pad, self.width + 2 * self.pad, channels), np.float32)

    def normalise(self, images: Array, out: Array) -> None:
        """Only that: for the test images. `out` may be a window of larger images."""
        rows = _rows(out)
        np.multiply(_rows(images), self.scale, out=rows)
        np.add(rows, self.shift, out=rows)

    def augment(self, images: Array, out: Array, draws: Array) -> None:
        """Normalises, shifts by up to H // 8 pixels each way and mirrors, as `draws` (B, 3) from `draw` say."""
        padded = self.padded[:len(images)]
        rows, columns = (slice(self.pad, self.pad + length) for length in (self.height, self.width))
        self.normalise(images, padded[:, rows, columns])
        pixels = self._pixels(draws)
        np.take(padded.reshape(-1, out.shape[-1]), pixels, axis=0, out=out, mode="clip")

    def bytes(self, images: Array, draws: Array | None) -> Bytes:
        """The same (without draws as `normalise` does it), left for a device to do."""
        one = slice(0, self.channels)       # pixel of the row
        return Bytes(images, None if draws is None else self.places(draws), self.scale[one], self.shift[one], self.pad)

    def places(self, draws: Array) -> Array:
        """How far down and across a window begins in the padded image, and whether it is mirrored: int32 (B, 3)."""
        shift = draws[:, :2] * (2 * self.pad + 1)
        return np.concatenate([shift, draws[:, 2:] < 0.5], axis=1).astype(np.int32)

    def _pixels(self, draws: Array) -> Array:
        """Which pixel of all padded images goes where: int (B, H, W)."""
        _, height, width, _ = self.padded.shape
        places, across = self.places(draws).astype(np.intp), np.arange(self.width)
        columns = places[:, 1:2] + np.where(places[:, 2:], across[::-1], across)
        rows = (np.arange(len(draws)) * height + places[:, 0])[:, None] + np.arange(self.height)
        return rows[:, :, None] * width + columns[:, None, :]


def _rows(images: Array) -> Array:
    batch, height, width, channels = images.shape
    return images.reshape(batch, height, width * channels)     # a view, of a window too


def draw(seed: int, epoch: int, step: int, first: int, count: int) -> Array:
    """Three numbers in [0, 1) for each of the images first..first+count of a step: float64 (count, 3).

    They depend on an image's place in the step and not on the rank it falls to, so that the same images are cropped in
    the same way however many ranks share them.
    """
    # NumPy pads a short seed with zeros: with step 0, the draws would be those of the epoch's permutation (seed, epoch)
    bits = np.random.PCG64((seed, epoch, 1 + step))
    return np.random.Generator(bits.advance(3 * first)).random((count, 3))
