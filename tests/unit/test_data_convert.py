"""Laws of conversion: every published layout gives the same arrays, and a broken one is told in one line."""

import gzip
import json
import os
import pickle
import struct
import sys
from itertools import chain

import numpy as np
import pytest

from dsgd_mpi.data import convert
from dsgd_mpi.data.formats import Dataset, check, write
from dsgd_mpi.errors import UsageError
from tests.support.data_samples import dataset_file

BATCH = 12
RNG = np.random.default_rng(0)
BATCHES = {name: (RNG.integers(0, 256, (BATCH, 32, 32, 3), np.uint8), RNG.integers(0, 10, BATCH).tolist())
           for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")}
GREY = {"train": RNG.integers(0, 256, (20, 28, 28), np.uint8), "t10k": RNG.integers(0, 256, (10, 28, 28), np.uint8)}


def planes(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def binary(folder):
    for name, (images, labels) in BATCHES.items():
        np.c_[np.array(labels, np.uint8), planes(images)].tofile(folder / f"{name}.bin")


def python2_pickle(folder):
    """Opcodes as Python 2 with protocol 2 wrote the published files; Python 3 would write others."""
    def text(value):
        return b"U" + bytes([len(value)]) + value

    for name, (images, labels) in BATCHES.items():
        data = planes(images).tobytes()
        kind = (b"cnumpy\ndtype\n" + text(b"u1") + b"K\0K\1\x87R(K\3" + text(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff"
                + b"K\0tb")
        array = (b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\0\x85" + text(b"b") + b"\x87R"
                 + b"(K\1" + bytes([75, BATCH]) + b"M\0\x0c\x86" + kind + b"\x89T" + struct.pack("<i", len(data)) + data
                 + b"tb")
        numbers = b"](" + b"".join(bytes([75, label]) for label in labels) + b"e"
        (folder / name).write_bytes(b"\x80\2}(" + text(b"data") + array + text(b"labels") + numbers + b"u.")


def python3_pickle(folder):
    for name, (images, labels) in BATCHES.items():
        (folder / name).write_bytes(pickle.dumps({b"data": planes(images), b"labels": labels}, protocol=2))


def png(folder):
    image = pytest.importorskip("PIL.Image")
    for name, (images, _) in BATCHES.items():
        image.fromarray(images.reshape(len(images), 1024, 3)).save(folder / f"{name}.png")
    labels = {name: labels for name, (_, labels) in BATCHES.items()}
    (folder / "test_lables.json").write_text(json.dumps(labels.pop("test_batch")))
    (folder / "train_lables.json").write_text(json.dumps(list(chain(*labels.values()))))


LAYOUTS = [binary, python2_pickle, python3_pickle, png]


def idx(folder, pack=None):
    for part, images in GREY.items():
        labels = (np.arange(len(images)) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()
            path = folder / f"{part}-{kind}-ubyte{'.gz' if pack else ''}"
            path.write_bytes(pack(content) if pack else content)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(convert, "CIFAR10_BATCH", BATCH)


@pytest.mark.parametrize("subfolder", ["", "cifar-10-batches"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_cifar10_gives_the_same_images_in_order(tmp_path, layout, subfolder):
    (tmp_path / subfolder).mkdir(exist_ok=True)
    layout(tmp_path / subfolder)
    content = convert.cifar10(tmp_path)
    names = list(BATCHES)
    np.testing.assert_array_equal(content.train[0], np.concatenate([BATCHES[name][0] for name in names[:5]]))
    assert content.train[1].tolist() == list(chain(*(BATCHES[name][1] for name in names[:5])))
    np.testing.assert_array_equal(content.test[0], BATCHES["test_batch"][0])
    assert content.test[1].tolist() == BATCHES["test_batch"][1]
    write(tmp_path / "x.h5", content)
    check(tmp_path / "x.h5")


@pytest.mark.parametrize("pack", [None, gzip.compress])
def test_fashion_mnist_is_read_packed_or_not(tmp_path, pack):
    idx(tmp_path, pack)
    content = convert.fashion_mnist(tmp_path)
    np.testing.assert_array_equal(content.train[0], GREY["train"][..., None])
    np.testing.assert_array_equal(content.test[0], GREY["t10k"][..., None])
    assert content.test[1].tolist() == list(range(10))
    write(tmp_path / "x.h5", content)
    check(tmp_path / "x.h5")


def amiss(convert_, folder, message):
    with pytest.raises(UsageError, match=message) as told:
        convert_(folder)
    assert "\n" not in str(told.value)


def test_a_folder_that_is_none_or_empty_is_told(tmp_path):
    for function in (convert.fashion_mnist, convert.cifar10):
        amiss(function, tmp_path / "nowhere", "expected a folder, found nothing")
        amiss(function, tmp_path, "expected .*, found an empty folder")
        (tmp_path / "file").touch()
        amiss(function, tmp_path / "file", "expected a folder, found a file")
        (tmp_path / "file").unlink()


def test_a_missing_idx_file_is_named(tmp_path):
    idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    amiss(convert.fashion_mnist, tmp_path, "expected t10k-labels-idx1-ubyte or .*, found t10k-images")


@pytest.mark.parametrize(("change", "message"), [
    (lambda content: content[:-1], r"expected 15696 bytes for \(20, 28, 28\), found 15695"),
    (lambda content: content[:9], "found 9"),
    (lambda content: b"\x89PNG" + content, "begins with 00 00 08 03, found 89 50 4e 47"),
    (lambda content: b"", "found nothing"),
])
def test_a_broken_idx_file_is_told(tmp_path, change, message):
    idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    amiss(convert.fashion_mnist, tmp_path, message)


def test_a_truncated_gzip_file_is_told(tmp_path):
    idx(tmp_path, gzip.compress)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-50])
    amiss(convert.fashion_mnist, tmp_path, "cannot be unpacked")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_batches_are_named(tmp_path, layout):
    layout(tmp_path)
    for path in tmp_path.glob("data_batch_[24]*"):
        path.unlink()
    amiss(convert.cifar10, tmp_path, "expected data_batch_1.*found no data_batch_2.*, data_batch_4")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keep", [0, 100, -100, -3073])
def test_a_truncated_batch_is_told(tmp_path, layout, keep):
    layout(tmp_path)
    path = next(tmp_path.glob("data_batch_3*"))
    path.write_bytes(path.read_bytes()[:keep])
    amiss(convert.cifar10, tmp_path, "data_batch_3.*download it again")


def test_labels_that_are_missing_or_too_few_are_told(tmp_path):
    png(tmp_path)
    labels = tmp_path / "train_lables.json"
    labels.write_text("[1, 2, 3]")
    amiss(convert.cifar10, tmp_path, "expected 12 images and as many labels, found 12 and 3")
    labels.write_text("[1, 2")
    amiss(convert.cifar10, tmp_path, "expected a list of labels as JSON")
    labels.unlink()
    amiss(convert.cifar10, tmp_path, "found no train_lables.json")


def test_without_pillow_the_way_out_is_told(tmp_path, monkeypatch):
    png(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    amiss(convert.cifar10, tmp_path, "pip install pillow")


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL"],)


@pytest.mark.parametrize(("content", "message"), [
    (Evil(), "UnpicklingError: posix.mkdir in it"),
    ([1, 2], "with the keys data and labels, found list"),
    ({b"data": np.zeros((12, 10), np.uint8), b"labels": [0] * 12}, r"expected data as uint8 \(N, 3072\)"),
])
def test_a_pickle_of_anything_else_is_refused_and_not_run(tmp_path, monkeypatch, content, message):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    python2_pickle(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(content, protocol=2))
    amiss(convert.cifar10, tmp_path, message)
    assert not (tmp_path / "evil").exists()


def test_a_subset_has_as_many_of_each_class_and_depends_on_the_seed_alone(tmp_path):
    with Dataset(dataset_file(tmp_path)) as dataset:
        first, again, other = (convert.subset(dataset, 20, 8, seed) for seed in (1, 1, 2))
        assert np.bincount(first.train[1]).tolist() == [5] * 4
        assert np.bincount(first.test[1]).tolist() == [2] * 4
        np.testing.assert_array_equal(first.train[0], again.train[0])
        assert not np.array_equal(first.train[0], other.train[0])
        everything = convert.subset(dataset, 60, 20)
        np.testing.assert_array_equal(everything.train[0], dataset._file["train/images"])


@pytest.mark.parametrize(("count", "use"), [(21, 20), (64, 60), (3, 4), (0, 4)])
def test_a_subset_that_cannot_be_balanced_is_told(tmp_path, count, use):
    with Dataset(dataset_file(tmp_path)) as dataset, pytest.raises(UsageError, match=f"found {count}; use {use}"):
        convert.subset(dataset, count, 8)
