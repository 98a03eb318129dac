"""WebDataset's tar shards: the files of a sample lie side by side, and have one name up to its first dot.

    a/0017.jpg, a/0017.cls, a/0017.json     one sample: a picture, its label as text, and what else is known of it

(https://github.com/webdataset/webdataset.) The label is what .cls holds, or else `label` or `cls` in .json. Each tar
file is read once from its start to its end for the names and labels; the pictures are runs of its bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.data import sources
from dsgd_mpi.data.layouts import Found
from dsgd_mpi.data.parts import checked_labels, chosen, class_names, parts, unknown_classes
from dsgd_mpi.data.pictures import EXTENSIONS
from dsgd_mpi.data.sources import Item
from dsgd_mpi.errors import UsageError

KEYS = ("label", "cls")                     # in .json
SHOWN = 3                                   # names in a line
MOST = 1 << 20                              # bytes of a .cls or .json


def find(folder: Path, test_share: float | None = None, first_label: int | None = None,
         classes: Path | None = None) -> Found:
    """The pictures and labels of all tar shards in a folder. UsageError."""
    files = parts(folder, ".tar", "tar shards", test_share)
    samples = [sources.side_by_side(_samples, tars) for tars in (files.train, files.test)]
    items = [[item for items, _ in part for item in items] for part in samples]
    bare = [key for part in samples for _, keys in part for key in keys]
    for found, tars in zip(items, (files.train, files.test), strict=True):
        if tars and not found:
            raise UsageError(f"{tars[0].name}: expected pictures, KEY.jpg, KEY.jpeg or KEY.png, found none; give tar "
                             "shards of such")
    labels, names = checked_labels([_labels(each) for each in items if each], class_names(classes, folder),
                                   first_label, f"{folder}")
    train = _labelled(items[0], labels[0])
    remarks = (*files.remarks, *unknown_classes(labels[0], names), *_left_out(bare))
    if files.test:
        return Found(train, _labelled(items[1], labels[1]), names, remarks)
    is_test = chosen(labels[0], test_share or 0, [f"{folder}: class {name}" for name in names])
    return Found([item for item, test in zip(train, is_test, strict=True) if not test],
                 [item for item, test in zip(train, is_test, strict=True) if test], names, remarks)


def _left_out(bare: Sequence[str]) -> tuple[str, ...]:
    """A line, if there are any."""
    more = ", ..." if len(bare) > SHOWN else ""
    return (f"{len(bare)} {'sample has' if len(bare) == 1 else 'samples have'} a label but no picture, left out: "
            f"{', '.join(bare[:SHOWN])}{more}",) if bare else ()


def _labels(items: Sequence[Item]) -> Array:
    return np.array([item.label for item in items], np.int64)


def _labelled(items: Sequence[Item], labels: Array) -> list[Item]:
    return [item._replace(label=label) for item, label in zip(items, labels.tolist(), strict=True)]


def _samples(tar: Item) -> tuple[list[Item], list[str]]:
    """The pictures of a tar file in its order, each with its label, and the names of samples that have none."""
    pictures: dict[str, Item] = {}
    labels: dict[str, tuple[str, int]] = {}
    with open(tar.path, "rb") as file:
        for item in sources.members(tar):
            above, name = os.path.split(item.name)
            key, _, ending = name.partition(".")
            key = f"{above}/{key}"
            if f".{ending.lower()}" in EXTENSIONS and key[-1] != "/":
                other = pictures.setdefault(key, item)
                if other is not item:
                    raise UsageError(f"{item.name}: expected one picture of each name, found {other.name} too; give "
                                     "each sample a name of its own, up to the first dot")
            elif ending in ("cls", "json") and labels.get(key, ("", 0))[0] != "cls":
                file.seek(item.offset)
                label = _label(file.read(min(item.size, MOST)), ending)
                if label is not None:
                    labels[key] = ending, label
                elif ending == "cls":
                    raise UsageError(f"{item.name}: expected an integer, the number of a class, found another text; "
                                     "give each class a number, from 0")
    if missing := [item.name for key, item in pictures.items() if key not in labels]:
        raise UsageError(f"{missing[0]}: expected its label in a file of the same name with .cls, or in .json as "
                         f"label, found neither, of {len(missing)} of {len(pictures)} pictures in {tar.name}; add "
                         "labels, or leave this file out")
    return ([item._replace(label=labels[key][1]) for key, item in pictures.items()],
            [key for key in labels if key not in pictures])


def _label(content: bytes, ending: str) -> int | None:
    if ending == "cls":
        return int(content) if re.fullmatch(rb"\s*-?\d{1,9}\s*", content) else None
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return None
    label = next((told[key] for key in KEYS if key in told), None) if isinstance(told, dict) else None
    return label if isinstance(label, int) and not isinstance(label, bool) and abs(label) < 10**9 else None
