"""Makes sharded sets: each shard exists whole or not at all, so a conversion that was killed goes on where it was.

A shard is made in memory, written under another name, read back, and renamed; the index comes last. What mean and std
need, what was strange and what was skipped is kept in the shard. Run again, a conversion keeps the shards of the same
plan in which no image was broken. Threads make shards side by side: Pillow decodes without Python's lock.
Under a launcher the threads of all ranks do (`ranks`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.hdf5 import Memory, atomic, digest_if_same, place
from dsgd_mpi.data.check import PARTS, Tally, check_contrast, check_layout, check_stored
from dsgd_mpi.data.formats import prepare
from dsgd_mpi.data.pictures import Broken, Picture
from dsgd_mpi.data.shards import KINDS, Digest
from dsgd_mpi.data.storage import reading
from dsgd_mpi.data.work import Job, Work
from dsgd_mpi.errors import UsageError

SHARD_BYTES = 128 << 20                     # a thread has one or two in memory; ImageNet becomes some 1,000 files
SHARD = re.compile(r"(train|test)-\d{5,}\.h5")         # names in the folder of the shards, and those of what does not
SCAFFOLD = re.compile(r"unpacked-\d{5,}\.bin|\..*\.part")             # stay: what `parquet` or a killed process left
SHUFFLE_SEED = 0                            # of the order in which training images are stored


@dataclass(frozen=True)
class Plan:
    """What a set is to be made of: training and test images as items, tuples with a `name`, `label` and `size`, bytes.

    `make(item)` gives the Picture, of pixels `image` (H, W, C), or raises Broken. `jpeg`: store JPEG, not pixels.
    Training images are stored shuffled, so that a run of a shard's images is a sample of all classes.
    """

    train: Sequence[Any]
    test: Sequence[Any]
    classes: Sequence[str]
    source: str
    licence: str
    image: tuple[int, int, int]
    make: Callable[[Any], Picture]
    jpeg: bool = False
    remarks: tuple[str, ...] = ()           # a line each, for the user

    def __len__(self) -> int:
        return len(self.train) + len(self.test)

    def digest(self) -> str:
        """Of all that decides what is stored, but for the images' own content."""
        found = hashlib.sha256(repr((self.image, self.jpeg, SHARD_BYTES, SHUFFLE_SEED)).encode())
        for part in PARTS:
            for item in getattr(self, part):
                found.update(f"{part} {item.name} {item.size} {item.label}\n".encode(errors="surrogateescape"))
        return found.hexdigest()


class Form(NamedTuple):
    """What is made of each item: as in `Plan`, and the items' type, a tuple."""

    image: tuple[int, int, int]
    make: Callable[[Any], Picture]
    jpeg: bool
    item: Callable[..., Any]


@dataclass(frozen=True)
class Made:
    """Numbers of images, what was strange, a line each, and the images that were skipped, with the reason."""

    train: int
    test: int
    remarks: list[str]
    skipped: list[str]


class Shard(NamedTuple):
    """What a shard is made of; it can be stored as JSON."""

    part: str
    name: str                               # relative to the index
    where: str
    plan: str                               # its digest
    items: list[Any]

    @property
    def path(self) -> Path:
        return Path(self.where)


def make(path: Path, plan: Plan, workers: int, strict: bool = False, tick: Callable[[int], Any] = id,
         work: Work | None = None) -> Made:
    """Makes the index `path` and its shards in the folder beside it of the same name; `tick(n)` tells of n more images.

    With `strict`, a broken image ends it. `work`: who does the jobs of the kind "shards". UsageError if anything ends
    it; the shards that are whole stay.
    """
    check_target(path)
    form = Form(plan.image, plan.make, plan.jpeg, type(plan.train[0]))
    work = work or Work({"shards": writer(form, strict)}, workers)
    shards = list(_cut(plan, path))
    missing = [shard for shard in shards if not _kept(shard)]
    tick(len(plan) - sum(len(shard.items) for shard in missing))
    work.do("shards", missing, tick)
    os.listdir(path.with_suffix(""))        # NFS remembers what was not there, until it looks at the folder
    made = _write_index(path, plan, shards)
    for each in path.with_suffix("").iterdir():
        if SCAFFOLD.fullmatch(each.name):
            with suppress(OSError):
                each.unlink()
    return made


def writer(form: Form, strict: bool) -> Job:
    """What makes a shard."""
    def write(job: Shard, done: Callable[[int], bool]) -> None:
        shard = Shard(*job)
        shard = shard._replace(items=[form.item(*each) for each in shard.items])
        if content := _made(shard, form, strict, lambda: done(1)):
            place(shard.path, content.content(), lambda part: digest_if_same(part, content.content()))
    return write


def check_target(path: Path) -> None:
    """That an index may be written there, and its shards to the folder beside it, which is made. UsageError."""
    prepare(path)
    folder = path.with_suffix("")
    if path.exists():
        raise UsageError(f"{path}: expected no such file yet, found one; remove it to convert again, which keeps what "
                         f"is whole in {folder}, or choose another path by --to")
    try:
        folder.mkdir(exist_ok=True)
        others = sorted(name for name in os.listdir(folder) if not (SHARD.fullmatch(name) or SCAFFOLD.fullmatch(name)))
    except OSError as error:
        raise UsageError(f"{folder} cannot be created ({error.strerror}); choose another path by --to") from None
    if others:                              # it may be that of the pictures themselves
        raise UsageError(f"{folder}: expected an empty folder for the shards, or what is whole of them, found "
                         f"{', '.join(others[:3])}{', ...' if len(others) > 3 else ''}; choose another path by --to")


