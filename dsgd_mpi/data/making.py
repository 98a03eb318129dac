"""`data imagenet`, `folder`, `webdataset` ...: sharded sets, made by threads of all ranks, with a bar."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from dsgd_mpi.data import layouts, parquet, pictures, ranks
from dsgd_mpi.data import webdataset as finder
from dsgd_mpi.data.formats import data_folder
from dsgd_mpi.data.pictures import Picture
from dsgd_mpi.data.progress import shown
from dsgd_mpi.data.sharding import Form, Plan, check_target, make, writer
from dsgd_mpi.data.sources import Item, printable
from dsgd_mpi.data.work import Work
from dsgd_mpi.errors import UsageError

PATH = click.Path(path_type=Path)
SHOWN = 20                                  # images that were skipped; `data info` lists all
SYNTHETIC_IMAGES = 10_000
Command = Callable[..., None]


def options(command: Command) -> Command:
    """Those of all that makes sharded sets of pictures."""
    for option in reversed((
            click.option("--from", "folder", type=PATH, required=True, metavar="FOLDER", help="Where the images are."),
            click.option("--size", default=256, show_default=True, type=click.IntRange(1, 4096), help="Pixels: the "
                         "shorter side is scaled to it, and the middle of the longer is taken."),
            click.option("--jpeg", is_flag=True, help="Store JPEG files as they are; each is decoded, to --size, when "
                         "it is read, by simplejpeg."),
            workers_option,
            click.option("--strict", is_flag=True, help="Stop at a broken image; otherwise such are listed and left "
                         "out."))):
        command = option(command)
    return command


workers_option = click.option("--workers", type=click.IntRange(1, 1024), default=None, show_default="this machine's "
                              "cores", help="Threads, of each rank; each takes some 400 MB.")


licence_option = click.option("--licence", default="not stated", show_default=True, help="Of the images, for those who "
                              "read the file.")


@click.command("imagenet")
@options
@click.option("--labels", type=PATH, metavar="FILE", help="A line for each validation image, its name and its synset.")
@click.option("--to", type=PATH, help="Index to write, *.h5; the shards go to a folder beside it.  [default: "
              "imagenet.h5 in $DSGD_DATA_DIR or ~/.cache/dsgd_mpi, where training finds it by name]")
def imagenet(folder: Path, labels: Path | None, to: Path | None, **how: Any) -> None:
    """Convert ILSVRC2012 as published: 1,281,167 + 50,000 photographs in 1000 classes.

    FOLDER holds the training images: ILSVRC2012_img_train.tar, or train/ with a folder or a tar file for each synset;
    and the validation images: ILSVRC2012_img_val.tar, or val/ with the images or with a folder for each synset. Where
    there are none such, what tells their classes: LOC_val_solution.csv, --labels FILE, or
    ILSVRC2012_validation_ground_truth.txt and meta.mat, unpacked or in ILSVRC2012_devkit_t12.tar.gz. The unpacked
    archive of Kaggle is found too. Run again after a kill, it goes on where it was.
    """
    _pictures(to or data_folder() / "imagenet.h5", lambda work: layouts.imagenet(folder, labels),
              "ILSVRC2012, https://image-net.org, Russakovsky et al. 2015 (arXiv:1409.0575)",
              "for non-commercial research and education only, https://image-net.org/download", **how)


@click.command("folder")
@options
@click.option("--test-share", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=None,
              help="Share of the images of each class that become test images, where there is no val/ or test/ folder.")
@licence_option
@click.option("--to", type=PATH, required=True, help="Index to write, *.h5; the shards go to a folder beside it.")
def folder(folder: Path, test_share: float | None, licence: str, to: Path, **how: Any) -> None:
    """Convert pictures in one folder for each class, in train/ and in val/ or test/ of FOLDER.

    Without these two, FOLDER holds the folders of the classes, and --test-share says how much of each is for testing.
    """
    _pictures(to, lambda work: layouts.class_folders(folder, test_share or 0), printable(folder.absolute()), licence,
              **how)


def packed_options(command: Command) -> Command:
    """Those of files that hold many pictures each."""
    for option in reversed((
            click.option("--test-share", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=None,
                         help="Share of the images of each class that become test images, where there are no files of "
                         "such."),
            click.option("--classes", type=PATH, metavar="FILE", help="A line for each class, its name."),
            click.option("--first-label", type=click.IntRange(0, 10**6), default=None, help="What labels are counted "
                         "from.  [default: 0, of which there has to be an image]"),
            licence_option,
            click.option("--to", type=PATH, required=True, help="Index to write, *.h5; the shards go to a folder "
                         "beside it."))):
        command = option(command)
    return options(command)


@click.command("webdataset")
@packed_options
def webdataset(folder: Path, test_share: float | None, classes: Path | None, first_label: int | None, licence: str,
               to: Path, **how: Any) -> None:
    """Convert WebDataset's tar shards: KEY.jpg, .jpeg or .png, and its label in KEY.cls, or in KEY.json as `label`.

    The tar files are in FOLDER or below it, and have the words train, and validation, val or test, in their names or
    those of their folders. Names of the classes are those in --classes, or in classes.txt or classnames.txt in FOLDER.
    """
    _pictures(to, lambda work: finder.find(folder, test_share, first_label, classes),
              printable(folder.absolute()), licence, **how)


@click.command("hf-parquet")
@packed_options
@click.option("--image-column", metavar="NAME", help="The column with the pictures.  [default: that of the metadata, "
              "or image or img]")
@click.option("--label-column", metavar="NAME", help="The column with the classes.  [default: that of the metadata, "
              "or label, labels or fine_label]")
def hf_parquet(folder: Path, test_share: float | None, classes: Path | None, first_label: int | None, licence: str,
               to: Path, image_column: str | None, label_column: str | None, **how: Any) -> None:
    """Convert Parquet files as Hugging Face keeps them: a column image, {bytes, path}, and a column label.

    The files are in FOLDER or below it, and have the words train, and validation or test, in their names or those of
    their folders. Names of the classes are those in --classes, in classes.txt in FOLDER, or in the files. While it
    lasts, the conversion takes as much disk again as the Parquet files.
    """
    def find(work: Work) -> layouts.Found:
        files = parquet.find(folder, test_share, first_label, classes, image_column, label_column)
        there = to.with_suffix("")
        with shown(len(files), "images unpacked") as tick:
            work.do("unpack", files.jobs(there), tick)
        return files.found(there)

    _pictures(to, find, printable(folder.absolute()), licence,
              lambda: parquet.check_pyarrow(f"{folder}: reading Parquet files"), **how)


class Drawn(NamedTuple):
    """An image that is made up, as an item."""

    name: str
    label: int
    size: int


@click.command("synthetic")
@click.argument("what", metavar="HxWxC:CLASSES[:IMAGES]")
@click.option("--jpeg", is_flag=True, help="Store JPEG: only of square images of 3 channels.")
@workers_option
@click.option("--to", type=PATH, required=True, help="Index to write, *.h5; the shards go to a folder beside it.")
def synthetic(what: str, jpeg: bool, workers: int | None, to: Path) -> None:
    """Make up images, such as 224x224x3:1000: a pattern for each class, in noise. For trying things out.

    IMAGES training images, 10,000 by default, and a tenth of that for testing.
    """
    found = re.fullmatch(r"(\d{1,4})x(\d{1,4})x(\d):(\d{1,6})(?::(\d{1,9}))?", what)
    numbers = [int(number or SYNTHETIC_IMAGES) for number in found.groups()] if found else [0]
    if 0 in numbers or numbers[3] > numbers[4] or (jpeg and (numbers[0] != numbers[1] or numbers[2] != 3)):
        square = " with --jpeg, square and of 3 channels," if jpeg else ""
        raise UsageError(f"expected HxWxC:CLASSES[:IMAGES]{square} with no more classes than images, found {what}; "
                         "for instance 224x224x3:1000:10000")
    height, width, channels, classes, images = numbers
    items = [[Drawn(f"{part} {i}", i % classes, height * width // 3) for i in range(count)]
             for part, count in (("train", images), ("test", max(1, images // 10)))]
    form = Form((height, width, channels), partial(_drawn, (height, width, channels), jpeg), jpeg, Drawn)
    plan = Plan(items[0], items[1], [f"pattern {i}" for i in range(classes)], f"made up, {what}", "none needed",
                form.image, form.make, form.jpeg)
    _together(lambda work: _make(to, plan, work), form, workers, False,
              lambda: pictures.check_decoder(f"{to}") if jpeg else None)


def _drawn(shape: tuple[int, int, int], jpeg: bool, item: Drawn) -> Picture:
    height, width, channels = shape
    pattern = np.random.default_rng((1, item.label)).integers(64, 192, (8, 8, channels), np.uint8)
    rng = np.random.default_rng((2, *item.name.encode()))
    noise = rng.integers(0, 64, (-(-height // 4), -(-width // 4), channels))
    rows, columns = np.arange(height), np.arange(width)
    of_class = pattern[(rows * 8 // height)[:, None], columns * 8 // width].astype(int)
    pixels = np.clip(of_class + noise[(rows // 4)[:, None], columns // 4] - 32, 0, 255).astype(np.uint8)
    if not jpeg:
        return Picture(pixels, b"", (height, width), ())
    from PIL import Image
    stored = pictures.encoded(Image.fromarray(pixels), 75)
    return Picture(pictures.decoded(stored, height), stored, (height, width), ())


def _pictures(to: Path, find: Callable[[Work], layouts.Found], source: str, licence: str,
              ready: Callable[[], None] = lambda: None, *, size: int, jpeg: bool, workers: int | None, strict: bool
              ) -> None:
    def check() -> None:
        pictures.check_decoder(to) if jpeg else pictures.check_pillow(f"{to}: converting pictures")
        ready()

    def picture(item: Item) -> Picture:
        return item.picture(size, jpeg)

    def lead(work: Work) -> None:
        check_target(to)                    # to find the pictures may take minutes
        found = find(work)
        _make(to, Plan(found.train, found.test, found.classes, source, licence, form.image, form.make, jpeg,
                       (*found.remarks, *pictures.not_looked_for())), work)

    form = Form((size, size, 3), picture, jpeg, Item)
    _together(lead, form, workers, strict, check)


def _together(lead: Callable[[Work], None], form: Form, workers: int | None, strict: bool, ready: Callable[[], None]
              ) -> None:
    ranks.run(lead, {"shards": writer(form, strict), "unpack": parquet.unpack}, workers, ready)


def _make(to: Path, plan: Plan, work: Work) -> None:
    with shown(len(plan)) as tick:
        made = make(to, plan, work.workers, tick=tick, work=work)
    for remark in made.remarks:
        click.echo(f"Warning: {remark}", err=True)
    for image in made.skipped[:SHOWN]:
        click.echo(f"Warning: left out {image}", err=True)
    if len(made.skipped) > SHOWN:
        click.echo(f"Warning: left out {len(made.skipped) - SHOWN} more; `data info {to}` lists all", err=True)
    shards = list(to.with_suffix("").glob("*.h5"))
    size = sum(path.stat().st_size for path in shards)
    click.echo(f"{to}: {made.train} training and {made.test} test images in {len(shards)} shards, {size / 1e6:.1f} MB")
