"""Laws of the data file: what was written is read, and each thing that can be amiss has its one line."""

import h5py
import numpy as np
import pytest

from dsgd_mpi.data import formats
from dsgd_mpi.data.check import statistics
from dsgd_mpi.data.formats import Dataset, Split, check, open_dataset, write
from dsgd_mpi.errors import UsageError
from tests.support.data_samples import content, dataset_file, images

INDICES = np.array([5, 6, 7, 3, 59, 0, 1, 1])


def replace(file, name, data):
    del file[name]
    file[name] = data


def test_a_dataset_is_what_was_written(tmp_path):
    expected = content()
    with Dataset(dataset_file(tmp_path)) as dataset:
        assert (dataset.name, dataset.image, len(dataset.train), len(dataset.test)) == ("tiny", (8, 8, 3), 60, 20)
        assert dataset.classes == list(expected.classes)
        assert (dataset.source, dataset.licence) == ("a test", "none")
        np.testing.assert_array_equal(dataset.train.labels, expected.train[1])
        np.testing.assert_allclose(dataset.mean, (expected.train[0] / 255).mean(axis=(0, 1, 2)))
        np.testing.assert_allclose(dataset.std, (expected.train[0] / 255).std(axis=(0, 1, 2)))


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_images_are_the_same_from_the_file_and_from_memory(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(formats, "MEMORY_BYTES", memory)
    out = np.zeros((len(INDICES), 8, 8, 3), np.uint8)
    with Dataset(dataset_file(tmp_path)) as dataset:
        dataset.train.read(INDICES, out)
    np.testing.assert_array_equal(out, content().train[0][INDICES])


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_a_file_that_is_cut_off_while_it_is_open_gives_no_zeros(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(formats, "MEMORY_BYTES", memory)
    path = dataset_file(tmp_path)
    with Dataset(path) as dataset:
        size = path.stat().st_size
        with open(path, "r+b") as file:
            file.truncate(size - 1000)
        with pytest.raises(UsageError) as told:
            dataset.train.read(INDICES, np.zeros((len(INDICES), 8, 8, 3), np.uint8))
        assert f"{path}: cut off, it has {size - 1000} of its {size} bytes" in told.value.message


def test_consecutive_images_are_read_by_one_call(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MEMORY_BYTES", 0)
    runs = []
    monkeypatch.setattr(h5py.Dataset, "read_direct", lambda self, out, source, target: runs.append((source, target)))
    with Dataset(dataset_file(tmp_path)) as dataset:
        dataset.train.read(INDICES, np.empty((len(INDICES), 8, 8, 3), np.uint8))
        dataset.train.read(INDICES[:0], np.empty((0, 8, 8, 3), np.uint8))
    assert runs == [(np.s_[a:b], np.s_[i:j]) for a, b, i, j in
                    ((5, 8, 0, 3), (3, 4, 3, 4), (59, 60, 4, 5), (0, 2, 5, 7), (1, 2, 7, 8))]


def test_gzip_changes_nothing_but_the_size(tmp_path):
    black = content()
    black.train[0][:30] = 0
    for compression in (None, "gzip"):
        write(tmp_path / f"{compression}.h5", black, compression)
    with Dataset(tmp_path / "gzip.h5") as dataset:
        np.testing.assert_array_equal(dataset._file["train/images"], black.train[0])
    assert (tmp_path / "gzip.h5").stat().st_size < (tmp_path / "None.h5").stat().st_size


def test_writing_twice_gives_the_same_bytes(tmp_path):
    first, second = tmp_path / "1.h5", tmp_path / "2.h5"
    for path in (first, second):
        write(path, content(), "gzip", subset_seed=3)
    assert first.read_bytes() == second.read_bytes()


def test_statistics_are_exact_for_many_blocks():
    x = images(3000, side=28, channels=2)
    mean, std = statistics(x)
    np.testing.assert_allclose(mean, (x / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (x / 255).std(axis=(0, 1, 2)), rtol=1e-10)


def test_what_does_not_pass_the_check_is_not_written(tmp_path):
    path = dataset_file(tmp_path)
    before = path.read_bytes()
    bad = content()
    bad.train[1][0] = 4
    with pytest.raises(UsageError, match="from 0 to 3 for the 4 classes, found 0 to 4"):
        write(path, bad)
    assert path.read_bytes() == before


def test_only_h5_files_are_written(tmp_path):
    with pytest.raises(UsageError, match=r"expected a path that ends in \.h5"):
        write(tmp_path / "data.npz", content())


def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="choose another path"):
        write(tmp_path / "file" / "x.h5", content())


AMISS = {
    "no dataset": (lambda f: f.move("train/images", "train/image"), "no train/images but test/images.* train/image"),
    "grey": (lambda f: replace(f, "test/images", images(20)[..., 0]), r"test/images of shape .*found \(20, 8, 8\)"),
    "no image": (lambda f: replace(f, "test/images", images(0)), r"found \(0, 8, 8, 3\)"),
    "float": (lambda f: replace(f, "train/images", images(60) / 255), "train/images as uint8, .*found float64"),
    "sizes": (lambda f: replace(f, "test/images", images(20, side=9)), r"found \(8, 8, 3\) and \(9, 9, 3\)"),
    "length": (lambda f: replace(f, "train/labels", [0] * 59), "found 59 train/labels for 60 train/images"),
    "one-hot": (lambda f: replace(f, "train/labels", np.eye(4, dtype=int)[[0] * 60]), r"int64 \(60, 4\).*argmax"),
    "float labels": (lambda f: replace(f, "test/labels", np.zeros(20)), r"test/labels as integers.*float64 \(20,\)"),
    "label": (lambda f: replace(f, "train/labels", [-1] + [0] * 59), "from 0 to 3 for the 4 classes, found -1 to 0"),
    "attribute": (lambda f: f.attrs.pop("std"), "found no std"),
    "classes": (lambda f: f.attrs.update(classes=4), "classes to be a list of names"),
    "channels": (lambda f: f.attrs.update(mean=[0.5]), r"mean as 3 numbers .*found \[0.5\]"),
    "0..255": (lambda f: f.attrs.update(mean=[120.0] * 3), "of images / 255, found"),
    "nan": (lambda f: f.attrs.update(mean=[0.5, 0.5, np.nan]), "found .*nan"),
    "zero": (lambda f: f.attrs.update(std=[0.5, 0.0, 0.5]), "std as 3 numbers above 0.* found"),
    "text": (lambda f: f.attrs.update(std="large"), "std as 3 numbers"),
}


@pytest.mark.parametrize("kind", AMISS)
def test_what_is_amiss_is_told_in_one_line_when_the_file_is_opened(tmp_path, kind):
    change, message = AMISS[kind]
    path = dataset_file(tmp_path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(UsageError, match=message) as told:
        Dataset(path)
    assert str(told.value).startswith(f"{path}: expected")
    assert "\n" not in str(told.value)


def test_check_finds_a_mean_of_other_images(tmp_path):
    path = dataset_file(tmp_path)
    with h5py.File(path, "r+") as file:
        file.attrs["mean"] = file.attrs["mean"] + 0.01
    Dataset(path).close()
    with pytest.raises(UsageError, match="attribute mean to be that of the training images"):
        check(path)


@pytest.mark.parametrize("part", ["train", "test"])
def test_one_flipped_bit_is_found_and_placed(tmp_path, part):
    path = dataset_file(tmp_path)
    check(path)
    with h5py.File(path) as file:
        offset = file[f"{part}/images"].id.get_chunk_info(0).byte_offset
    damaged = bytearray(path.read_bytes())
    damaged[offset + 100] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UsageError, match=rf"damaged, {part}/images\[0:\d+\] cannot be read"):
        check(path)
    with Dataset(path) as dataset, pytest.raises(UsageError, match=f"damaged, {part}/images cannot be read"):
        getattr(dataset, part).read(np.arange(2), np.empty((2, 8, 8, 3), np.uint8))


def test_black_images_and_classes_without_images_are_remarked_but_no_error(tmp_path):
    made = content()
    made.train[0][3:5] = 0
    made.test[1][:] = 2
    write(tmp_path / "x.h5", made)
    with Dataset(tmp_path / "x.h5") as dataset:
        for thorough in (True, False):
            assert dataset.verify(thorough) == [
                f"{tmp_path}/x.h5: 2 of 60 train/images are black, every byte is 0",
                f"{tmp_path}/x.h5: no image in test/images is of class 'north', 'east', 'west'"]


def test_a_file_that_was_cut_off_is_told_from_one_that_is_no_hdf5(tmp_path):
    path = dataset_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UsageError, match=r"cut off, it has \d+ of its \d+ bytes; copy or convert it again"):
        Dataset(path)
    path.write_bytes(b"PK\3\4")
    with pytest.raises(UsageError, match="expected an HDF5 file"):
        Dataset(path)


def test_a_misspelt_path_is_told_the_files_beside_it(tmp_path):
    path = dataset_file(tmp_path)
    with pytest.raises(UsageError, match=f"no such file or data set; did you mean {path}"):
        open_dataset(tmp_path / "tinny.h5")


@pytest.mark.parametrize("name", ["fashion-mnst", "cifar-10"])
def test_a_misspelt_name_is_told_the_names(name):
    with pytest.raises(UsageError, match=r"did you mean .*one of fashion-mnist-12k, fashion-mnist, cifar10"):
        open_dataset(name)


def test_a_folder_is_no_dataset(tmp_path):
    with pytest.raises(UsageError, match=r"expected the path of a \.h5 file"):
        open_dataset(tmp_path)


def test_a_name_is_looked_up_in_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DSGD_DATA_DIR", str(tmp_path))
    with pytest.raises(UsageError, match="python -m dsgd_mpi data cifar10 --from FOLDER"):
        open_dataset("cifar10")
    dataset_file(tmp_path).rename(tmp_path / "cifar10.h5")
    with open_dataset("cifar10") as dataset:
        assert dataset.name == "cifar10"


def test_the_data_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for name, value, expected in ((None, "", "/home/me/.cache/dsgd_mpi"), ("XDG_CACHE_HOME", "/c", "/c/dsgd_mpi"),
                                  ("DSGD_DATA_DIR", "/d", "/d")):
        if name is None:
            monkeypatch.delenv("DSGD_DATA_DIR", raising=False)
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        else:
            monkeypatch.setenv(name, value)
        assert str(formats.data_folder()) == expected


def test_the_dataset_of_the_package_is_sound_and_balanced():
    with open_dataset("fashion-mnist-12k") as dataset:
        dataset.verify()
        assert dataset.image == (28, 28, 1)
        assert len(dataset.classes) == 10
        assert np.bincount(dataset.train.labels).tolist() == [1200] * 10
        assert np.bincount(dataset.test.labels).tolist() == [200] * 10
        assert dataset.licence.startswith("MIT")
        assert dataset._file.attrs["subset_seed"] == 0
        assert dataset.path.stat().st_size < 8e6


def test_a_split_is_made_of_arrays_too():
    x = images(5)
    split, out = Split(x, np.arange(5), [0.0] * 3, [1.0] * 3), np.empty((2, 8, 8, 3), np.uint8)
    split.read(np.array([4, 0]), out)
    np.testing.assert_array_equal(out, x[[4, 0]])
    assert (len(split), split.image, split.labels.dtype) == (5, (8, 8, 3), np.int64)
