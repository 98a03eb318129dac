"""Batches for every rank, each a pure function of the global step: to resume, a run needs only its step.

    step t of an epoch takes images p[t b n : (t+1) b n] of a permutation p = f(seed, epoch), rank r the r-th b of them

so n ranks with batches of b see together what one rank with batches of n b sees, cropped and mirrored alike: that is a
function of the seed, the epoch and the image. Of a shuffle by `blocks`, the images of a step are first put in the order
in which they are stored.

Where each rank has images of its own (`partition`), a step takes the next b of them, shuffled anew at each pass.

A run that goes on with other batches counts on in images (`Course`): each step takes the next ones of the epochs, one
after the other, so that each of an epoch is still drawn once.
"""

from __future__ import annotations

import atexit
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from copy import copy
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue
from threading import Event, Thread
from typing import NamedTuple

import numpy as np

from dsgd_mpi.arrays.flat import Array, Shape
from dsgd_mpi.data import colours
from dsgd_mpi.data import shuffle as orders
from dsgd_mpi.data.ahead import Ahead
from dsgd_mpi.data.augment import DRAWS, Recipe, Transform, draw
from dsgd_mpi.data.formats import Split
from dsgd_mpi.data.mixup import mix
from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.api import Bytes, Mixed

AHEAD = 2                                   # batches made while one is used, to begin with
MOST_AHEAD, AHEAD_BYTES = 16, 1 << 30       # at most, by a thread or two, and memory that they take
LATE = 1                                    # that a device may still copy when the next is asked for
STREAM = 4                                  # of random numbers: others of the seed are of the epochs of all ranks
PLAIN = Recipe()                            # of small images
STOP_S = 5.0                                # a file system that hangs must not keep the process alive


ByteMemory = Callable[[Shape], Array]       # allocates memory for `Bytes`: uint8 of a shape


