"""Images a second into shuffled batches: `python -m benchmarks.data.input`; prints only.

Ours beside a loop over h5py, PyTorch's DataLoader over h5py, and its DataLoader with Pillow over a folder of JPEG
files, all on the same images and with as many workers: threads of ours, processes of theirs. Each makes batches uint8
(B, S, S, 3): of pixels as they are stored, 256 x 256, and of JPEG a random-resized crop of 224 x 224, mirrored or not.

What bounds them is measured too: a bare sequential read, and the same crops of JPEG in memory in as many threads.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import click
import h5py
import numpy as np
from PIL import Image

from benchmarks.shared.contest import Contestant, Failed, Work, compare, summary
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.data import Batches, Recipe, bench, crops, pictures, sharding
from dsgd_mpi.data.augment import DRAWS, MIRROR
from dsgd_mpi.data.formats import Dataset

SIDE, HEIGHT, WIDTH = 256, 375, 500         # of images as stored, and of pictures as ImageNet has them
CROP = 224                                  # side of what the network sees
DIFFERENT = 64                              # pictures; the others are the same again
BATCHES = 16                                # in a sample
ALIKE = 2e-3                                # how far the mean of all pixels may be off: decoders round differently
PAIRS = (("pixels: ours, blocks", "pixels: bare sequential read"), ("pixels: ours, full", "pixels: h5py, a loop"),
         ("pixels: ours, full", "pixels: h5py, DataLoader"), ("JPEG: ours, full", "JPEG: Pillow, DataLoader"),
         ("JPEG: ours, full", "JPEG: decoding alone"))


class Item(NamedTuple):
    """A picture of a set that is to be made."""

    name: str
    label: int
    size: int
    content: bytes


def content(number: int) -> bytes:
    """A JPEG of some 100 KB, smooth with a little noise."""
    draw = np.random.default_rng(number)
    coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), np.uint8)).resize((WIDTH, HEIGHT))
    noisy = np.asarray(coarse, np.float64) + draw.normal(0, 8, (HEIGHT, WIDTH, 1))
    return pictures.encoded(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), 90)


def make(folder: Path, images: int, workers: int) -> None:
    """Sets of the same images: sharded pixels and JPEG, pixels in one piece, and a folder of JPEG files."""
    distinct = [content(number) for number in range(DIFFERENT)]
    pixels = [pictures.decoded(each, SIDE) for each in distinct]
    items = [Item(f"{number:06}.jpg", number % 10, len(distinct[number % DIFFERENT]), distinct[number % DIFFERENT])
             for number in range(images)]
    for jpeg in (False, True):
        def picture(item: Item, jpeg: bool = jpeg) -> pictures.Picture:
            found = pixels[int(item.name[:6]) % DIFFERENT]
            return pictures.Picture(found, item.content if jpeg else b"", (HEIGHT, WIDTH), ())

        plan = sharding.Plan(items, items[:10], [str(label) for label in range(10)], "made up", "none",
                             (SIDE, SIDE, 3), picture, jpeg)
        sharding.make(folder / ("jpeg.h5" if jpeg else "pixels.h5"), plan, workers)
    with h5py.File(folder / "plain.h5", "w") as file:
        stored = file.create_dataset("images", (images, SIDE, SIDE, 3), np.uint8)
        for number in range(images):
            stored[number] = pixels[number % DIFFERENT]
    (folder / "files").mkdir()
    for item in items:
        (folder / "files" / item.name).write_bytes(item.content)


def served(batches: Iterator[Any], check: Callable[[], float]) -> tuple[Work, list[float]]:
    def one() -> None:
        next(batches)
    return {"batch": one}, [check()]


def ours(name: str, shuffle: str, batch: int, workers: int, started: Callable[[], None]) -> tuple[Work, list[float]]:
    """Of a set of `dsgd_mpi`."""
    split = Dataset(name).train
    started()
    batches = Batches(split.sized(CROP) if split.jpeg else split, batch, augment=split.jpeg, byte_memory=bench.memory,
                      recipe=Recipe("resized"), shuffle=shuffle, threads=workers)
    return served(batches.stream(), partial(mean_of, split))


def mean_of(split: Any) -> float:
    """Of the pixels of the different images, which all contestants have; where they are stored, `sharding` decides."""
    found = np.empty((DIFFERENT, SIDE, SIDE, 3), np.uint8)
    where = np.argsort(np.random.default_rng(sharding.SHUFFLE_SEED).permutation(len(split)))
    split.read(where[:DIFFERENT], found)
    return float(found.mean())


def orders(images: int, batch: int) -> Iterator[Array]:
    """Batches of a shuffle, epoch after epoch."""
    for epoch in count():
        order = np.random.default_rng(epoch).permutation(images)
        yield from order[:images // batch * batch].reshape(-1, batch)


def h5py_loop(name: str, batch: int, started: Callable[[], None]) -> tuple[Work, list[float]]:
    """One image after the other from one file, without a thread."""
    images = h5py.File(name)["images"]
    started()

    def batches() -> Iterator[Array]:
        for indices in orders(len(images), batch):
            yield np.stack([images[index] for index in indices])

    return served(batches(), lambda: float(images[:DIFFERENT].mean()))


class Rows:
    """A data set for a DataLoader: images from one HDF5 file, opened by each worker."""

    def __init__(self, name: str) -> None:
        self.name, self.images = name, None
        with h5py.File(name) as file:
            self.count = len(file["images"])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        import torch
        if self.images is None:
            self.images = h5py.File(self.name)["images"]
        return torch.from_numpy(self.images[index])

    def mean(self) -> float:
        """As `mean_of`."""
        with h5py.File(self.name) as file:
            return float(file["images"][:DIFFERENT].mean())


class Folder:
    """The same of a folder of JPEG files, as torchvision's ImageFolder and RandomResizedCrop read and crop them."""

    def __init__(self, name: str) -> None:
        self.paths = sorted(Path(name).iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        import torch
        draws = np.random.default_rng().random(DRAWS)
        with Image.open(self.paths[index]) as image:
            top, left, height, width = crops.random_box(draws, image.height, image.width)
            found = image.convert("RGB").crop((left, top, left + width, top + height))
        found = found.resize((CROP, CROP), Image.Resampling.BILINEAR)
        if draws[MIRROR] < 0.5:
            found = found.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(found))

    def mean(self) -> float:
        """As `mean_of`."""
        return float(np.mean([pictures.fitted(Image.open(path).convert("RGB"), SIDE).mean()
                              for path in self.paths[:DIFFERENT]]))


