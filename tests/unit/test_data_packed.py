"""Laws of files that hold many pictures: tar shards as WebDataset writes them."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from dsgd_mpi.data import parts, webdataset
from dsgd_mpi.data.commands import data
from dsgd_mpi.data.formats import Dataset, check
from dsgd_mpi.errors import UsageError
from tests.unit.test_data_layouts import BROKEN, STRANGE, photo, put, tar

NAMES = ["train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"]
LABELS = [[0, 1, 2, 0], [2, 1, 0, 2], [1, 2, 0]]
PHOTOS = [[photo(10 * i + j) for j in range(len(labels))] for i, labels in enumerate(LABELS)]
EVERY = [pair for each in zip(PHOTOS, LABELS, strict=True) for pair in zip(*each, strict=True)]


def run(*arguments):
    return CliRunner().invoke(data, [str(argument) for argument in arguments])


def as_cls(key, picture, label):
    return {f"{key}.jpg": picture, f"{key}.cls": str(label).encode()}


def as_json(key, picture, label):
    return {f"{key}.json": json.dumps({"label": label, "name": "x"}).encode(), f"{key}.JPEG": picture,
            f"{key}.seg.png": b"no picture of this sample"}


def both(key, picture, label):
    return {f"{key}.json": b'{"label": 99}', f"{key}.cls": f"{label}\n".encode(), f"{key}.png": picture}


def tars(folder, sample=as_cls, names=NAMES, labels=LABELS):
    for name, pictures, numbers in zip(names, PHOTOS, labels, strict=True):
        members = [sample(f"of/{i:06}", *pair) for i, pair in enumerate(zip(pictures, numbers, strict=True))]
        put(folder / f"{name}.tar", tar({key: value for each in members for key, value in each.items()}))


def contents_of(found):
    return tuple([(item.content(), item.label) for item in part] for part in (found.train, found.test))


@pytest.mark.parametrize("names", [NAMES, ["data/in-train-0", "data/in-train-1", "data/in-val-0"],
                                   ["train/0000", "train/0001", "test/0000"], ["Training_0", "Training_1", "x_test"]])
@pytest.mark.parametrize("sample", [as_cls, as_json, both])
def test_tar_shards_are_found_by_the_words_in_their_names_with_pictures_and_labels(tmp_path, sample, names):
    tars(tmp_path, sample, names)
    found = webdataset.find(tmp_path)
    assert contents_of(found) == (EVERY[:8], EVERY[8:])
    assert (found.classes, found.remarks) == (["0", "1", "2"], ())


def test_tar_shards_to_what_training_opens(tmp_path):
    tars(tmp_path / "x")
    put(tmp_path / "x" / "classnames.txt", "red fox\r\ncat\ndog\n\n")
    done = run("webdataset", "--from", tmp_path / "x", "--to", tmp_path / "y.h5", "--size", 8)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    check(tmp_path / "y.h5")
    with Dataset(tmp_path / "y.h5") as dataset:
        assert (len(dataset.train), dataset.classes) == (8, ["red fox", "cat", "dog"])
        assert dataset.test.labels.tolist() == LABELS[2]


def test_broken_pictures_in_tar_shards_are_named_and_left_out(tmp_path):
    def key(name):
        return name.replace(".", "-")

    members = [as_cls(key(name), content, i % 2) for i, (name, (content, _)) in enumerate((STRANGE | BROKEN).items())]
    tars(tmp_path / "x")
    put(tmp_path / "x" / "train-2.tar", tar({key: value for each in members for key, value in each.items()}))
    options = ["--from", tmp_path / "x", "--to", tmp_path / "y.h5", "--size", 8]
    strict = run("webdataset", *options, "--strict")
    assert (strict.exit_code, strict.stderr.count("\n")) == (2, 1)
    done = run("webdataset", *options)
    assert done.exit_code == 0, done.output
    for name, (_, reason) in BROKEN.items():
        assert any(line.startswith(f"Warning: left out train {tmp_path}/x/train-2.tar/{key(name)}.jpg: {reason}")
                   for line in done.stderr.splitlines())
    assert "Warning: 4 images are PNG under a name that ends in .jpg\n" in done.stderr
    check(tmp_path / "y.h5")


def test_a_share_of_each_class_becomes_test_images_where_there_are_none(tmp_path):
    tars(tmp_path, names=["a0", "a1", "a2"])
    with pytest.raises(UsageError, match=r"expected validation or test in the names .*, found 3 .*--test-share 0\.1"):
        webdataset.find(tmp_path)
    found = webdataset.find(tmp_path, 0.3)
    train, test = contents_of(found)
    assert sorted(train + test) == sorted(EVERY)
    assert sorted(item.label for item in found.test) == [0, 1, 2]
    assert webdataset.find(tmp_path, 0.3) == found


def test_what_is_missing_of_numbered_files_is_told(tmp_path):
    tars(tmp_path, names=["train-00000-of-00007", "train-00003-of-00007", "val-0000"])
    tars(tmp_path, names=["val-0002", "test-0001", "test-0002"])
    assert webdataset.find(tmp_path).remarks == (
        f"of the 7 files {tmp_path}/train-* 5 are missing: 1, 2, 4, ...",
        f"of the 3 files {tmp_path}/val-* 1 is missing: 1",
        "no use was made of 2 files with the word test, since there are files for validation")


def test_samples_without_a_picture_are_counted_and_named(tmp_path):
    tars(tmp_path)
    bare = {f"{i}.cls": b"1" for i in range(4)} | {"0.npy": b"x", "about.json": b'{"samples": 3}'}
    put(tmp_path / "train-2.tar", tar(bare | as_cls("5", PHOTOS[0][0], 1)))
    found = webdataset.find(tmp_path)
    assert len(found.train) == 9
    assert found.remarks == (f"4 samples have a label but no picture, left out: {tmp_path}/train-2.tar/0, "
                             f"{tmp_path}/train-2.tar/1, {tmp_path}/train-2.tar/2, ...",)


def labelled(*labels):
    return lambda folder: tars(folder, labels=labels)


def put_tar(name, members):
    return lambda folder: put(folder / f"{name}.tar", tar(members))


AMISS = {
    "no folder": (lambda folder: folder.rename(folder.with_name("y")), {}, "expected a folder, found nothing"),
    "no tar": (lambda folder: [path.rename(path.with_suffix(".gz")) for path in folder.iterdir()], {},
               r"expected tar shards, \*\.tar, in it or in subfolders, found train-00000"),
    "no word": (put_tar("more", as_cls("1", PHOTOS[0][0], 1)), {}, "more.tar: expected train, and validation or test"),
    "no train": (lambda folder: [path.unlink() for path in folder.glob("train*")], {}, "expected train, and validat"),
    "two sets": (put_tar("other/train-00000-of-00002", as_cls("1", PHOTOS[0][0], 1)), {},
                 "expected the files of one set, found one of the same name and part in"),
    "share": (labelled(*LABELS), {"test_share": 0.1}, "expected --test-share only where there are no files of test"),
    "from 1": (labelled(*[[label + 1 for label in each] for each in LABELS]), {},
               "expected labels counted from 0, found 1 to 3; if they are counted from 1, add --first-label 1"),
    "unknown": (labelled(*LABELS[:2], [-1, -1, -1]), {}, "expected labels counted from 0, .*found -1 to 2; leave out"),
    "high": (labelled(*LABELS[:2], [0, 0, 1 << 20]), {}, "below 1048576, found 0 to 1048576"),
    "few names": (lambda folder: put(folder / "classes.txt", "a\nb\n"), {},
                  "expected the names of 3 classes, found 2 and labels from 0 to 2; add the other names"),
    "no name": (lambda folder: put(folder / "classes.txt", "a\n\nb\n"), {}, "classes.txt: .* found line 2 empty"),
    "word": (labelled(*LABELS[:2], ["cat", 1, 0]), {}, "000000.cls: expected an integer, the number of a class, found"),
    "one-hot": (labelled(*LABELS[:2], ["0 1 0", 1, 0]), {}, "expected an integer, the number of a class"),
    "no label": (put_tar("train-2", {"a.jpg": PHOTOS[0][0], "a.json": b"[1]", "b.jpg": b"", "b.cls": b"1"}), {},
                 r"train-2.tar/a.jpg: expected its label in .*, found neither, of 1 of 2 pictures"),
    "two pictures": (put_tar("train-2", {"a.jpg": PHOTOS[0][0], "a.png": b"", "a.cls": b"1"}), {},
                     "found .*/a.jpg too; give each sample a name of its own"),
    "no picture": (put_tar("validation-00000-of-00001", {"a.npy": b"x"}), {}, "validation-.*: expected pictures, KEY"),
    "cut": (lambda folder: put(folder / "train-2.tar", tar({"a.jpg": PHOTOS[0][0]})[:700]), {},
            "train-2.tar: expected a whole tar file"),
}


@pytest.mark.parametrize("kind", AMISS)
def test_what_is_amiss_with_tar_shards_is_one_line(tmp_path, kind):
    act, options, message = AMISS[kind]
    tars(tmp_path / "x")
    act(tmp_path / "x")
    with pytest.raises(UsageError, match=message) as told:
        webdataset.find(tmp_path / "x", **options)
    assert str(told.value).startswith(str(tmp_path))
    assert "\n" not in str(told.value)


def test_labels_from_1_are_taken_as_the_line_tells(tmp_path):
    tars(tmp_path, labels=[[label + 1 for label in each] for each in LABELS])
    found = webdataset.find(tmp_path, first_label=1)
    assert (contents_of(found), found.classes) == ((EVERY[:8], EVERY[8:]), ["1", "2", "3"])
    found = webdataset.find(tmp_path, first_label=0)
    assert found.remarks == ("no training image is of 1 of the 4 classes: 0",)


def test_each_class_keeps_an_image_to_train_on():
    labels = np.array([0] * 10 + [2] * 2)
    is_test = parts.chosen(labels, 0.9, ["a", "b", "c"])
    assert [is_test[labels == label].sum() for label in (0, 2)] == [9, 1]
    with pytest.raises(UsageError, match=r"c: expected at least 2 images, .* found 1; add some, or remove it"):
        parts.chosen(labels[:-1], 0.5, ["a", "b", "c"])
