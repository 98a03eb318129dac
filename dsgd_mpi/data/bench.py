"""How many images a second this machine reads, decodes and prepares, by threads and by shuffle.

Beside them, a bare sequential read of the same files. Before each measurement the files are dropped from the system's
memory, and in one nothing is read twice, so that what counts is where they are stored.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsgd_mpi.arrays.flat import Array, Shape
from dsgd_mpi.data import shuffle
from dsgd_mpi.data.formats import Dataset, Split
from dsgd_mpi.data.loader import Batches

BUFFER_BYTES = 8 << 20                      # of one bare read
KEPT_BYTES = 256 << 20                      # of images in memory, to be decoded


class Rates(NamedTuple):
    """Images a second. Of reading, none where all images are in memory, and of all that a run does, by shuffle."""

    read: dict[str, float]
    decode: float
    all: dict[str, float]


def measured(dataset: Dataset, threads: list[int], batch: int, seconds: float, rounds: int, warm: bool = False
             ) -> tuple[float, dict[int, Rates]]:
    """Bytes a second of a bare read, and by threads what else: medians of `rounds`, in which all take their turns.

    Each takes `seconds`, or an epoch. Images are augmented as --augment does it by default. With `warm` the files stay
    in the system's memory.
    """
    split, files = dataset.train, dataset.files("train")
    made = partial(Batches, split, batch, byte_memory=memory, recipe=dataset.recipe())
    every = {count: made(threads=count) for count in threads}
    turns: dict[Any, Callable[[], float]] = {"bare": partial(bare, files, seconds)}
    if not split.in_memory:
        turns["read", "blocks"] = partial(read_in_blocks, made(shuffle="blocks"), seconds)
    for count, batches in every.items():
        if not split.in_memory:
            turns["read", "full", count] = partial(read, batches, seconds)
        turns["decode", count] = partial(decoded, batches, seconds, dataset.bytes_each())
        for kind in shuffle.KINDS:
            turns["all", kind, count] = partial(whole, made(threads=count, shuffle=kind), seconds)
    samples: dict[Any, list[float]] = {what: [] for what in turns}
    for _ in range(rounds):
        for what, turn in turns.items():
            if not warm:
                drop(files)
            samples[what].append(turn())
    found = {what: float(np.median(each)) for what, each in samples.items()}
    return found["bare"], {count: Rates(
        {} if split.in_memory else {"full": found["read", "full", count], "blocks": found["read", "blocks"]},
        found["decode", count], {kind: found["all", kind, count] for kind in shuffle.KINDS}) for count in threads}


def lasts(dataset: Dataset, threads: list[int], seconds: float, rounds: int) -> float:
    """About how many seconds."""
    return 1.5 * seconds * rounds * (1 + 3 * len(threads) + (0 if dataset.train.in_memory else 1 + len(threads)))


def drop(files: list[Path]) -> None:
    """From the system's memory, as far as it does that: what is being used elsewhere stays there."""
    for path in files:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bare(files: list[Path], seconds: float) -> float:
    """Bytes a second, of files read from their first byte to their last, for so long or until there are no more."""
    buffer, count, start = bytearray(BUFFER_BYTES), 0, time.perf_counter()
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while (some := file.readinto(buffer)) and time.perf_counter() - start < seconds:
                count += some
    return count / (time.perf_counter() - start)


def read(batches: Batches, seconds: float) -> float:
    """Images a second in the order of a full shuffle, a batch at a time by each of the threads."""
    split, start = batches.split, time.perf_counter()

    def work(first: int) -> int:
        count = 0
        for step in range(first, batches.steps_per_epoch, batches.threads):
            if time.perf_counter() - start < seconds:
                count += kept(split, batches.indices(step))
        return count

    with ThreadPoolExecutor(batches.threads) as pool:
        return sum(pool.map(work, range(batches.threads))) / (time.perf_counter() - start)


def read_in_blocks(batches: Batches, seconds: float) -> float:
    """The same window by window, as one thread does it beside those that make batches."""
    batches.indices(0)                      # the order of the epoch is made once
    start, count = time.perf_counter(), 0
    for end, images in batches.windows(0):
        count += kept(batches.split, images)
        if time.perf_counter() - start > seconds or end >= batches.course.epoch:
            break
    return count / (time.perf_counter() - start)


def kept(split: Split, images: Array) -> int:
    """Reads images, as they are stored; how many."""
    split.keep(images)
    split.forget(images)
    return len(images)


def decoded(batches: Batches, seconds: float, bytes_each: float) -> float:
    """Images a second from memory to batches: decoded if they are JPEG, and cropped."""
    split, batch = batches.split, batches.batch
    some = np.arange(batch * max(1, int(min(len(split) // batch, KEPT_BYTES / bytes_each / batch))))
    split.keep(some)
    try:
        own = copy(batches)
        own.own = some
        return rate(own, seconds)
    finally:
        split.forget(some)


def whole(batches: Batches, seconds: float) -> float:
    """Images a second of all that a run does for a step that takes no time."""
    batches.indices(0)
    unit = 1
    if batches.shuffle == "blocks" and not batches.split.in_memory:     # what was read and what was used are equal then
        unit = -(-shuffle.blocks(batches.seed, 0, batches.split.shards).window // batches.batch)
    return rate(batches, seconds, unit, batches.steps_per_epoch)


def rate(batches: Batches, seconds: float, unit: int = 1, steps: float = np.inf) -> float:
    """At the next multiple of `unit` steps after so many seconds, or twice as many, or after `steps`."""
    best, until, start = 0.0, np.inf, time.perf_counter()
    with closing(batches.stream()) as stream:
        for count, _ in enumerate(stream, 1):
            passed = time.perf_counter() - start
            if passed > seconds or count >= steps:
                best, until = max(best, count * batches.batch / passed), min(until, passed + seconds)
                if count % unit == 0 or passed >= until or count >= steps:
                    break
    return best


def memory(shape: Shape) -> Array:
    return np.empty(shape, np.uint8)