def loader(kind: type[Any], name: str, batch: int, workers: int, started: Callable[[], None]
           ) -> tuple[Work, list[float]]:
    """PyTorch's DataLoader."""
    import torch
    torch.set_num_threads(1)
    images = kind(name)
    started()
    made = torch.utils.data.DataLoader(images, batch, shuffle=True, num_workers=workers, drop_last=True,
                                       persistent_workers=True)

    def batches() -> Iterator[Any]:
        while True:
            yield from made

    return served(batches(), images.mean)


def decoding(batch: int, workers: int, started: Callable[[], None]) -> tuple[Work, list[float]]:
    """JPEG in memory to random-resized crops, and no more."""
    distinct, pool = [content(number) for number in range(DIFFERENT)], ThreadPoolExecutor(workers)
    started()
    some = (distinct * (batch // DIFFERENT + 1))[:batch]

    def crop(content: bytes, draws: Array) -> None:
        crops.random_crop(content, draws, CROP, CROP)

    def one() -> None:
        list(pool.map(crop, some, np.random.default_rng().random((batch, DRAWS))))
    return {"batch": one}, [float(np.mean([pictures.decoded(each, SIDE).mean() for each in distinct]))]


def tree_bytes(pid: int) -> int:
    """Memory of a process and those that it started; what several share counts once."""
    total, todo = 0, [pid]
    while todo:
        one = Path(f"/proc/{todo.pop()}")
        lines = (one / "smaps_rollup").read_text().splitlines()
        total += 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])
        todo += [int(child) for task in (one / "task").iterdir() for child in (task / "children").read_text().split()]
    return total


