"""Changes of colour of training images, all optional, as fb.resnet.torch (2016) has made them usual for ResNets.

    jitter      brightness, contrast and saturation, each by a factor of 1 - J to 1 + J, in an order drawn at random:
                torchvision's ColorJitter(J, J, J) of images of Pillow's
    PCA noise   RGB += sum of a_i l_i p_i, where p_i and l_i are the eigenvectors and eigenvalues of ImageNet's colours
                and a_i is normal, of standard deviation S (Krizhevsky et al. 2012, section 4.1, where it is 0.1)

Pixels stay whole levels from 0 to 255.
"""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from statistics import NormalDist

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.data.augment import FACTORS, NOISE, ORDER, Recipe
from dsgd_mpi.data.pictures import check_pillow
from dsgd_mpi.errors import UsageError

EIGENVECTORS = np.array([                   # columns, as fb.resnet.torch has published them
    [-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])        # of images / 255
ORDERS = tuple(permutations(range(3)))
NORMAL = NormalDist()


def check(recipe: Recipe, path: Path, channels: int) -> None:
    """UsageError if images cannot be changed so."""
    for option, value in (("--jitter", recipe.jitter), ("--pca-noise", recipe.pca_noise)):
        if value and channels != 3:
            raise UsageError(f"{path}: expected images of 3 channels, red, green and blue, for {option}, found "
                             f"{channels}; leave it out")
    if recipe.jitter:
        check_pillow(f"{path}: --jitter")


def change(images: Array, draws: Array, recipe: Recipe) -> None:
    """Changes images uint8 (B, H, W, 3) in place, by their `draws` from `augment.draw`."""
    for image, own in zip(images, draws, strict=True):
        if recipe.jitter:
            factors = 1 + recipe.jitter * (2 * own[FACTORS] - 1)
            image[...] = jittered(image, factors.tolist(), ORDERS[int(own[ORDER] * len(ORDERS))])
        if recipe.pca_noise:
            normal = [NORMAL.inv_cdf(max(each, 2.0**-54)) for each in own[NOISE].tolist()]
            image[...] = lit(image, recipe.pca_noise * np.array(normal))


def jittered(image: Array, factors: list[float], order: tuple[int, ...]) -> Array:
    """By factors of brightness, contrast and saturation, in that order of these: uint8 (H, W, 3)."""
    from PIL import Image, ImageEnhance
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    changed = Image.fromarray(image)
    for which in order:
        changed = enhancers[which](changed).enhance(factors[which])
    return np.asarray(changed)


def lit(image: Array, alpha: Array) -> Array:
    """With a multiple of each eigenvector added: uint8 (H, W, 3)."""
    levels = np.round(255 * EIGENVECTORS @ (alpha * EIGENVALUES)).astype(np.int16)
    return np.clip(image + levels, 0, 255).astype(np.uint8)
