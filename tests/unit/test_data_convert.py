"""Laws of conversion: every published layout gives the same arrays, and a broken one is told in one line."""

import gzip
import hashlib
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


def idx_file(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


FILES = [(f"{part}-{kind}-ubyte", idx_file(array)) for part, images in GREY.items()
         for kind, array in (("images-idx3", images), ("labels-idx1", (np.arange(len(images)) % 10).astype(np.uint8)))]


def idx(folder, pack=None):
    for name, made in FILES:
        (folder / f"{name}{'.gz' if pack else ''}").write_bytes(pack(made) if pack else made)


@pytest.fixture(autouse=True)
def small_sets(monkeypatch):
    """Those of these tests count as published."""
    monkeypatch.setattr(convert, "CIFAR10_BATCH", BATCH)
    monkeypatch.setattr(convert, "FASHION_MNIST", {name: hashlib.sha256(made).hexdigest() for name, made in FILES})


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


@pytest.mark.parametrize("subfolder", ["raw", "FashionMNIST/raw"])
def test_fashion_mnist_is_found_where_torchvision_puts_it(tmp_path, subfolder):
    (tmp_path / subfolder).mkdir(parents=True)
    idx(tmp_path / subfolder)
    np.testing.assert_array_equal(convert.fashion_mnist(tmp_path).train[0][..., 0], GREY["train"])


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", bytes), ("", gzip.compress)])
def test_what_a_browser_has_unpacked_under_its_old_name_is_read(tmp_path, suffix, pack):
    for name, made in FILES:
        (tmp_path / f"{name}{suffix}").write_bytes(pack(made))
    np.testing.assert_array_equal(convert.fashion_mnist(tmp_path).train[0][..., 0], GREY["train"])


@pytest.mark.parametrize("name", [name for name, _ in FILES])
def test_another_set_under_the_same_names_is_taken_only_as_it_is(tmp_path, name):
    idx(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1] + b"\1")
    amiss(convert.fashion_mnist, tmp_path, rf"expected Fashion-MNIST as published, .* other content in {name}, 20 \+ "
          r"10 images with mean 0\.\d{4} and std 0\.\d{4}; MNIST and KMNIST .* add --as-is")
    content = convert.fashion_mnist(tmp_path, as_is=True)
    assert content.source.endswith("not as published")
    assert "not Fashion-MNIST as published" in content.remark
    write(tmp_path / "x.h5", content)


def test_what_is_published_has_no_remark(tmp_path):
    idx(tmp_path)
    content = convert.fashion_mnist(tmp_path)
    assert (content.remark, content.source[-13:]) == ("", "fashion-mnist")


def test_labels_of_no_class_and_of_other_images_are_told(tmp_path):
    idx(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_file(np.full(20, 26, np.uint8)))
    amiss(convert.fashion_mnist, tmp_path, "labels from 0 to 9 in train-labels-idx1-ubyte, found 26 to 26")
    labels.write_bytes(idx_file(np.zeros(19, np.uint8)))
    amiss(convert.fashion_mnist, tmp_path, "as many labels as images, found 19 for 20")


@pytest.mark.parametrize("shape", [(2**31, 28, 28), (2**32 - 1,) * 3])
def test_a_header_that_claims_what_is_not_there_takes_no_memory(tmp_path, shape):
    idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(bytes((0, 0, 8, 3)) + struct.pack(">3I", *shape) + bytes(99))
    amiss(convert.fashion_mnist, tmp_path, "expected [0-9]+ bytes for .*, found 115")


def test_a_small_file_that_unpacks_to_very_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "LARGEST", 1 << 20)
    idx(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(gzip.compress(bytes(8 << 20)))
    amiss(convert.fashion_mnist, tmp_path, "expected at most 1048576 bytes, found more")


@pytest.mark.parametrize(("error", "message"), [
    (PermissionError(13, "x"), r"no permission to read it; try chmod \+r"),
    (OSError(5, "Input/output error"), r"cannot be read from where it is stored \(Input/output error\)")])
def test_what_is_the_disks_fault_is_not_the_files(tmp_path, monkeypatch, error, message):
    def fail(*_):
        raise error

    idx(tmp_path)
    python3_pickle(tmp_path)
    monkeypatch.setattr(convert.gzip.GzipFile, "read", fail)
    (tmp_path / FILES[0][0]).write_bytes(gzip.compress(FILES[0][1]))
    amiss(convert.fashion_mnist, tmp_path, message)
    monkeypatch.setattr(convert.Path, "read_bytes", fail)
    amiss(convert.cifar10, tmp_path, message)


def test_a_web_page_is_told(tmp_path):
    idx(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\n\n\n<!DOCTYPE html>")
    amiss(convert.fashion_mnist, tmp_path, "found 0a 0a 0a 3c, a web page")


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


LABELS = {"ints": list, "int64": np.int64, "uint8": np.uint8, "big-endian": lambda y: np.array(y, ">i4"),
          "of NumPy": lambda y: list(np.int64(y))}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("key", [str, str.encode])
def test_batches_pickled_anew_give_the_same_arrays(tmp_path, key, protocol, order, labels):
    for name, (images, numbers) in BATCHES.items():
        content = {key("data"): np.array(planes(images), order=order), key("labels"): LABELS[labels](numbers),
                   key("filenames"): ["a.png"]}
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol))
    content = convert.cifar10(tmp_path)
    np.testing.assert_array_equal(content.train[0], np.concatenate([BATCHES[name][0] for name in list(BATCHES)[:5]]))
    assert content.train[1].tolist() == list(chain(*(BATCHES[name][1] for name in list(BATCHES)[:5])))
    assert content.test[1].tolist() == BATCHES["test_batch"][1]