def _cut(plan: Plan, path: Path) -> Iterator[Shard]:
    digest = plan.digest()
    pixels = int(np.prod(plan.image))
    for part in PARTS:
        items = getattr(plan, part)
        order = np.arange(len(items))
        if part == "train":
            order = np.random.default_rng(SHUFFLE_SEED).permutation(order)
        sizes = np.array([items[i].size if plan.jpeg else pixels for i in order.tolist()], np.int64)
        of_shard = (np.cumsum(sizes) - sizes) // SHARD_BYTES
        for number, chosen in enumerate(np.split(order, np.flatnonzero(np.diff(of_shard)) + 1)):
            name = f"{path.stem}/{part}-{number:05}.h5"
            yield Shard(part, name, str(path.parent / name), digest, [items[i] for i in chosen.tolist()])


def _kept(shard: Shard) -> bool:
    """Whether a shard is there, of this plan and without gaps. UsageError if it is of another plan."""
    if not shard.path.exists():
        return False
    with suppress(OSError, KeyError, ValueError), h5py.File(shard.path, "r", locking=False) as file:
        if file.attrs["plan"] != shard.plan:
            raise UsageError(f"{shard.path}: expected a shard of this conversion, found one of other images or "
                             f"options; remove the folder {shard.path.parent}, or choose another path by --to")
        return not _told(file)["skipped"]
    return False


def _told(file: h5py.File) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(file["told"].asstr()[()])
    return told


def _made(shard: Shard, form: Form, strict: bool, go_on: Callable[[], bool]) -> Memory | None:
    """A shard's file; None if it is no longer wanted."""
    labels: list[int] = []
    remarks, skipped = Counter[str](), []
    pixels = np.empty((0 if form.jpeg else len(shard.items), *form.image), np.uint8)
    jpegs, shapes, tally = [], [], Tally(form.image[2])
    for item in shard.items:
        if not go_on():
            return None
        try:
            picture = form.make(item)
        except Broken as problem:
            if strict:
                raise UsageError(f"{item.name}: expected an image, found {problem}; replace or remove it, or leave out "
                                 "--strict, which skips such images") from None
            skipped.append(f"{item.name}: {problem}")
            continue
        tally.add(picture.pixels[None])
        if form.jpeg:
            jpegs.append(picture.jpeg)
            shapes.append(picture.shape)
        else:
            pixels[len(labels)] = picture.pixels
        labels.append(item.label)
        remarks.update(picture.remarks)
    content: dict[str, Array] = {"images": pixels[:len(labels)]}
    if form.jpeg:
        content = {"jpeg": np.frombuffer(b"".join(jpegs), np.uint8),
                   "offsets": np.cumsum([0, *map(len, jpegs)], dtype=np.int64)}
    content["labels"] = np.array(labels, np.int64)
    found, memory = Digest(), Memory()
    memory.clear(sum(values.nbytes for values in content.values()) + (1 << 16))
    for values in content.values():
        found.add(values)
    with h5py.File(memory, "w") as file:
        for name, values in content.items():
            file.create_dataset(name, data=values)
        if form.jpeg:
            file.create_dataset("shape", data=np.array(shapes, np.int64).reshape(-1, 2))
        file.create_dataset("counts", data=tally.counts)
        file.create_dataset("told", data=json.dumps({"remarks": remarks, "skipped": skipped}))
        file.attrs.update(sha256=found.text(), plan=shard.plan)
    return memory


def _write_index(path: Path, plan: Plan, shards: list[Shard]) -> Made:
    tally, remarks, skipped = Tally(plan.image[2]), Counter[str](), []
    about: dict[str, list[tuple[str, str]]] = {part: [] for part in PARTS}
    labels: dict[str, list[Array]] = {part: [] for part in PARTS}
    for shard in shards:
        with reading(shard.path), h5py.File(shard.path, "r", locking=False) as file:
            told = _told(file)
            remarks.update(told["remarks"])
            skipped += [f"{shard.part} {line}" for line in told["skipped"]]
            if len(file["labels"]):
                about[shard.part].append((shard.name, file.attrs["sha256"]))
                labels[shard.part].append(file["labels"][()])
            if shard.part == "train":
                tally.counts += file["counts"][()]
    for part in PARTS:
        if not labels[part]:
            raise UsageError(f"{path}: expected {part} images, found none that can be read, but "
                             f"{'; '.join(skipped[:3])}; give other images")
    lines = [*plan.remarks, *(f"{count} {'image is' if count == 1 else 'images are'} {remark}"
                               for remark, count in sorted(remarks.items()))]
    mean, std = tally.moments()
    check_contrast(mean, std, sum(map(len, labels["train"])), path)
    text = h5py.string_dtype()
    try:
        with atomic(path, verify=lambda file: check_stored(file, check_layout(file, path)[0], path, True)) as file:
            file.attrs.update(mean=mean, std=std, source=plan.source, licence=plan.licence, image=plan.image,
                              kind=KINDS[plan.jpeg])
            for name, values in (("classes", plan.classes), ("remarks", lines), ("skipped", skipped)):
                file.create_dataset(name, data=list(values), dtype=text)
            for part in PARTS:
                file.create_dataset(f"{part}/labels", data=np.concatenate(labels[part]), fletcher32=True,
                                    chunks=(sum(map(len, labels[part])),))
                for name, values in zip(("file", "sha256"), zip(*about[part], strict=True), strict=True):
                    file.create_dataset(f"{part}/shards/{name}", data=list(values), dtype=text)
                file.create_dataset(f"{part}/shards/images", data=[len(each) for each in labels[part]])
    except OSError as error:
        raise UsageError(f"{error}; free some space, and convert again: the shards are kept") from error
    train, test = (sum(map(len, labels[part])) for part in PARTS)
    return Made(train, test, lines, skipped)