@dataclass(frozen=True)
class Course:
    """What the steps of a run mean in images, over all ranks: the same for each, from `step` on.

    `batch`: images a step now; `first`: when the run began, by `workers` ranks. `epoch`: images of an epoch, which stay
    the same. `images`: drawn before `step`. A run's length, warm-up and milestones are counted in steps of `first`
    images, of which `units(step)` were taken before a step, so that another batch changes no rate.
    """

    batch: int
    epoch: int
    first: int
    workers: int = 1
    step: int = 0
    images: int = 0

    def drawn(self, step: int) -> int:
        """Images before a step."""
        return self.images + (step - self.step) * self.batch

    def taking(self, drawn: int) -> int:
        """The step that takes the next image after so many."""
        return self.step + (drawn - self.images) // self.batch

    def units(self, step: int) -> float:
        drawn = self.drawn(step)
        return drawn / self.first if drawn % self.first else drawn // self.first

    def reaches(self, units: float) -> int:
        """The first step before which so many units were taken."""
        return self.step - int((self.images - units * self.first) // self.batch)

    def epochs(self, step: int) -> float:
        return self.drawn(step) / self.epoch


class _Buffers(NamedTuple):
    bytes: Array                            # uint8 (B, H, W, C)
    images: Array | None                    # float32 (B, H, W, C); None if a device computes them
    labels: Array | Mixed                   # int64 (B,)


class _Task(NamedTuple):
    step: int
    buffers: _Buffers
    made: SimpleQueue[Array | Bytes | BaseException]        # once it is


def _buffers(split: Split, batch: int, byte_memory: ByteMemory | None, mixup: bool = False) -> _Buffers:
    shape, own = (batch, *split.image), np.empty(batch, np.int64)
    labels = Mixed(own, own.copy(), np.empty(batch, np.float32)) if mixup else own
    if byte_memory:
        return _Buffers(byte_memory(shape), None, labels)
    return _Buffers(np.empty(shape, np.uint8), np.empty(shape, np.float32), labels)


def _fill(split: Split, indices: Array, draws: Array | None, transform: Transform, into: _Buffers,
          recipe: Recipe = PLAIN) -> Array | Bytes:
    """The images at those indices, augmented if there are draws; all their memory is the buffers'."""
    labels = into.labels.labels if isinstance(into.labels, Mixed) else into.labels
    np.take(split.labels, indices, out=labels, mode="clip")
    if recipe.crop == "resized":
        split.read(indices, into.bytes, draws)
    else:
        split.read(indices, into.bytes)
    if draws is not None and (recipe.jitter or recipe.pca_noise):
        colours.change(into.bytes, draws, recipe)
    if draws is not None and isinstance(into.labels, Mixed):
        if recipe.crop == "padded":
            transform.move(into.bytes, draws)
        mix(into.bytes, into.labels, draws, recipe.mixup)
    if recipe.crop == "resized" or recipe.mixup:
        draws = None                        # that was all
    if into.images is None:
        return transform.bytes(into.bytes, draws)
    if draws is None:
        transform.normalise(into.bytes, into.images)
    else:
        transform.augment(into.bytes, into.images, draws)
    return into.images


class Batches:
    """The share of rank `rank` of `size`, in batches of `batch` images, shuffled and (with `augment`) augmented.

    `recipe`: how. Without `prefetch`, `stream` has no thread. With `byte_memory` the images are `Bytes`, in memory that
    it allocates. `course`: of a run that is resumed; without one, a run begins. `own`: this rank's images, their
    indices int64 (m,), where they are not dealt out anew each epoch. `shuffle`: one of its KINDS. `threads`: that make
    batches, in a `stream`. Every rank has the same number of steps, `steps_per_epoch`; the images that are left over
    get their turn in other epochs. UsageError if one step takes more images than there are.
    """

    def __init__(self, split: Split, batch: int, rank: int = 0, size: int = 1, seed: int = 0,
                 augment: bool = True, byte_memory: ByteMemory | None = None, course: Course | None = None,
                 prefetch: bool = True, own: Array | None = None, recipe: Recipe = PLAIN, shuffle: str = "full",
                 threads: int = 1) -> None:
        self.prefetch, self.own, self.recipe = prefetch, own, recipe
        self.shuffle, self.threads = shuffle, threads
        self._dealt: tuple[int, Array, Array] = -1, np.empty(0, np.int64), np.empty(0, np.int64)   # of the last step
        self._order: tuple[int, Array] = -1, np.empty(0, np.int64)      # of the last pass over its own images
        self.byte_memory = byte_memory
        self.split, self.batch, self.rank, self.size, self.seed, self.augment = split, batch, rank, size, seed, augment
        _check(batch, size, len(split))
        self.steps_per_epoch = len(split) // (batch * size)
        self.course = course or Course(batch * size, self.steps_per_epoch * batch * size, batch * size, size)

    def indices(self, step: int) -> Array:
        """Indices into the split of this rank's batch at a global step: int64 (batch,)."""
        if self.shuffle == "blocks" and self.own is None:
            return self._share(step)[0]
        first, length = self._place(step)
        parts, last = [], first + self.batch
        while first < last:                 # a batch may begin in one epoch and end in the next
            epoch, place = divmod(first, length)
            order = orders.full(self.seed, epoch, len(self.split)) if self.own is None else self._shuffled(epoch)
            part = order[place:min(length, place + last - first)]
            parts.append(part)
            first += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _place(self, step: int) -> tuple[int, int]:
        """How many images come before this rank's at a step, and how many an epoch has; or a pass over its own."""
        drawn = self.course.drawn(step)
        if self.own is not None:
            return drawn // self.size, len(self.own)
        return drawn + self.rank * self.batch, self.course.epoch

    def draws(self, step: int) -> Array:
        """What decides how each image is augmented that `indices` gives: float64 (batch, DRAWS)."""
        first, length = self._place(step)
        epochs, indices = (first + np.arange(self.batch)) // length, self.indices(step)
        found = np.empty((self.batch, DRAWS))
        for epoch in range(epochs[0], epochs[-1] + 1):
            found[epochs == epoch] = draw(self.seed, epoch, indices[epochs == epoch])
        return found

    def _share(self, step: int) -> tuple[Array, Array]:
        """Of `blocks`: this rank's images at a step, and how many all ranks have drawn before each, int64 (batch,)."""
        last, images, drawn = self._dealt
        if last != step:
            first, length = self.course.drawn(step), self.course.epoch
            end, parts = first + self.course.batch, []
            while first < end:
                epoch, place = divmod(first, length)
                order = orders.blocks(self.seed, epoch, self.split.shards)
                some = np.s_[place:min(length, place + end - first)]
                sorted_ = np.argsort(order.places[some])
                parts.append((order.images[some][sorted_], first + sorted_))
                first += len(sorted_)
            images, drawn = map(np.concatenate, zip(*parts, strict=True))
            self._dealt = step, images, drawn
        own = np.s_[self.rank * self.batch:(self.rank + 1) * self.batch]
        return images[own], drawn[own]

    def windows(self, first_step: int) -> Iterator[tuple[int, Array]]:
        """Of `blocks`, from a step on: how many images are drawn when a window ends, and this rank's share of it."""
        first, length = self.course.drawn(first_step), self.course.epoch
        while True:
            epoch, place = divmod(first, length)
            window = orders.blocks(self.seed, epoch, self.split.shards).window
            end = epoch * length + min(length, (place // window + 1) * window)
            shares = map(self._share, range(self.course.taking(first), self.course.taking(end - 1) + 1))
            yield end, np.concatenate([images[(drawn >= first) & (drawn < end)] for images, drawn in shares])
            first = end

    def _shuffled(self, number: int) -> Array:
        """This rank's own images, as they come in a pass over them."""
        assert self.own is not None
        last, order = self._order
        if last != number:
            draw = np.random.default_rng((self.seed, number, self.rank, STREAM))
            order = draw.permutation(self.own)
            self._order = number, order
        return order

    def of_all(self) -> Batches:
        """Such batches of all images, whichever rank's they are."""
        if self.own is None:
            return self
        every = copy(self)
        every.own = None
        return every

    def advice(self, cores: int, computing: int, name: str, staged: bool = False) -> str:
        """What would feed a rank faster that has so many cores and computes in so many threads, in a sentence.

        `name`: of the set; `staged`: whether the node reads a copy of its own.
        """
        ways = []
        if self.threads < cores and (self.byte_memory or computing < cores):
            ways.append(f"--data-threads {min(cores, 2 * self.threads)}")
        elif computing > 1 and not self.byte_memory:
            ways.append(f"--threads {computing - 1}, which leaves a core to what reads images")
        if self.shuffle == "full" and self.own is None and not self.split.in_memory:
            ways.append("--shuffle blocks")
        if not self.split.in_memory and not staged:
            ways.append("--stage with a folder on a disk of each node")
        if self.split.jpeg:
            ways.append("a set made without --jpeg")
        way = ", or ".join(ways or ["fewer ranks to a core"])
        return f"try {way}; `python -m dsgd_mpi data bench {name}` shows what takes how long"

    def at(self, step: int) -> tuple[Array, Array | Mixed]:
        """Images float32 (batch, H, W, C) and labels int64 (batch,) of a global step, in arrays of their own."""
        buffers = self._buffers()
        return self._filled(step, buffers, self._transform()), buffers.labels

    def stream(self, first_step: int = 0) -> Generator[tuple[Array, Array | Mixed], None, None]:
        """What `at` gives for first_step, first_step + 1 and so on, endlessly, made ahead by `threads`, a batch each.

        While its consumer computes, AHEAD batches are made, one more for each further thread, and one more each time
        that the consumer had to wait, up to `most_ahead`. A batch stays as it is until the next one is asked for or,
        with `byte_memory`, the next but one: a device may copy one while the host prepares the next. What fails in a
        thread is raised here. The threads end with the generator (`close()`, or no more references to it) or with the
        process.
        """
        if not self.prefetch:
            yield from map(self.at, count(first_step))
        tasks: SimpleQueue[_Task | None] = SimpleQueue()
        stop = Event()
        ahead = None
        if self.shuffle == "blocks" and self.own is None and not self.split.in_memory:
            ahead = Ahead(self.split, copy(self).windows(first_step))
        threads = [Thread(target=self._work, args=(tasks, stop, ahead), name="batches", daemon=True)
                   for _ in range(self.threads)]

        def end() -> None:
            stop.set()
            if ahead:
                ahead.end()
            for _ in threads:
                tasks.put(None)
            until = time.monotonic() + STOP_S
            for thread in [*threads, *([ahead.thread] if ahead else [])]:
                thread.join(max(0.0, until - time.monotonic()))

        # a daemon thread stopped inside HDF5 at exit would keep HDF5's lock, and the exit would wait for it
        atexit.register(end)
        for thread in threads:
            thread.start()
        begun: deque[_Task] = deque()
        held: deque[_Buffers] = deque()
        free: list[_Buffers] = []
        late, depth, steps = LATE if self.byte_memory else 0, self.least_ahead, count(first_step)
        try:
            while True:
                while len(begun) <= depth:
                    buffers = free.pop() if free else self._buffers()
                    begun.append(_Task(next(steps), buffers, SimpleQueue()))
                    tasks.put(begun[-1])
                task = begun.popleft()
                if task.made.empty() and task.step > first_step + depth:    # the first ones are always waited for
                    depth = min(depth + 1, self.most_ahead)
                images = task.made.get()
                if isinstance(images, BaseException):
                    raise images
                if ahead:
                    ahead.forget(self.course.drawn(task.step))
                yield images, task.buffers.labels
                held.append(task.buffers)
                if len(held) > late:
                    free.append(held.popleft())
        finally:
            atexit.unregister(end)
            end()

    @property
    def least_ahead(self) -> int:
        """Batches that are made while one is used."""
        return AHEAD + self.threads - 1

    @property
    def most_ahead(self) -> int:
        """The same, for a consumer that has waited often enough: within AHEAD_BYTES, but `least_ahead`."""
        one = self.batch * math.prod(self.split.image) * (1 if self.byte_memory else 5)
        return max(self.least_ahead, min(MOST_AHEAD, AHEAD_BYTES // max(1, one)))

    def _work(self, tasks: SimpleQueue[_Task | None], stop: Event, ahead: Ahead | None) -> None:
        transform = None
        while (task := tasks.get()) and not stop.is_set():
            try:
                transform = transform or self._transform()
                if ahead:
                    ahead.wait(self.course.drawn(task.step + 1))
                task.made.put(self._filled(task.step, task.buffers, transform))
            except BaseException as error:      # the consumer waits for a batch and must be told
                task.made.put(error)

    def _filled(self, step: int, buffers: _Buffers, transform: Transform) -> Array | Bytes:
        draws = self.draws(step) if self.augment else None
        return _fill(self.split, self.indices(step), draws, transform, buffers, self.recipe)

    def _buffers(self) -> _Buffers:
        return _buffers(self.split, self.batch, self.byte_memory, bool(self.augment and self.recipe.mixup))

    def _transform(self) -> Transform:
        padded = self.augment and self.recipe.crop == "padded"
        return Transform(self.batch if padded else 0, self.split.image, self.split.mean, self.split.std)


def _check(batch: int, size: int, images: int) -> None:
    if batch < 1:
        raise UsageError(f"batch {batch}: expected at least one image a step; use --batch 1 or more")
    if batch * size > images:
        ranks = "rank" if size == 1 else "ranks"
        way_out = f"--batch {images // size} or less" if size <= images else f"{images} ranks or fewer"
        raise UsageError(f"batch {batch} x {size} {ranks} = {batch * size} images a step, but the training set holds "
                         f"{images}; use {way_out}")


def evaluation_batches(split: Split, batch: int, rank: int = 0, size: int = 1,
                       byte_memory: ByteMemory | None = None,
                       most: int | None = None) -> Iterator[tuple[Array | Bytes, Array]]:
    """Images float32 (B, H, W, C) and labels int64 (B,), normalised only: over all ranks each image of `split` once.

    B is `batch` but for the last; a rank may get none where there are more ranks than images. `byte_memory` as with
    `Batches`. `most`: of only so many images, evenly spaced in `split`, which may be sorted by class.
    """
    transform = Transform(0, split.image, split.mean, split.std)
    count = min(len(split), most or len(split))
    first, last = (count * r // size for r in (rank, rank + 1))
    for start in range(first, last, batch):
        indices = np.arange(start, min(start + batch, last)) * len(split) // count
        buffers = _buffers(split, len(indices), byte_memory)
        yield _fill(split, indices, None, transform, buffers), buffers.labels
