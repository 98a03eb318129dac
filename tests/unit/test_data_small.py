"""Laws of MNIST, CIFAR-100 and .npz: each layout gives its arrays, and what is amiss has its one line."""

import pickle
import re

import numpy as np
import pytest
from click.testing import CliRunner

from dsgd_mpi.data import small
from dsgd_mpi.data.commands import data
from dsgd_mpi.data.formats import Dataset, check
from dsgd_mpi.errors import UsageError
from tests.support.data_samples import images
from tests.unit.test_data_convert import idx, planes

NAMES = [f"class {i}" for i in range(100)]
PIXELS = {"train": images(12, 32), "test": images(6, 32, seed=1)}
LABELS = {"train": list(range(0, 96, 8)), "test": [99, 0, 1, 2, 3, 4]}


@pytest.fixture(autouse=True)
def small_set(monkeypatch):
    monkeypatch.setattr(small, "CIFAR100_COUNTS", {"train": 12, "test": 6})


def run(*arguments):
    return CliRunner().invoke(data, [str(argument) for argument in arguments])


def pickles(folder):
    for part in PIXELS:
        content = {b"data": planes(PIXELS[part]), b"fine_labels": LABELS[part], b"coarse_labels": [0] * 12}
        (folder / part).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": [name.encode() for name in NAMES]}, protocol=2))


