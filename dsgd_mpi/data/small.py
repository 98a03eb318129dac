"""More data sets that are a few arrays: MNIST (LeCun et al. 1998), CIFAR-100 (Krizhevsky 2009), and any in .npz."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.data.check import one_hot, statistics
from dsgd_mpi.data.convert import CIFAR10_IMAGE, NOT_PUBLISHED, folder_of, from_planes, idx_files, listing, read_file
from dsgd_mpi.data.formats import Content
from dsgd_mpi.data.parts import MOST_CLASSES, unknown_classes
from dsgd_mpi.data.pickles import array, load, text
from dsgd_mpi.data.sources import printable
from dsgd_mpi.errors import UsageError

DIGITS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
MNIST_COUNTS = (60_000, 10_000)
MNIST_MOMENTS = (0.1307, 0.3081)            # mean and std of the published training images, to 4 digits
KNOWN_MEANS = {0.2860: "Fashion-MNIST", 0.1918: "KMNIST"}
CIFAR100_COUNTS = {"train": 50_000, "test": 10_000}
CIFAR100_CLASSES = 100
KEYS = (("x_train", "y_train", "x_test", "y_test"), ("train_images", "train_labels", "test_images", "test_labels"))


def mnist(folder: str | Path, as_is: bool = False) -> Content:
    """60,000 + 10,000 images (28, 28, 1) from the four idx files. UsageError if one is damaged, or of another set.

    Others have files of the same names; `as_is` takes them.
    """
    folder, train, test = idx_files(folder, len(DIGITS), {})
    mean, std = (float(value[0]) for value in statistics(train[0]))
    found = f"{len(train[0])} + {len(test[0])} images with mean {mean:.4f} and std {std:.4f}"
    published = ((len(train[0]), len(test[0])) == MNIST_COUNTS
                 and np.allclose((mean, std), MNIST_MOMENTS, rtol=0, atol=1e-4))
    if not published and not as_is:
        other = next((f", as of {name}" for value, name in KNOWN_MEANS.items() if abs(mean - value) < 1e-4), "")
        command = " by `data fashion-mnist`" if "Fashion" in other else ""
        raise UsageError(f"{folder}: expected MNIST as published, {MNIST_COUNTS[0]} + {MNIST_COUNTS[1]} images with "
                         f"mean {MNIST_MOMENTS[0]:.4f} and std {MNIST_MOMENTS[1]:.4f}, found {found}{other}; convert "
                         f"that{command}, fetch MNIST, or, if these are a part or a variant of it, add --as-is")
    source = "MNIST, http://yann.lecun.com/exdb/mnist" + ("" if published else NOT_PUBLISHED)
    return Content(train, test, DIGITS, source, "none stated; LeCun, Cortes and Burges",
                   "" if published else f"{folder}: not MNIST as published, {found}")


def cifar100(folder: str | Path) -> Content:
    """50,000 + 10,000 images (32, 32, 3) with their fine labels, from pickles or binary files. UsageError."""
    folder = folder_of(folder)
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        for names, read in ((("train", "test", "meta"), _pickled), (("train.bin", "test.bin", "fine_label_names.txt"),
                                                                    _binary)):
            if (place / names[0]).is_file():
                if missing := [name for name in names if not (place / name).is_file()]:
                    raise UsageError(f"{place}: expected {', '.join(names)}, found no {', '.join(missing)}; unpack all "
                                     "of the archive")
                train, test = (_checked(place / name, *read(place / name)) for name in names[:2])
                return Content(train, test, _names(place / names[2]),
                               "CIFAR-100, https://www.cs.toronto.edu/~kriz/cifar.html",
                               "none stated; Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009")
    raise UsageError(f"{folder}: expected train, test and meta, or train.bin, test.bin and fine_label_names.txt, in it "
                     f"or in a subfolder, found {listing(folder)}; give the folder that the archive was unpacked to")


def _checked(path: Path, images: Array, labels: Any) -> tuple[Array, Array]:
    count = CIFAR100_COUNTS[path.stem]
    found = np.asarray(labels)
    if found.ndim != 1 or found.dtype.kind not in "iu" or len(images) != len(found) or len(images) != count:
        raise UsageError(f"{path}: expected {count} images and as many integer labels, found {len(images)} and labels "
                         f"{found.dtype} {found.shape}; download it again")
    if not 0 <= found.min() <= found.max() < CIFAR100_CLASSES:
        raise UsageError(f"{path}: expected labels from 0 to 99, found {found.min()} to {found.max()}; download it "
                         "again")
    return images, found.astype(np.uint8)


def _pickle(path: Path) -> dict[str, Any]:
    content = read_file(path, Path.read_bytes)
    try:
        return {text(key): array(value) for key, value in load(content).items()}
    except Exception as error:              # bytes that are not a pickle may raise anything
        raise UsageError(f"{path}: expected a pickle of arrays, found {type(error).__name__}: "
                         f"{' '.join(str(error).split())[:200]}; download it again") from error


def _pickled(path: Path) -> tuple[Array, Any]:
    content = _pickle(path)
    images, labels = content.get("data"), content.get("fine_labels")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (CIFAR10_IMAGE,):
        raise UsageError(f"{path}: expected data as uint8 (N, {CIFAR10_IMAGE}), found the keys "
                         f"{', '.join(list(content)[:6])[:200]}; download it again")
    if not isinstance(labels, list) or not all(isinstance(label, int) and abs(label) < 2**31 for label in labels):
        raise UsageError(f"{path}: expected fine_labels, a list of integers, found {type(labels).__name__}; if these "
                         "are CIFAR-10's files, use `data cifar10`, else download it again")
    return from_planes(images), labels


def _binary(path: Path) -> tuple[Array, Any]:
    content = np.frombuffer(read_file(path, Path.read_bytes), np.uint8)
    record = 2 + CIFAR10_IMAGE              # coarse label, fine label, image
    if len(content) % record:
        raise UsageError(f"{path}: expected records of {record} bytes, two labels and an image, found {len(content)} "
                         f"bytes, {len(content) % record} too many; download it again")
    records = content.reshape(-1, record)
    return from_planes(records[:, 2:]), records[:, 1]


def _names(path: Path) -> list[str]:
    if path.suffix == ".txt":
        names = read_file(path, Path.read_bytes).decode("latin1").split()
    else:
        found = _pickle(path).get("fine_label_names")
        names = [text(name) for name in found] if isinstance(found, list) else []
    if len(names) != CIFAR100_CLASSES:
        raise UsageError(f"{path}: expected the names of {CIFAR100_CLASSES} classes, found {len(names)}; download it "
                         "again")
    return names


def npz(path: Path, licence: str) -> Content:
    """Images and labels of a .npz file, by one of the sets of `KEYS`; grey images get their channel. UsageError."""
    arrays = _arrays(path)
    keys = next((keys for keys in KEYS if set(keys) <= set(arrays)), None)
    if keys is None:
        raise UsageError(f"{path}: expected the arrays {' or '.join(', '.join(keys) for keys in KEYS)}, found "
                         f"{', '.join(list(arrays)[:8]) or 'none'}; save them by those names")
    train_x, train_y, test_x, test_y = (arrays[key] for key in keys)
    (train, test) = ((_images(x, name, path), _labels(y, name_y, len(x), path)) for x, name, y, name_y in
                     ((train_x, keys[0], train_y, keys[1]), (test_x, keys[2], test_y, keys[3])))
    highest, tested = (int(labels.max()) for _, labels in (train, test))
    if tested > highest:
        way_out = (f"subtract 1 from {keys[3]}" if (int(test[1].min()), tested) == (1, highest + 1) else
                   "leave out test images of other classes, or add training images of these")
        raise UsageError(f"{path}: expected {keys[3]} from 0 to {highest}, as {keys[1]}, found {test[1].min()} to "
                         f"{tested}; {way_out}")
    found = arrays.get("classes", np.arange(highest + 1))
    if found.ndim != 1 or len(found) <= highest:
        raise UsageError(f"{path}: expected a list of names for {highest + 1} classes in classes, found "
                         f"{len(found) if found.ndim == 1 else found.shape}; add the others")
    classes = [str(each) for each in found]
    return Content(train, test, classes, printable(path.absolute()), licence,
                   "".join(unknown_classes(train[1], classes)))


def _arrays(path: Path) -> dict[str, Array]:
    try:
        with open(path, "rb") as file:
            found = np.load(file, allow_pickle=False)
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise ValueError("one array alone")
            with found:
                return {name: found[name] for name in found.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, MemoryError) as error:
        if isinstance(error, OSError) and error.errno:
            raise UsageError(f"{path}: cannot be read ({error.strerror}); give the path of a .npz file") from error
        raise UsageError(f"{path}: expected a .npz file of arrays, found {' '.join(str(error).split())[:120]}; save it "
                         "by np.savez(FILE, x_train=..., y_train=..., x_test=..., y_test=...)") from error


def _images(found: Array, name: str, path: Path) -> Array:
    images = found[..., None] if found.ndim == 3 else found
    expected = f"{path}: expected {name} as uint8 (N, H, W) or (N, H, W, C), found {found.dtype} {found.shape}"
    if not len(found):
        raise UsageError(f"{path}: expected some images in {name}, found none; give both parts some")
    if images.ndim != 4 or 0 in images.shape:
        raise UsageError(f"{expected}; give each image its height and width: {name}.reshape(-1, height, width, "
                         "channels)")
    if images.shape[1] <= 4 < min(images.shape[2:]):
        raise UsageError(f"{expected}, whose second length looks like the number of channels; channels come last: "
                         f"`np.transpose({name}, (0, 2, 3, 1))`")
    if images.dtype != np.uint8:
        raise UsageError(f"{expected}; images are normalised when they are read, so {_as_bytes(images, name)}")
    return images


def _as_bytes(images: Array, name: str) -> str:
    """The way out for numbers of another type; no way that would change any in silence."""
    low, high = (images.min(), images.max()) if images.dtype.kind in "iuf" else (np.nan, np.nan)
    if low >= 0 and high <= 255:
        scale = " * 255" if images.dtype.kind == "f" and high <= 1 else ""
        return f"save bytes from 0 to 255: `np.uint8(np.round({name}{scale}))`"
    if images.dtype == np.uint16:
        return f"save bytes, as the upper halves of these: `np.uint8({name} >> 8)`"
    return f"save them as they were before that, as bytes from 0 to 255; these are from {low:g} to {high:g}"


def _labels(found: Array, name: str, images: int, path: Path) -> Array:
    labels = found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found
    expected = (f"{path}: expected {name} as integers, one for each of {images} images, found {found.dtype} "
                f"{found.shape}")
    if labels.ndim == 2 and len(labels) == images and labels.dtype.kind in "biuf":
        raise UsageError(f"{expected}; {one_hot(labels, name)}")
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != images:
        raise UsageError(f"{expected}; give each image the number of its class, counted from 0")
    if labels.max() >= MOST_CLASSES:
        raise UsageError(f"{path}: expected {name} below {MOST_CLASSES}, found {labels.max()}; give each image the "
                         "number of its class, counted from 0")
    if labels.min() != 0 and "train" in name:
        raise UsageError(f"{path}: expected {name} counted from 0, found {labels.min()} to {labels.max()}; subtract "
                         f"{labels.min()} from all labels, of the test images too")
    return labels.astype(np.int64)
