"""Mixup (Zhang et al. 2018, arXiv:1710.09412): training on what lies between two images and between their labels.

    x_a, x_b <- l x_a + (1 - l) x_b, l x_b + (1 - l) x_a   and so their labels,   l from Beta(alpha, alpha)

a and b are neighbours in a step, the first and the second, the third and the fourth, and so on; each pair has its l. Of
an even number of images on each rank, these are the same pairs however many ranks share them.
"""

from __future__ import annotations

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.data.augment import MIX
from dsgd_mpi.kernels.api import Mixed


def mix(images: Array, labels: Mixed, draws: Array, alpha: float) -> None:
    """Changes images uint8 (B, H, W, C), rounded to whole levels, and their labels, of which `labels.labels` are known.

    `draws`: (B, DRAWS) of `augment.draw`, of which each pair's first image is asked.
    """
    labels.others[0::2], labels.others[1::2] = labels.labels[1::2], labels.labels[0::2]
    for first in range(0, len(images), 2):
        pair = slice(first, first + 2)
        share = np.random.default_rng(int(draws[first, MIX] * 2**53)).beta(alpha, alpha)
        labels.share[pair] = share
        both = images[pair].astype(np.float32)
        images[pair] = np.rint(np.float32(share) * both + np.float32(1 - share) * both[::-1])