def binary(folder):
    for part in PIXELS:
        labels = np.array(LABELS[part], np.uint8)
        np.c_[labels // 5, labels, planes(PIXELS[part])].tofile(folder / f"{part}.bin")
    (folder / "fine_label_names.txt").write_text("\n".join(name.replace(" ", "_") for name in NAMES))


@pytest.mark.parametrize("layout", [pickles, binary])
@pytest.mark.parametrize("below", ["", "cifar-100"])
def test_both_layouts_of_cifar100_are_the_same(tmp_path, monkeypatch, layout, below):
    monkeypatch.setenv("DSGD_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / below).mkdir(exist_ok=True)
    layout(tmp_path / below)
    done = run("cifar100", "--from", tmp_path)
    assert done.exit_code == 0, done.output
    check(tmp_path / "data" / "cifar100.h5")
    with Dataset(tmp_path / "data" / "cifar100.h5") as dataset:
        assert [name.replace("_", " ") for name in dataset.classes] == NAMES
        for part, split in (("train", dataset.train), ("test", dataset.test)):
            assert split.labels.tolist() == LABELS[part]
            np.testing.assert_array_equal(split._images[()], PIXELS[part])


def like_cifar10(folder):
    (folder / "train").write_bytes(pickle.dumps({"data": planes(PIXELS["train"]), "labels": [1]}))


def copied(name):
    return lambda folder: (folder / name).write_bytes((folder / "test").read_bytes())


@pytest.mark.parametrize(("layout", "act", "message"), [
    (pickles, lambda folder: (folder / "meta").unlink(), "expected train, test, meta, found no meta; unpack all"),
    (pickles, lambda folder: (folder / "train").write_bytes(b"x"), "train: expected a pickle of arrays, found"),
    (pickles, copied("train"), "expected 12 images and as"),
    (pickles, copied("meta"), "names of 100 classes, found 0"),
    (pickles, like_cifar10,
     "expected fine_labels, a list of integers, found NoneType; if these are CIFAR-10's files, use `data cifar10`"),
    (binary, lambda folder: (folder / "test.bin").write_bytes(b"x" * 3075), "records of 3074 bytes, .* 1 too many"),
    (binary, lambda folder: (folder / "test.bin").write_bytes(b"\xff" * 3074 * 6), "labels from 0 to 99, found 255"),
    (binary, lambda folder: [path.unlink() for path in folder.iterdir()], "expected train, test and meta, .*an empty"),
])
def test_what_is_amiss_with_cifar100_is_one_line(tmp_path, layout, act, message):
    layout(tmp_path)
    act(tmp_path)
    with pytest.raises(UsageError, match=message) as told:
        small.cifar100(tmp_path)
    assert "\n" not in str(told.value)


def test_mnist_is_told_from_other_sets_with_files_of_the_same_names(tmp_path, monkeypatch):
    monkeypatch.setenv("DSGD_DATA_DIR", str(tmp_path / "data"))
    idx(tmp_path)
    refused = run("mnist", "--from", tmp_path)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert ("expected MNIST as published, 60000 + 10000 images with mean 0.1307 and std 0.3081, found 20 + 10 images"
            in refused.stderr)
    assert run("mnist", "--from", tmp_path, "--as-is").exit_code == 0
    with Dataset(tmp_path / "data" / "mnist.h5") as dataset:
        mean, std = dataset.mean[0], dataset.std[0]
        assert (dataset.classes, dataset.image) == (list("0123456789"), (28, 28, 1))
    monkeypatch.setattr(small, "KNOWN_MEANS", {mean: "Fashion-MNIST"})
    assert ", as of Fashion-MNIST; convert that by `data fashion-mnist`" in run("mnist", "--from", tmp_path).stderr
    monkeypatch.setattr(small, "MNIST_COUNTS", (20, 10))
    monkeypatch.setattr(small, "MNIST_MOMENTS", (mean, std))
    published = run("mnist", "--from", tmp_path)
    assert (published.exit_code, published.stderr) == (0, "")


def arrays(**changes):
    found = {"x_train": images(12), "y_train": np.arange(12) % 3, "x_test": images(6, seed=1),
             "y_test": np.arange(6) % 3}
    return {name: value for name, value in (found | changes).items() if value is not None}


@pytest.mark.parametrize("changes", [{}, {"y_train": np.arange(12)[:, None] % 3}, {"classes": ["a", "b", "c"]},
                                     {"x_train": images(12)[..., 0], "x_test": images(6)[..., 0]}])
def test_arrays_in_npz_become_a_set(tmp_path, changes):
    np.savez(tmp_path / "x.npz", **arrays(**changes))
    done = run("npz", "--from", tmp_path / "x.npz", "--to", tmp_path / "x.h5")
    assert done.exit_code == 0, done.output
    check(tmp_path / "x.h5")
    with Dataset(tmp_path / "x.h5") as dataset:
        assert dataset.classes == changes.get("classes", ["0", "1", "2"])
        assert dataset.train.labels.tolist() == [0, 1, 2] * 4
        expected = arrays(**changes)["x_train"]
        np.testing.assert_array_equal(dataset.train._images[()], expected.reshape(12, 8, 8, -1))


def test_classes_without_training_images_are_told(tmp_path):
    np.savez(tmp_path / "x.npz", **arrays(y_train=np.arange(12) % 2 * 4))
    assert small.npz(tmp_path / "x.npz", "none").remark == "no training image is of 3 of the 5 classes: 1, 2, 3"


@pytest.mark.parametrize(("flat", "message"), [
    (slice(0, 4), "without any contrast; give other images"),
    (3, r"without any contrast; leave out channel 3, which is the same everywhere: np.delete\(images, 3, axis=3\)"),
])
def test_channels_without_contrast_are_refused_before_anything_is_written(tmp_path, flat, message):
    pixels = images(12, channels=4)
    pixels[..., flat] = 255
    np.savez(tmp_path / "x.npz", **arrays(x_train=pixels, x_test=images(6, channels=4)))
    refused = run("npz", "--from", tmp_path / "x.npz", "--to", tmp_path / "x.h5")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert re.search(message, refused.stderr)
    assert not (tmp_path / "x.h5").exists()


def test_arrays_by_medmnists_names_are_found(tmp_path):
    names = dict(zip(arrays(), ("train_images", "train_labels", "test_images", "test_labels"), strict=True))
    np.savez(tmp_path / "x.npz", val_images=images(3), **{names[key]: value for key, value in arrays().items()})
    assert len(small.npz(tmp_path / "x.npz", "none").train[0]) == 12


@pytest.mark.parametrize(("changes", "message"), [
    ({"x_test": None}, "expected the arrays x_train, y_train, x_test, y_test or .*, found x_train, y_train, y_test"),
    ({"x_train": images(12) / 255}, r"found float64 .*np.uint8\(np.round\(x_train \* 255\)\)"),
    ({"x_train": images(12).transpose(0, 3, 1, 2)}, r"np.transpose\(x_train, \(0, 2, 3, 1\)\)"),
    ({"x_train": images(12).reshape(12, -1)}, r"x_train.reshape\(-1, height, width, channels\)"),
    ({"y_test": np.eye(3)[[0] * 6]}, r"np.argmax\(y_test, axis=1\)"),
    ({"y_train": np.arange(11)}, "one for each of 12 images, found int64"),
    ({"y_train": np.arange(12) / 2}, "expected y_train as integers, one for each of 12 images, found float64"),
    ({"y_train": 1 + np.arange(12) % 3}, "counted from 0, found 1 to 3; subtract 1 from all labels"),
    ({"classes": ["a"]}, "expected a list of names for 3 classes in classes, found 1; add"),
    ({"classes": [["a", "b"]] * 3}, r"a list of names for 3 classes in classes, found \(3, 2\)"),
    ({"x_train": images(12) / 127.5 - 1}, "save them as they were before that, .*; these are from -1 to 1"),
    ({"x_train": images(12) * np.float32(np.nan)}, "these are from nan to nan"),
    ({"x_train": images(12).astype(np.uint16) << 8}, "as the upper halves of these: `np.uint8.x_train >> 8.`"),
    ({"x_test": images(6)[:0], "y_test": []}, "expected some images in x_test, found none; give both parts some"),
    ({"y_train": np.eye(3)[[0] * 12][None]}, r"found float64 \(1, 12, 3\); give each image the number of its class"),
    ({"y_train": (np.arange(12) % 3)[None]}, r"found int64 \(1, 12\); give each image the number of its class"),
    ({"y_train": np.ones((12, 3), int)}, r"found int64 \(12, 3\); an image must be of one class; give each the number"),
    ({"y_train": np.r_[np.zeros(11, int), 10**9]}, "expected y_train below 1048576, found 1000000000"),
    ({"y_train": np.full(12, 2**63, np.uint64)}, "expected y_train below 1048576, found 9223372036854775808"),
    ({"y_test": 1 + np.arange(6) % 3}, "expected y_test from 0 to 2, as y_train, found 1 to 3; subtract 1 from y_test"),
    ({"y_test": [0, 1, 2, 3, 4, 5]}, "found 0 to 5; leave out test images of other classes, or add training images"),
    ({"x_train": np.array([None, "x"])}, "expected a .npz file of arrays, found Object arrays cannot be loaded"),
])
def test_what_is_amiss_with_arrays_is_one_line(tmp_path, changes, message):
    np.savez(tmp_path / "x.npz", **arrays(**changes))
    refused = run("npz", "--from", tmp_path / "x.npz", "--to", tmp_path / "x.h5")
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    with pytest.raises(UsageError, match=message):
        small.npz(tmp_path / "x.npz", "none")


@pytest.mark.parametrize("content", [None, b"", b"PK\3\4 and no more", b"<html>"])
def test_what_is_no_npz_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"x.npz: (expected a \.npz file of arrays|cannot be read)") as told:
        small.npz(tmp_path / "x.npz", "none")
    assert "\n" not in str(told.value)
