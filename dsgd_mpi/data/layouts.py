"""Which picture is of which class: ILSVRC2012 (Russakovsky et al. 2015, arXiv:1409.0575) and one folder per class.

ImageNet's classes are numbered as everywhere, by their synsets in alphabetical order. The validation images say nothing
of their class; what does is one of

    val/n01440764/*.JPEG                        class folders, as a well-known script makes them
    LOC_val_solution.csv, or --labels FILE      a line for each image, its name and its synset
    ILSVRC2012_validation_ground_truth.txt      a number for each, which only the devkit's meta.mat makes a synset
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsgd_mpi.data import matfile, sources
from dsgd_mpi.data.convert import folder_of, listing
from dsgd_mpi.data.parts import chosen
from dsgd_mpi.data.sources import Item
from dsgd_mpi.errors import UsageError

TRAIN = ("ILSVRC2012_img_train.tar", "train", "ILSVRC2012_img_train", "ILSVRC/Data/CLS-LOC/train")
VAL = ("ILSVRC2012_img_val.tar", "val", "validation", "ILSVRC2012_img_val", "ILSVRC/Data/CLS-LOC/val")
DEVKIT = ("", "data", "ILSVRC2012_devkit_t12/data")
DEVKIT_PACKED = "ILSVRC2012_devkit_t12.tar.gz"
META, TRUTH, SOLUTION = "meta.mat", "ILSVRC2012_validation_ground_truth.txt", "LOC_val_solution.csv"
WORDS = ("LOC_synset_mapping.txt", "synset_words.txt")
PUBLISHED = (1_281_167, 50_000, 1000)
SYNSET = re.compile(r"n\d{8}")
SHOWN = 3                                   # names in a line


@dataclass(frozen=True)
class Found:
    """Items with labels 0 to C - 1, the C names, and remarks, a line each."""

    train: list[Item]
    test: list[Item]
    classes: list[str]
    remarks: tuple[str, ...] = ()


def imagenet(folder: Path, labels: Path | None = None) -> Found:
    """ILSVRC2012 as published, unpacked or not, or as in Kaggle's archive. UsageError."""
    folder_of(folder)
    train, val = _first(folder, TRAIN), _first(folder, VAL)
    others: list[str] = []
    by_synset = {name: items for name, items in _by_class(train, others).items() if SYNSET.fullmatch(name)}
    if not by_synset:
        raise UsageError(f"{train}: expected folders or tar files of synsets, n01440764 and so on, found none; "
                         "`data folder` takes other class folders")
    synsets = sorted(by_synset)
    number = {name: label for label, name in enumerate(synsets)}
    found = _images(val)
    synset_of = _synsets_of_val(folder, found, labels)
    test = []
    for item in found:
        name = synset_of(item)
        if name not in number:
            raise UsageError(f"{item.name}: expected one of the {len(synsets)} synsets in {train}, found {name}; take "
                             "images and labels of one set, or, if training images are missing, add them")
        test.append(item._replace(label=number[name]))
    counts = (sum(map(len, by_synset.values())), len(test), len(synsets))
    shown = tuple("{:,} + {:,} images in {:,} classes".format(*each) for each in (counts, PUBLISHED))
    remarks = () if counts == PUBLISHED else (f"{shown[0]} were found; as published there are {shown[1]}",)
    words = _words(folder)
    classes = [f"{name} {words.get(name, '')}".strip() for name in synsets]
    return Found(_labelled(by_synset, synsets, train), test, classes, (*remarks, *_left_out(others)))


