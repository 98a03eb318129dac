"""The orders of an epoch, each a pure function of seed and epoch, whatever the ranks and their batches.

    full      any image at any place; each is read by itself
    blocks    the shards are shuffled, and the blocks of each, an eighth of a shard. That is the order in which images
              are read: it is cut into LANES equal parts, which are read side by side. The next images of all lanes
              together, a stretch of each, are a window, in which images are shuffled: a round is one of each lane

An image of `blocks` has a place among those drawn and another among those read. The images of a step are dealt to the
ranks in the order in which they are read, so that a rank has a lane to itself, or a few, or a share of one. It reads
all that it will take of a window at once, in a run or two of each lane. A stretch is the largest power of two that fits
into a block, since batches mostly are powers of two: ranks that share a lane then have whole runs of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from dsgd_mpi.arrays.flat import Array

KINDS = ("full", "blocks")
LANES = 16                                  # shards that one process reads from at a time
BLOCKS = 8                                  # of a shard: 16 MB of the 128 that ours have
STREAM = 5                                  # of random numbers: others of the seed are of `full` and of partitions


class Order(NamedTuple):
    """`images` as they are drawn, int64 (N,), their `places` among those read, int64 (N,), and how many a `window` has.

    The last window may have fewer.
    """

    images: Array
    places: Array
    window: int


@lru_cache(maxsize=4)                       # many simulated ranks in one process share it
def full(seed: int, epoch: int, count: int) -> Array:
    """All images, int64 (count,)."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    order.flags.writeable = False
    return order


@lru_cache(maxsize=2)                       # one that ends and one that begins
def blocks(seed: int, epoch: int, shards: tuple[int, ...]) -> Order:
    """Of images that are stored in shards of so many, one after the other."""
    draw, count, largest = np.random.default_rng((seed, epoch, 0, 0, STREAM)), sum(shards), max(shards)
    first, parts = np.cumsum(shards) - shards, []
    for shard in draw.permutation(len(shards)).tolist():
        cut = np.array_split(first[shard] + np.arange(shards[shard]), -(-BLOCKS * shards[shard] // largest))
        parts += [cut[block] for block in draw.permutation(len(cut)).tolist()]
    read = np.concatenate(parts)
    stretch = 1 << max(0, (largest // BLOCKS).bit_length() - 1)
    rounds = np.arange(count // LANES)[:, None]
    keys = rounds // stretch + draw.random((len(rounds), LANES))
    places = np.argsort(keys, axis=0) + np.arange(LANES) * len(rounds)
    draw.permuted(places, axis=1, out=places)
    places = np.append(places, draw.permutation(np.arange(places.size, count)))
    order = Order(read[places], places, stretch * LANES)
    for each in order[:2]:
        each.flags.writeable = False
    return order


def sorted_by_class(labels: Array) -> bool:
    """Whether most images are stored beside one of their class, for labels int64 (N,) of several classes."""
    by_chance = float(np.sum((np.bincount(labels) / len(labels)) ** 2))
    return by_chance < 1 and float(np.mean(np.diff(labels) == 0)) > (1 + by_chance) / 2


def apart(order: Array) -> Array:
    """How far from each other, among those drawn, come images that are stored side by side: int64 (N - 1,).

    In a full shuffle a third of N on average.
    """
    when = np.empty(len(order), np.int64)
    when[order] = np.arange(len(order))
    return np.abs(np.diff(when))


def together(order: Array, batch: int) -> float:
    """The share of images stored side by side that are drawn in the same step of `batch` images."""
    step = np.empty(len(order), np.int64)
    step[order] = np.arange(len(order)) // batch
    return float(np.mean(np.diff(step) == 0))


def varied(order: Array, labels: Sequence[int] | Array, batch: int) -> float:
    """Classes in a step of `batch` images, on average over an epoch, for labels of the images as they are stored."""
    steps = np.asarray(labels)[order][:len(order) // batch * batch].reshape(-1, batch)
    return float(np.mean([len(np.unique(step)) for step in steps]))
