"""Laws of sharded sets: as one array whoever reads it in whichever order, and each thing amiss has its one line."""

import os
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from dsgd_mpi.arrays import hdf5
from dsgd_mpi.data import Batches, pictures, sharding, shards
from dsgd_mpi.data.check import statistics
from dsgd_mpi.data.formats import Content, Dataset, check, open_dataset, write
from dsgd_mpi.errors import UsageError
from tests.support.data_samples import BROKEN, content, images, order, plan

TRAIN = 60
INDICES = np.array([5, 6, 7, 3, 59, 0, 1, 1, 19, 20, 21, 22])
KINDS = pytest.mark.parametrize("jpeg", [False, True], ids=["images", "jpeg"])


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Of up to 20 images of 8 x 8 x 3 bytes, and of up to 20 bytes of JPEG, which are claimed to be of 1 byte."""
    monkeypatch.setattr(sharding, "SHARD_BYTES", 20 * 8 * 8 * 3)
    BROKEN.clear()


def made(folder, jpeg=False, **options):
    if jpeg:
        pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
        sharding.SHARD_BYTES = 20           # the fixture puts it back
    path = folder / "set.h5"
    sharding.make(path, plan(jpeg), 2, **options)
    return path


def expected(jpeg=False, part="train"):
    """The images in the order in which they are stored, and their labels."""
    items = getattr(plan(jpeg), part)
    stored = [items[i] for i in (order(len(items)) if part == "train" else range(len(items)))]
    kept = [item for item in stored if item.name not in BROKEN]
    return np.array([item.picture(jpeg).pixels for item in kept]), np.array([item.label for item in kept])


def read(split, indices):
    out = np.empty((len(indices), *split.image), np.uint8)
    split.read(indices, out)
    return out


@KINDS
@pytest.mark.parametrize("most_open", [1, 16])
def test_a_sharded_set_is_read_like_an_array(tmp_path, monkeypatch, jpeg, most_open):
    monkeypatch.setattr(shards, "MOST_OPEN", most_open)
    path = made(tmp_path, jpeg)
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == [
        "test-00000.h5", "train-00000.h5", "train-00001.h5", "train-00002.h5"]
    with open_dataset(path) as dataset:
        assert (dataset.name, dataset.image, len(dataset.train), len(dataset.test)) == ("set", (8, 8, 3), 60, 20)
        assert (dataset.classes, dataset.source) == (list(content().classes), "a test")
        assert dataset.verify() == []
        for part, split in (("train", dataset.train), ("test", dataset.test)):
            pixels, labels = expected(jpeg, part)
            np.testing.assert_array_equal(split.labels, labels)
            for indices in (INDICES % len(pixels), np.arange(len(pixels)), np.array([], int)):
                np.testing.assert_array_equal(read(split, indices), pixels[indices])
            found = split._images
            np.testing.assert_array_equal(found[-1], pixels[-1])
            np.testing.assert_array_equal(found[17:43], pixels[17:43])
            assert len(found._open) <= most_open
        mean, std = statistics(expected(jpeg)[0])
        np.testing.assert_allclose((dataset.mean, dataset.std), (mean, std), rtol=1e-12)


def test_jpeg_comes_out_as_it_went_in(tmp_path):
    with Dataset(made(tmp_path, True)) as dataset:
        items = plan(True).train
        found = dataset.train._images.encoded(INDICES)
        assert [bytes(each) for each in found] == [items[i].picture(True).jpeg for i in order(TRAIN)[INDICES]]


def test_each_shard_is_opened_once_a_batch_and_read_by_run(tmp_path, monkeypatch):
    path, runs, opened = made(tmp_path), [], []
    with Dataset(path) as dataset:
        monkeypatch.setattr(shards, "MOST_OPEN", 1)
        monkeypatch.setattr(h5py.Dataset, "read_direct", lambda self, out, *slices: runs.append(slices))
        real = shards.Shards._checked
        monkeypatch.setattr(shards.Shards, "_checked", lambda self, shard: opened.append(shard) or real(self, shard))
        assert not dataset.train._images._open          # nothing was needed so far
        read(dataset.train, np.array([19, 20, 40, 41, 42, 5]))
    assert opened == [0, 1, 2]
    assert runs == [(np.s_[5:6], np.s_[5:6]), (np.s_[19:20], np.s_[0:1]), (np.s_[0:1], np.s_[1:2]),
                    (np.s_[0:3], np.s_[2:5])]


@KINDS
def test_threads_share_a_set(tmp_path, monkeypatch, jpeg):
    monkeypatch.setattr(shards, "MOST_OPEN", 1)
    with Dataset(made(tmp_path, jpeg)) as dataset, ThreadPoolExecutor(4) as pool:
        pixels = expected(jpeg)[0]
        chosen = [np.random.default_rng(i).integers(0, TRAIN, 12) for i in range(15)]
        for indices, found in zip(chosen, pool.map(lambda indices: read(dataset.train, indices), chosen), strict=True):
            np.testing.assert_array_equal(found, pixels[indices])


def test_training_sees_the_same_batches_as_from_one_file(tmp_path):
    pixels, labels = expected()
    write(tmp_path / "one.h5", Content((pixels, labels), content().test, content().classes, "a test", "none"))
    with Dataset(tmp_path / "one.h5") as one, Dataset(made(tmp_path)) as many:
        for step in range(3):
            for a, b in zip(Batches(one.train, 16).at(step), Batches(many.train, 16).at(step), strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("count", [3, 3000])
def test_class_names_of_any_length_are_read(tmp_path, count):
    names = [f"n{i:08} a name of some length" for i in range(count)]
    one = Content((images(4), np.zeros(4, int)), (images(4, seed=1), np.zeros(4, int)), names, "a test", "none")
    write(tmp_path / "one.h5", one)
    sharding.make(tmp_path / "many.h5", plan(made=one), 1)
    for path in ("one.h5", "many.h5"):
        with Dataset(tmp_path / path) as dataset:
            assert dataset.classes == names
    with h5py.File(tmp_path / "many.h5", "r+") as file:
        del file["classes"]
        file["classes"] = [1, 2, 3]
    with pytest.raises(UsageError, match="expected the attribute classes to be a list of names, found"):
        Dataset(tmp_path / "many.h5")


def shard_of(path, number=1):
    return path.parent / "set" / f"train-{number:05}.h5"


def change(path, act):
    with h5py.File(path, "r+") as file:
        act(file)


def replace(file, name, data):
    del file[name]
    file[name] = data


def flip(path, jpeg):
    with h5py.File(path) as file:
        at = file["jpeg" if jpeg else "images"].id.get_offset() + 100
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 1
    path.write_bytes(damaged)


DAMAGE = {
    "gone": (lambda path: path.unlink(), "expected the images 20 to 39 of .*set.h5, found no file; put it back"),
    "cut off": (lambda path: os.truncate(path, path.stat().st_size - 100), "cut off, it has"),
    "no HDF5": (lambda path: path.write_bytes(b"x" * 5000), "damaged, or still being written"),
    "another": (lambda path: os.replace(path.with_name("train-00002.h5"), path), "found one of another conversion"),
    "shape": (lambda path: change(path, lambda f: replace(f, "images", images(19))), r"uint8 \(20, 8, 8, 3\), found u"),
    "type": (lambda path: change(path, lambda f: replace(f, "images", 1.0 * images(20))), "found float64"),
    "empty": (lambda path: change(path, lambda f: f.pop("images")), "found none; remove it and set.h5, and convert"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_shard_that_is_not_what_it_was_is_named(tmp_path, kind):
    path = made(tmp_path)
    damage, words = DAMAGE[kind]
    damage(shard_of(path))
    with Dataset(path) as dataset:
        read(dataset.train, np.arange(20))
        for act in (lambda: read(dataset.train, np.arange(60)), dataset.verify):
            with pytest.raises(UsageError, match=words) as told:
                act()
            assert str(told.value).startswith(f"{shard_of(path)}: ")
            assert "\n" not in str(told.value)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_before_training_all_shards_are_looked_for(tmp_path, number):
    path = made(tmp_path)
    shard_of(path, number).unlink()
    with pytest.raises(UsageError, match="found no file; put it back"):
        open_dataset(path)


@KINDS
def test_a_flipped_bit_or_another_label_is_found(tmp_path, jpeg):
    path = made(tmp_path, jpeg)
    flip(shard_of(path), jpeg)
    words = "train-00001.h5: damaged, its SHA-256 does not match the one in .*set.h5; remove it and set.h5"
    with pytest.raises(UsageError, match=words):
        check(path)
    flip(shard_of(path), jpeg)
    check(path)
    change(path, lambda file: file["train/labels"].write_direct(np.array([1 - min(1, file["train/labels"][25])]),
                                                                np.s_[0:1], np.s_[25:26]))
    with pytest.raises(UsageError, match=words):
        check(path)


def test_offsets_that_cannot_be_are_refused(tmp_path):
    path = made(tmp_path, True)
    for wrong in (lambda offsets: offsets[:-1], lambda offsets: offsets + 1, lambda offsets: offsets * 2):
        change(shard_of(path), lambda file, wrong=wrong: replace(file, "offsets", wrong(file["offsets"][()])))
        with pytest.raises(UsageError, match=r"train-00001.h5: expected 21 offsets from 0 to \d+, found \d+ others"):
            check(path)
        shard_of(path).unlink()
        path.unlink()
        made(tmp_path, True)


def test_a_shard_that_is_cut_off_while_it_is_open_gives_no_zeros(tmp_path):
    path = made(tmp_path)
    with Dataset(path) as dataset:
        read(dataset.train, np.arange(60))
        os.truncate(shard_of(path), shard_of(path).stat().st_size - 1000)
        with pytest.raises(UsageError, match=r"train-00001\.h5: cut off"):
            read(dataset.train, np.arange(60))


@pytest.mark.parametrize("amiss", [
    lambda file: replace(file, "train/shards/images", [20, 20]), lambda file: file.pop("train/shards/sha256"),
    lambda file: replace(file, "train/shards/file", [1, 2, 3]), lambda file: file.pop("test/shards"),
    lambda file: replace(file, "train/shards/images", [20, 40, 0]),
    lambda file: file.attrs.update(image=[8, 8]), lambda file: file.attrs.update(kind="png")])
def test_an_index_that_cannot_be_is_refused(tmp_path, amiss):
    path = made(tmp_path)
    change(path, amiss)
    with pytest.raises(UsageError, match=r"set.h5: expected .*; convert it again") as told:
        Dataset(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("name", "values"), [("mean", [0.5]), ("std", [0.2] * 4), ("mean", [127.0] * 3)])
def test_a_mean_or_std_of_other_channels_is_refused_and_the_index_made_again(tmp_path, name, values):
    path = made(tmp_path)
    whole, before = path.read_bytes(), modified(tmp_path)
    change(path, lambda file: file.attrs.update({name: values}))
    with pytest.raises(UsageError, match=f"expected the attribute {name} as 3 .*; remove set.h5, and convert again"):
        Dataset(path)
    path.unlink()
    made(tmp_path)
    assert (path.read_bytes(), modified(tmp_path)) == (whole, before)


def test_pictures_without_contrast_are_refused(tmp_path):
    black = Content((np.zeros((4, 8, 8, 3), np.uint8), np.arange(4)), content().test, list("abcd"), "a test", "none")
    with pytest.raises(UsageError, match=r"found 4 of mean .* without any contrast; give other images"):
        sharding.make(tmp_path / "set.h5", plan(made=black), 1)
    assert not (tmp_path / "set.h5").exists()


@pytest.mark.parametrize("number", [28, 122])
def test_a_used_up_quota_is_told_as_a_full_disk_is(tmp_path, monkeypatch, number):
    def full(path, content):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(hdf5, "_write", full)
    with pytest.raises(UsageError, match=f"{os.strerror(number)}; mend that, and convert again: what is whole is kept"):
        made(tmp_path)


def test_jpeg_without_its_decoder_is_one_line(tmp_path, monkeypatch):
    path = made(tmp_path, True)
    monkeypatch.setitem(__import__("sys").modules, "simplejpeg", None)
    with pytest.raises(UsageError, match="needs simplejpeg, which is not installed; pip install simplejpeg"):
        Dataset(path)


def modified(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "set").iterdir()}


def contents(folder):
    return {path.name: path.read_bytes() for path in [*(folder / "set").iterdir(), folder / "set.h5"]}


@KINDS
def test_a_conversion_that_was_ended_goes_on_and_gives_the_same_bytes(tmp_path, jpeg):
    (tmp_path / "whole").mkdir()
    made(tmp_path / "whole", jpeg)
    seen = []

    def end(count):
        seen.append(count)
        if len(seen) == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, jpeg, tick=end)
    before = modified(tmp_path)
    assert 1 <= len(before) <= 3
    assert not (tmp_path / "set.h5").exists()
    ticks = []
    made(tmp_path, jpeg, tick=ticks.append)
    assert sum(ticks) == TRAIN + 20
    assert ticks[0] >= 20
    assert before.items() <= modified(tmp_path).items()
    assert contents(tmp_path) == contents(tmp_path / "whole")


def test_a_broken_image_is_skipped_told_and_taken_once_it_is_mended(tmp_path):
    chosen = order(TRAIN)[25]
    BROKEN.update({f"train {chosen}", "test 3"})
    found = sharding.make(tmp_path / "set.h5", plan(), 2)
    assert (found.train, found.test, found.remarks) == (59, 19, ["1 image is grey"])
    assert found.skipped == [f"train train {chosen}: half a picture", "test test 3: half a picture"]
    check(tmp_path / "set.h5")
    with Dataset(tmp_path / "set.h5") as dataset:
        np.testing.assert_array_equal(read(dataset.train, np.arange(59)), expected()[0])
    before = modified(tmp_path)
    BROKEN.clear()
    with pytest.raises(UsageError, match=r"set.h5: expected no such file yet, found one; remove it to convert again"):
        made(tmp_path)
    (tmp_path / "set.h5").unlink()
    made(tmp_path)
    kept = {name for name, when in modified(tmp_path).items() if before[name] == when}
    assert kept == {"train-00000.h5", "train-00002.h5"}
    with Dataset(tmp_path / "set.h5") as dataset:
        assert len(dataset.train) == TRAIN


def test_with_strict_a_broken_image_ends_it(tmp_path):
    BROKEN.add("train 7")
    with pytest.raises(UsageError, match="train 7: expected an image, found half a picture; replace or remove it"):
        made(tmp_path, strict=True)
    assert not (tmp_path / "set.h5").exists()


def test_a_part_without_any_image_that_can_be_read_is_refused(tmp_path):
    BROKEN.update(f"test {i}" for i in range(20))
    with pytest.raises(UsageError, match="expected test images, found none that can be read, but test test 0: half"):
        made(tmp_path)


def test_shards_of_another_conversion_are_not_touched(tmp_path):
    path = made(tmp_path)
    path.unlink()
    before = modified(tmp_path)
    with pytest.raises(UsageError, match="found one of other images or options; remove the folder"):
        sharding.make(path, plan(made=content(train=40)), 1)
    assert modified(tmp_path) == before


def test_a_shard_that_cannot_be_opened_is_made_again(tmp_path):
    path = made(tmp_path)
    path.unlink()
    whole = shard_of(path).read_bytes()
    shard_of(path).write_bytes(whole[:-100])
    made(tmp_path)
    assert shard_of(path).read_bytes() == whole


@pytest.mark.parametrize("name", ["train-00001.h5", "set.h5"])
def test_a_full_disk_is_one_line_and_what_is_whole_is_kept(tmp_path, monkeypatch, name):
    real = hdf5._write

    def full(path, content):
        if name in str(path):
            raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr(hdf5, "_write", full)
    with pytest.raises(UsageError, match=r"No space left on device; .*convert again: .*kept") as told:
        made(tmp_path)
    assert "\n" not in str(told.value)
    before = modified(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(sharding, "SHARD_BYTES", 20 * 192)
    made(tmp_path)
    assert before.items() <= modified(tmp_path).items()


@pytest.mark.parametrize(("size", "height", "width"),
                         [(8, 8, 8), (8, 20, 33), (8, 5, 4), (7, 40, 9), (8, 1, 300), (4, 64, 1)])
def test_pictures_are_fitted_by_torchvisions_rule(size, height, width):
    from PIL import Image
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    found = pictures.fitted(image, size)
    assert found.shape == (size, size, 3)
    if max(height, width) <= 8 * min(height, width):
        new = (size, size * width // height) if height <= width else (size * height // width, size)
        whole = np.asarray(image.resize(new[::-1], Image.Resampling.BILINEAR))
        top, left = (round((length - size) / 2) for length in new)
        np.testing.assert_array_equal(found, whole[top:top + size, left:left + size])