@click.command()
@click.option("--images", default=2000, show_default=True, help="Of which all sets are made.")
@click.option("--batch", default=64, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Threads of ours, processes of theirs.")
@click.option("--rounds", default=5, show_default=True, help=f"In each all take {BATCHES} batches, in turns.")
@click.option("--cold", is_flag=True, help="Drop the files from the system's memory before each turn.")
@click.option("--at", default=None, help="Folder for the sets, 1.3 MB an image, removed afterwards.  [default: /tmp]")
def main(images: int, batch: int, workers: int, rounds: int, cold: bool, at: str | None) -> None:
    """Time them, in turns."""
    folder = Path(tempfile.mkdtemp(dir=at))
    try:
        make(folder, images, workers)
        contest(folder, batch, workers, rounds, cold)
    finally:
        shutil.rmtree(folder)


def contest(folder: Path, batch: int, workers: int, rounds: int, cold: bool) -> None:
    made: dict[str, tuple[Any, ...]] = {
        "pixels: ours, full": (ours, str(folder / "pixels.h5"), "full", batch, workers),
        "pixels: ours, blocks": (ours, str(folder / "pixels.h5"), "blocks", batch, workers),
        "pixels: h5py, a loop": (h5py_loop, str(folder / "plain.h5"), batch),
        "pixels: h5py, DataLoader": (loader, Rows, str(folder / "plain.h5"), batch, workers),
        "JPEG: ours, full": (ours, str(folder / "jpeg.h5"), "full", batch, workers),
        "JPEG: ours, blocks": (ours, str(folder / "jpeg.h5"), "blocks", batch, workers),
        "JPEG: Pillow, DataLoader": (loader, Folder, str(folder / "files"), batch, workers),
        "JPEG: decoding alone": (decoding, batch, workers)}
    files = [path for path in folder.rglob("*") if path.is_file()]
    sequential = [path for path in files if path.parent.name == "pixels"]
    with ThreadPoolExecutor() as pool:
        contestants = dict(zip(made, pool.map(lambda name: Contestant(name, max(2, workers), *made[name]), made),
                               strict=True))
    try:
        for name, contestant in contestants.items():
            compare(contestant, contestants[f"{name.partition(':')[0]}: ours, full"], [ALIKE])
        rates: dict[str, list[float]] = {"pixels: bare sequential read": []} | {name: [] for name in made}
        for _ in range(rounds):
            for name, samples in rates.items():
                if cold:
                    bench.drop(files)
                if name not in contestants:
                    samples.append(bench.bare(sequential, 60.0) / SIDE / SIDE / 3)
                    continue
                contestant = contestants[name]
                try:
                    contestant.time("batch", BATCHES)       # what was made while the others were at it
                    samples.append(batch / contestant.time("batch", BATCHES))
                except Failed as reason:
                    print(reason)
        for name, samples in rates.items():
            if samples:
                middle, low, high = summary(samples)
                known = contestants.get(name)
                memory = f"{tree_bytes(known.process.pid or 0) / 2**20:6.0f} MiB" if known else ""
                print(f"{name:30} {middle:8,.0f} images/s ({low:,.0f} to {high:,.0f}) {memory}")
        for mine, theirs in PAIRS:
            if rates[mine] and len(rates[mine]) == len(rates[theirs]):
                print(f"{mine} / {theirs}: {np.median(np.divide(rates[mine], rates[theirs])):.2f}")
    finally:
        for contestant in contestants.values():
            contestant.stop()


if __name__ == "__main__":
    main()