def class_folders(folder: Path, test_share: float = 0) -> Found:
    """One folder for each class, in train/ and val/ or test/, or right there.

    Where there are no test images, that share of each class, at least one image, is chosen at random, always the same.
    UsageError.
    """
    folder_of(folder)
    train = folder / "train" if (folder / "train").is_dir() else folder
    test = next((place for name in ("val", "test", "validation", "valid") if (place := folder / name).is_dir()), None)
    if train != folder and test and test_share:
        raise UsageError(f"{folder}: expected --test-share only where there are no test images, found {test}; leave "
                         "out one of them")
    others: list[str] = []
    by_class = _by_class(train, others)
    classes = sorted(by_class)
    names = [sources.printable(name) for name in classes]
    if len(classes) < 2:
        raise UsageError(f"{train}: expected a folder of images for each class, found {', '.join(classes) or 'none'}; "
                         "give the folder above those of the classes")
    if train != folder and test:
        tested = _by_class(test, others)
        if strange := sorted(set(tested) - set(classes)):
            raise UsageError(f"{test}: expected the classes of {train}, found {strange[0]} too; add its training "
                             "images or remove it")
        tested = {name: items for name, items in tested.items() if items}
        return Found(_labelled(by_class, classes, train), _labelled(tested, classes, test), names,
                     _left_out(others))
    if not 0 < test_share < 1:
        raise UsageError(f"{folder}: expected train/ and val/ or test/ in it, found {listing(folder)}; give the share "
                         "of the images that become test images, as --test-share 0.1")
    items = _labelled(by_class, classes, train)
    is_test = chosen(np.array([item.label for item in items]), test_share, [f"{train / name}" for name in classes])
    parts = [[item for item, test in zip(items, is_test, strict=True) if test == part] for part in (False, True)]
    return Found(parts[0], parts[1], names, _left_out(others))


def _by_class(place: Path, others: list[str]) -> dict[str, list[Item]]:
    """Pictures of each class folder or class tar file; those of one that is empty are an empty list.

    What else lies there is added to `others`.
    """
    if place.is_file():
        tars = [item for item in sources.members(sources.of_file(place)) if item.name.endswith(".tar")]
        stems, found = [tar.stem for tar in tars], sources.side_by_side(_pictures, tars)
    elif folders := sources.folders(place):
        stems, found = [path.name for path in folders], sources.side_by_side(_in_folder, folders)
        others += sources.loose(place)
    else:
        paths = sources.tars(place)
        stems, found = [path.stem for path in paths], sources.side_by_side(_pictures, map(sources.of_file, paths))
    others += [name for _, names in found for name in names]
    return {stem: items for stem, (items, _) in zip(stems, found, strict=True)}


def _in_folder(folder: Path) -> tuple[list[Item], list[str]]:
    """The pictures there, and the names of what are none."""
    others: list[str] = []
    return sources.in_folder(folder, others=others), others


def _left_out(others: Sequence[str]) -> tuple[str, ...]:
    """A line, if there are any."""
    more = ", ..." if len(others) > SHOWN else ""
    return (f"{len(others)} file{'s are' if len(others) > 1 else ' is'} no picture in a class's folder, by name and "
            f"place, and left out: {', '.join(others[:SHOWN])}{more}",) if others else ()


def _images(place: Path) -> list[Item]:
    found, _ = _pictures(sources.of_file(place)) if place.is_file() else _in_folder(place)
    if not found:
        raise UsageError(f"{place}: expected images, found none; unpack them there")
    return found


def _pictures(tar: Item) -> tuple[list[Item], list[str]]:
    """The same of a tar file."""
    found: tuple[list[Item], list[Item]] = [], []
    for item in sources.members(tar):
        found[sources.is_picture(item.name)].append(item)
    others, pictures = (sorted(items, key=lambda item: item.name) for items in found)
    return pictures, [item.name for item in others if not os.path.basename(item.name).startswith(".")]


def _labelled(by_class: dict[str, list[Item]], classes: Sequence[str], where: Path) -> list[Item]:
    if empty := [name for name in classes if not by_class.get(name, [None])]:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        raise UsageError(f"{where}: expected images of each class, found none in {', '.join(empty[:3])}{more}; add "
                         "some, or remove what is empty")
    return [item._replace(label=label) for label, name in enumerate(classes) for item in by_class.get(name, ())]


def _first(folder: Path, names: Sequence[str]) -> Path:
    found = next((folder / name for name in names if (folder / name).exists()), None)
    if not found:
        raise UsageError(f"{folder}: expected one of {', '.join(names)}, found {listing(folder)}; give the folder "
                         "that has both the training and the validation images")
    return found