def test_batches_are_read_by_the_names_of_numpy_1_and_2(tmp_path):
    for name, (images, numbers) in BATCHES.items():
        made = pickle.dumps({"data": planes(images), "labels": np.array(numbers)}, 2)
        old, new = b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"
        assert (old in made) != (new in made)
        (tmp_path / name).write_bytes(made.replace(old, new) if name[-1] in "135" else made.replace(new, old))
    np.testing.assert_array_equal(convert.cifar10(tmp_path).test[0], BATCHES["test_batch"][0])


@pytest.mark.parametrize(("labels", "found"), [
    (["cat"] * BATCH, "'cat'"), ([1.5] * BATCH, "1.5"), ([[1]] * BATCH, r"\[1\]"), ([None] * BATCH, "None"),
    ([300] * BATCH, "300 to 300"), ([-1] * BATCH, "-1 to -1"), ([2**70] * BATCH, "1180591620717411303424 to"),
    (np.arange(BATCH) % 10 + 256, "256 to 265"), (np.arange(BATCH) % 10 + 0.5, r"float64 \(12,\)"),
    (np.zeros((BATCH, 1), int), r"int64 \(12, 1\)"), (np.zeros(BATCH, bool), r"bool \(12,\)"), ("cat", "str"),
    (None, "NoneType"),
])
def test_no_label_is_changed_in_silence(tmp_path, labels, found):
    python3_pickle(tmp_path)
    made = {"data": planes(BATCHES["data_batch_1"][0]), "labels": labels}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(made))
    amiss(convert.cifar10, tmp_path, f"data_batch_1: expected .*found {found}")


def test_what_is_not_cifar10_as_published_is_said_to_be_that(tmp_path, monkeypatch):
    python3_pickle(tmp_path)
    content = convert.cifar10(tmp_path)
    assert content.source.endswith("not as published")
    assert "not CIFAR-10 as published, " in content.remark
    counts = np.arange(BATCH - 2) % 10      # every class once
    x, y = convert.cifar10(tmp_path).test
    monkeypatch.setattr(convert, "CIFAR10_MOMENTS", convert.statistics(x[:10]))
    assert convert._is_cifar10((x[:10], counts), (x, counts))[0]
    assert not convert._is_cifar10((x[:10], counts), (x, y))[0]
    assert not convert._is_cifar10((x[1:11], counts), (x, counts))[0]


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL"],)


@pytest.mark.parametrize(("content", "message"), [
    (Evil(), "UnpicklingError: posix.mkdir in it"),
    ({"data": np.array([Evil()]), "labels": [0]}, "posix.mkdir in it"),
    ({"data": np.array([None, 1]), "labels": [0]}, "an array made of list in it"),
    ({"data": np.zeros(12, "u1,i4"), "labels": [0]}, "an array of .V5 in it"),
    ({"fine_labels": [0], "data": np.zeros((1, 3072), np.uint8)}, "found the keys fine_labels, data"),
    ({"data": np.zeros((12, 32, 32, 3), np.uint8), "labels": [0]}, r"found uint8 \(12, 32, 32, 3\)"),
    ({"data": [1, 2], "labels": [0]}, "found list"),
    ([1, 2], "with the keys data and labels, found list"),
    ({b"data": np.zeros((12, 10), np.uint8), b"labels": [0] * 12}, r"expected data as uint8 \(N, 3072\)"),
])
def test_a_pickle_of_anything_else_is_refused_and_not_run(tmp_path, monkeypatch, content, message):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    python2_pickle(tmp_path)
    for protocol in (2, 4):
        (tmp_path / "data_batch_1").write_bytes(pickle.dumps(content, protocol))
        amiss(convert.cifar10, tmp_path, message)
        assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("content", [
    b"\x80\2Nr\xff\xff\xff\xff.",           # a memo of four milliard entries: 64 GB in C
    b"\x80\4\x8e" + b"\xff" * 7 + b"\x7f", b"\x80\4\x95" + b"\xff" * 8, b"(" * 100_000,
    pickle.dumps({"data": 1, "labels": 2})[:-2],
])
def test_a_pickle_that_claims_too_much_is_refused_at_once(tmp_path, content):
    python2_pickle(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(content)
    amiss(convert.cifar10, tmp_path, "expected a pickle")


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
