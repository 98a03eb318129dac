"""Pictures of any size to the size that a network sees, by torchvision's rules for images of Pillow's.

    training    RandomResizedCrop: of 0.08 to 1 of the picture's area and of ratio 3/4 to 4/3, ten tries, or the middle
    test        Resize and CenterCrop: the shorter side to 8/7 of the network's (256 for 224), and the middle

Scaled bilinearly, averaging where it shrinks. A picture is its pixels, uint8 (height, width, C), C being 1 or 3, or the
bytes of a JPEG. ValueError if these cannot be decoded.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.data.augment import MIRROR, PLACE, TRIES
from dsgd_mpi.data.pictures import all_of, check_pillow, fitted
from dsgd_mpi.errors import UsageError

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)   # the latter of width to height
SCALES = (8, 4, 2)                          # at which JPEG is decoded: at those between it takes longer than whole

CHANNELS = (1, 3)                           # of what Pillow scales

Box = tuple[int, int, int, int]             # top, left, height, width


def check(path: Path, channels: int) -> None:
    """UsageError if images cannot be scaled."""
    if channels not in CHANNELS:
        raise UsageError(f"{path}: expected images of 1 or 3 channels for --crop resized or --image-size, found "
                         f"{channels}; leave these options out")
    check_pillow(f"{path}: scaling its images")


def random_box(draws: Array, height: int, width: int) -> Box:
    """Where to crop a picture, by an image's numbers of `augment.draw`."""
    (least, most), (narrow, wide) = AREA, map(math.log, RATIO)
    for area, ratio in draws[TRIES].reshape(-1, 2).tolist():
        pixels, shape = height * width * (least + (most - least) * area), math.exp(narrow + (wide - narrow) * ratio)
        w, h = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < w <= width and 0 < h <= height:
            top, left = draws[PLACE].tolist()
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def random_crop(picture: Any, draws: Array, height: int, width: int) -> Array:
    """A random box of a picture, scaled and perhaps mirrored: uint8 (height, width, C).

    JPEG is decoded at a half, a quarter or an eighth if the box then still has as many pixels as are asked for. They
    differ from those of the whole, by 1.3 levels on average in photographs.
    """
    pixels, scale = picture, 1
    if isinstance(picture, np.ndarray):
        box = random_box(draws, *picture.shape[:2])
    else:
        import simplejpeg
        tall, wide, *_ = simplejpeg.decode_jpeg_header(picture, strict=False)
        box = random_box(draws, tall, wide)
        scale = next((k for k in SCALES if box[2] >= k * height and box[3] >= k * width), 1)
        pixels = all_of(picture) if scale == 1 else simplejpeg.decode_jpeg(
            picture, "RGB", min_height=-(-tall // scale), min_width=-(-wide // scale), min_factor=scale, strict=False)
    found = resized(pixels, box, height, width, scale)
    return found[:, ::-1] if draws[MIRROR] < 0.5 else found


def resized(pixels: Array, box: Box, height: int, width: int, scale: int = 1) -> Array:
    """A box of a picture that is `scale` times as large as these pixels of it, scaled: uint8 (height, width, C)."""
    from PIL import Image
    top, left, bottom, right = (each / scale for each in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    y, x = int(top), int(left)
    # cut out first, as torchvision does: Pillow averages over what is beyond the edges of a box
    part = _image(pixels[y:math.ceil(bottom), x:math.ceil(right)])
    return _pixels(part.resize((width, height), Image.Resampling.BILINEAR, (left - x, top - y, right - x, bottom - y)))


def middle(picture: Any, side: int) -> Array:
    """What is seen of a test image: uint8 (side, side, C)."""
    pixels = picture if isinstance(picture, np.ndarray) else all_of(picture)
    return _pixels(fitted(_image(pixels), round(side * 8 / 7), side))


def _image(pixels: Array) -> Any:
    from PIL import Image
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _pixels(image: Any) -> Array:
    found = np.asarray(image)
    return found[..., None] if found.ndim == 2 else found
