"""Whose images are whose: a function of labels, ranks and seed, by which each training image belongs to one rank.

    iid              to all ranks: the loader shuffles the images anew each epoch and deals them out
    dirichlet:ALPHA  each class, in random order, is shared out by q ~ Dirichlet(ALPHA) over the ranks that are not yet
                     full: all get the same amount, to one image. The smaller ALPHA, the fewer classes a rank has
    shards:K         the images, sorted by class, are cut into K n equal shards, of which each of n ranks draws K
    sizes:ALPHA      all classes alike, but shares of the images by q ~ Dirichlet(ALPHA) over the ranks

`dirichlet` is by classes as in Yurochkin et al. 2019 (arXiv:1905.12022) and in the code of Lin et al. 2021
(arXiv:2102.04761), which takes ten ranks at a time and evens out the amounts afterwards. Hsu et al. 2019
(arXiv:1909.06335) draw proportions of classes for each rank instead, by Dirichlet(ALPHA p) with p their shares of all
images: with the same ALPHA that is more skewed. `shards` is of McMahan et al. 2017 (arXiv:1602.05629), with K = 2, and
`sizes` of Li et al. 2021 (arXiv:2102.02079), whose code draws again until all ranks have ten images.
Where a rank would have less than a batch, the run is refused.

An epoch is as long as with iid: all ranks take the same number of steps, and together as many images as there are. Each
rank shuffles its own anew whenever it has seen all of them, so that one with few sees them more than once an epoch, and
one with many some of them only in the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.config import COUNT, Most, convert
from dsgd_mpi.errors import UsageError

IID = "iid"
ALPHA = Annotated[float, 0.001, Most(1e6)]
KINDS = {"dirichlet": ALPHA, "shards": Annotated[int, 1, COUNT], "sizes": ALPHA}
STREAM = 3                                  # of random numbers: others of the seed are the loader's
SHOWN = 16                                  # ranks and classes in a table


class Rule(NamedTuple):
    """One of KINDS, with its ALPHA or K."""

    kind: str
    value: float

    def __str__(self) -> str:
        return f"{self.kind}:{self.value:.6g}" if self.kind != "shards" else f"{self.kind}:{self.value}"

    def milder(self) -> Iterator[Rule]:
        """Rules of this kind by which amounts differ less and less, to be tried in turn."""
        if self.kind == "shards":
            yield from (Rule(self.kind, self.value // 2**k) for k in range(1, int(self.value).bit_length()))
        elif self.kind == "sizes":
            yield from (Rule(self.kind, float(f"{self.value * 2**k:.6g}")) for k in range(1, 12))


def parse(text: str) -> Rule | None:
    """Of `--partition`; None: iid. UsageError if there is no such rule."""
    kind, _, value = text.partition(":")
    if text == IID:
        return None
    if kind not in KINDS:
        raise UsageError(f"--partition: expected iid, dirichlet:ALPHA, shards:K or sizes:ALPHA, found {text[:60]!r}")
    return Rule(kind, convert(KINDS[kind], value, f"--partition {kind}: {'K' if kind == 'shards' else 'ALPHA'}"))


def owners(labels: Array, ranks: int, rule: Rule, seed: int) -> Array:
    """The rank that each image belongs to: int64 (N,), for labels int64 (N,). UsageError if shards would be empty."""
    draw = np.random.default_rng((seed, 0, 0, STREAM))
    order, found = draw.permutation(len(labels)), np.empty(len(labels), np.int64)
    if rule.kind == "sizes":
        ends = np.rint(np.cumsum(draw.dirichlet(np.full(ranks, rule.value))) * len(labels))
        found[order] = np.searchsorted(ends[:-1], np.arange(len(labels)), side="right")
        return found
    by_class = order[np.argsort(labels[order], kind="stable")]
    if rule.kind == "shards":
        shards = int(rule.value) * ranks
        if shards > len(labels):
            raise UsageError(f"--partition {rule}: {shards:,} shards for {ranks} ranks are more than the "
                             f"{len(labels):,} training images; use --partition shards:{len(labels) // ranks} or less")
        found[by_class] = (draw.permutation(shards) % ranks)[np.arange(len(labels)) * shards // len(labels)]
    else:
        found[by_class] = np.concatenate([np.repeat(np.arange(ranks), row) for row in _dealt(
            np.bincount(labels), ranks, rule.value, draw)])
    return found


def _dealt(amounts: Array, ranks: int, alpha: float, draw: np.random.Generator) -> Array:
    """How many of each class each rank gets, int64 (classes, ranks), of so many."""
    found = np.zeros((len(amounts), ranks), np.int64)
    room = np.diff(np.arange(ranks + 1) * amounts.sum() // ranks)
    for label in draw.permutation(len(amounts)):
        left = int(amounts[label])
        while left:                         # at each turn all are dealt out, or one more rank is full
            free = np.flatnonzero(room)
            dealt = np.minimum(draw.multinomial(left, draw.dirichlet(np.full(len(free), alpha))), room[free])
            found[label, free] += dealt
            room[free] -= dealt
            left -= int(dealt.sum())
    return found


def counts(labels: Array, owner: Array, classes: int, ranks: int) -> Array:
    """Images of each class on each rank: int64 (classes, ranks)."""
    return np.bincount(labels * ranks + owner, minlength=classes * ranks).reshape(classes, ranks)


def check(labels: Array, ranks: int, rule: Rule, seed: int, batch: int, owner: Array) -> None:
    """UsageError, with a way out that was tried, if a rank of these `owners` has less than a batch."""
    own = np.bincount(owner, minlength=ranks)
    if (least := int(own.min())) >= batch:
        return
    mild = next((each for each in rule.milder()
                 if np.bincount(owners(labels, ranks, each, seed), minlength=ranks).min() >= batch), IID)
    smaller = f" or --batch {least}" if least > 1 else ""
    raise UsageError(f"--partition {rule}: expected at least a batch of {batch} images for each of {ranks} ranks, but "
                     f"the smallest share has {least}; use --partition {mild}{smaller}")


def summary(found: Array) -> str:
    """In a line, of `counts`."""
    images, classes = found.sum(0), np.count_nonzero(found, axis=0)
    return f"{_span(images)} images a rank, of {_span(classes)} class{'es' if classes.max() > 1 else ''}"


def _span(values: Array) -> str:
    return f"{values.min():,}" + (f" to {values.max():,}" if values.max() > values.min() else "")


def table(found: Array, names: Sequence[str], first: int = 0) -> str:
    """Lines of `counts`: classes on ranks from `first` on, SHOWN of each, and how many are left out."""
    classes, ranks = found.shape
    some = found[:SHOWN, :SHOWN]
    rows = [["rank", *map(str, range(first, first + some.shape[1]))]]
    rows += [[name[:20], *map(str, row)] for name, row in zip(names, some, strict=False)]
    rows += [["all", *map(str, found.sum(0)[:SHOWN])]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{row[0]:{widths[0]}}  " + " ".join(f"{each:>{width}}" for each, width in
                                                   zip(row[1:], widths[1:], strict=True)) for row in rows]
    more = [f"{count - SHOWN:,} more {what}" for count, what in ((ranks, "ranks"), (classes, "classes"))
            if count > SHOWN]
    return "\n".join([*lines, *([f"and {' and '.join(more)} in env.json"] if more else [])])