def _synsets_of_val(folder: Path, images: list[Item], labels: Path | None) -> Callable[[Item], str]:
    if labels is None and all(SYNSET.fullmatch(Path(item.name).parent.name) for item in images):
        return lambda item: Path(item.name).parent.name
    found = labels or (folder / SOLUTION if (folder / SOLUTION).is_file() else None)
    return _from_list(found, images) if found else _from_truth(folder, images)


def _from_list(path: Path, images: list[Item]) -> Callable[[Item], str]:
    text = sources.text(sources.read(path), path)
    fields = [re.split(r"[\s,;\"']+", line.strip(" \"'")) for line in text.splitlines()]
    synset_of = {Path(line[0]).stem: name for line in fields for name in line[1:2] if SYNSET.fullmatch(name)}
    missing = [item.name for item in images if item.stem not in synset_of]
    if missing:
        raise UsageError(f"{path}: expected lines of a name and a synset for all {len(images)} validation images, "
                         f"found {len(synset_of)} and none for {missing[0]}; give the list of these images by --labels")
    return lambda item: synset_of[item.stem]


def _from_truth(folder: Path, images: list[Item]) -> Callable[[Item], str]:
    """By the number in an image's name, ILSVRC2012_val_00000001, or else by its place among all."""
    truth, meta = _devkit(folder, TRUTH), _devkit(folder, META)
    if truth is None or meta is None:
        has = f"found {TRUTH}, whose numbers only {META} tells the synsets of" if truth is not None else "found neither"
        raise UsageError(f"{folder}: expected the classes of the validation images, from class folders, {SOLUTION}, "
                         f"--labels FILE, or {TRUTH} and {META} of the devkit, {has}; put {DEVKIT_PACKED} there")
    try:
        synset_of = {int(each["ILSVRC2012_ID"].item()): str(each["WNID"]) for each in matfile.load(meta)["synsets"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{folder}: expected the devkit's {META} with the struct synsets, found none ({error}); "
                         "download it again") from error
    numbers = [int(number) for number in sources.text(truth, folder / TRUTH).split() if number.isdecimal()]
    place = {}
    for order, item in enumerate(images):
        named = re.search(r"_val_(\d+)$", item.stem)
        place[item.name] = int(named[1]) - 1 if named else order
    if max(place.values()) >= len(numbers) or min(place.values()) < 0:
        raise UsageError(f"{folder}: expected a class for each of the validation images in {TRUTH}, found "
                         f"{len(numbers)} for image {max(place.values()) + 1}; take both from one release")
    if strange := {number for number in numbers if number not in synset_of}:
        raise UsageError(f"{folder}: expected the numbers of {TRUTH} in {META}, found no {min(strange)}; take both "
                         "from one release")
    return lambda item: synset_of[numbers[place[item.name]]]


def _devkit(folder: Path, name: str) -> bytes | None:
    path = next((path for place in DEVKIT if (path := folder / place / name).is_file()), None)
    if path:
        return sources.read(path)
    packed = folder / DEVKIT_PACKED
    if packed.is_file():
        try:
            with tarfile.open(packed) as tar:
                found = next((member for member in tar if Path(member.name).name == name and member.isreg()), None)
                file = tar.extractfile(found) if found else None
                return file.read(sources.LARGEST) if file else None
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UsageError(f"{packed}: cannot be unpacked ({error}); download it again") from error
    return None


def _words(folder: Path) -> dict[str, str]:
    """The first word for each synset, as far as there are any."""
    path = next((folder / name for name in WORDS if (folder / name).is_file()), None)
    if path:
        lines = re.findall(r"^(n\d{8})\s+([^,\n]+)", sources.text(sources.read(path), path), re.MULTILINE)
        return {synset: word.strip() for synset, word in lines}
    try:
        synsets = matfile.load(_devkit(folder, META) or b"")["synsets"]
        return {str(each["WNID"]): str(each["words"]).split(",")[0] for each in synsets}
    except (ValueError, KeyError, TypeError):
        return {}                           # where they are needed, _from_truth says what is wrong
