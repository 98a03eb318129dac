"""Which of the files of a set hold training images and which test images, by their names, and what is missing of them.

    data/train-00003-of-00052.parquet, default/train/0000.parquet, imagenet1k-validation-00.tar, val/000017.tar

The last of the words in a path counts. For testing are the files of `validation`; if there are none, those of `test`:
those of public test sets often come without labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.data import sources
from dsgd_mpi.data.check import empty_classes
from dsgd_mpi.data.convert import folder_of, listing
from dsgd_mpi.data.sources import Item
from dsgd_mpi.errors import UsageError

WORDS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
         "eval": "validation", "dev": "validation", "test": "test", "testing": "test"}
CLASS_NAMES = ("classes.txt", "classnames.txt")
MOST_CLASSES = 1 << 20
SHOWN = 3                                   # names in a line


@dataclass(frozen=True)
class Parts:
    """Files with training and with test images, by name, and remarks, a line each."""

    train: list[Item]
    test: list[Item]
    remarks: tuple[str, ...]


def parts(folder: Path, ending: str, what: str, test_share: float | None) -> Parts:
    """The files in a folder and below it whose names have that ending. UsageError.

    Without words in their names, or without test images, `test_share` has to be given.
    """
    folder_of(folder)
    files = sources.in_folder(folder, fits=lambda name: name.endswith(ending) and not name.startswith("."))
    if not files:
        raise UsageError(f"{folder}: expected {what}, *{ending}, in it or in subfolders, found {listing(folder)}; give "
                         "the folder that has them")
    found: dict[str, list[Item]] = {}
    for file in files:
        found.setdefault(_part(Path(file.path).relative_to(folder)), []).append(file)
    if set(found) == {""}:
        found = {"train": found[""]}
    if "" in found or "train" not in found:
        strange = found.get("", files)[0]
        raise UsageError(f"{strange.name}: expected train, and validation or test, in the names of all {what} or of "
                         "their folders, found neither; put the files into folders train and val")
    for items in found.values():
        _check_names(items)
    test = found.get("validation") or found.get("test") or []
    if bool(test) == bool(test_share):
        raise UsageError(f"{folder}: expected --test-share only where there are no files of test images, found "
                         f"{test[0].name}; leave out one of them" if test else
                         f"{folder}: expected validation or test in the names of some {what}, found {len(files)} "
                         "without; give the share of the images that become test images, as --test-share 0.1")
    remarks = [line for items in found.values() for line in _gaps(items)]
    if "validation" in found and "test" in found:
        count = len(found["test"])
        remarks.append(f"no use was made of {count} {'file' if count == 1 else 'files'} with the word test, since "
                       "there are files for validation")
    return Parts(found["train"], test, tuple(remarks))


def _part(path: Path) -> str:
    known = [WORDS[word] for word in re.split(r"[^a-z]+", str(path).lower()) if word in WORDS]
    return known[-1] if known else ""


def _check_names(items: Sequence[Item]) -> None:
    """That there are not two sets."""
    first: dict[str, Item] = {}
    for item in items:
        other = first.setdefault(Path(item.path).name, item)
        if other is not item:
            raise UsageError(f"{item.name}: expected the files of one set, found one of the same name and part in "
                             f"{Path(other.path).parent}; give the folder of one of them")


def _gaps(items: Sequence[Item]) -> Iterable[str]:
    """A line for each run of numbered files of which some are missing."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for item in items:
        if found := re.search(r"(\d+)(?:-of-(\d+))?\D*$", Path(item.path).name):
            start = item.name[:len(item.name) - len(Path(item.path).name) + found.start()]
            numbers.setdefault((start, found[2] or ""), []).append(int(found[1]))
    for (start, total), there in numbers.items():
        expected = set(range(int(total))) if total else set(range(min(there), max(there) + 1))
        if missing := sorted(expected - set(there)):
            are = "is" if len(missing) == 1 else "are"
            yield (f"of the {len(expected)} files {start}* {len(missing)} {are} missing: "
                   f"{', '.join(map(str, missing[:SHOWN]))}{', ...' if len(missing) > SHOWN else ''}")


def checked_labels(labels: Sequence[Array], names: Sequence[str] | None, first: int | None, where: str
                   ) -> tuple[list[Array], list[str]]:
    """Labels of all parts counted from 0, and as many names of classes. UsageError.

    `first` is the lowest label that there may be; if it is None, there have to be images of label 0.
    """
    lowest, highest = min(int(each.min()) for each in labels), max(int(each.max()) for each in labels)
    found = f"found {lowest} to {highest}"
    if lowest < (first or 0) or highest >= MOST_CLASSES:
        raise UsageError(f"{where}: expected labels counted from {first or 0}, below {MOST_CLASSES}, {found}; leave "
                         "out images that have no known class")
    if first is None and lowest > 0:
        raise UsageError(f"{where}: expected labels counted from 0, {found}; if they are counted from {lowest}, add "
                         f"--first-label {lowest}, or, if images of class 0 are just missing, --first-label 0")
    count = highest + 1 - (first or 0)
    if names is not None and len(names) < count:
        raise UsageError(f"{where}: expected the names of {count} classes, found {len(names)} and labels "
                         f"from {lowest} to {highest}; add the other names, or give them all by --classes FILE")
    return ([each - (first or 0) for each in labels],
            list(names) if names is not None else [str(i + (first or 0)) for i in range(count)])


def class_names(path: Path | None, folder: Path) -> list[str] | None:
    """A line for each class, in the order of the labels: from a file, or one in the folder that is named so."""
    path = path or next((folder / name for name in CLASS_NAMES if (folder / name).is_file()), None)
    if path is None:
        return None
    names = [line.strip() for line in sources.text(sources.read(path), path).splitlines()]
    while names and not names[-1]:
        names.pop()
    if not names or "" in names:
        found = f"line {names.index('') + 1} empty" if names else "none"
        raise UsageError(f"{path}: expected a line with the name of each class, found {found}; give each its name")
    return names


def unknown_classes(labels: Array, names: Sequence[str]) -> tuple[str, ...]:
    """A line, if no training image is of some class."""
    if empty := empty_classes(labels, list(names)):
        more = ", ..." if len(empty) > SHOWN else ""
        return (f"no training image is of {len(empty)} of the {len(names)} classes: {', '.join(empty[:SHOWN])}{more}",)
    return ()


def chosen(labels: Array, share: float, names: Sequence[str]) -> Array:
    """Which images become test images, bool (N,): that share of each class, at random, always the same. UsageError.

    Of each class at least one image is for training and one for testing.
    """
    rng, is_test = np.random.default_rng(0), np.zeros(len(labels), bool)
    for label, name in enumerate(names):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        if len(of_class) == 1:
            raise UsageError(f"{name}: expected at least 2 images, of which one becomes a test image, found 1; "
                             "add some, or remove it")
        if len(of_class):
            is_test[of_class[:min(len(of_class) - 1, max(1, round(share * len(of_class))))]] = True
    return is_test
