"""Laws of the way out: what a line about a data file tells to do is done, and ends in the right file.

A wrong file is made, each line that it gets is followed to the letter (code in `backquotes` is run), and at the end
the file passes and holds what the right one holds.
"""

import re

import h5py
import numpy as np
import pytest

from dsgd_mpi.data.formats import Dataset, check, write
from dsgd_mpi.errors import UsageError
from tests.support.data_samples import content

PARTS = {"train": content().train, "test": content().test}


def put(file, name, data):
    if name in file:
        del file[name]
    file[name] = data


def images(change):
    """Both parts' images changed."""
    return lambda file: [put(file, f"{part}/images", change(pair[0])) for part, pair in PARTS.items()]


def labels(change):
    return lambda file: [put(file, f"{part}/labels", change(pair[1])) for part, pair in PARTS.items()]


def attributes(**values):
    return lambda file: file.attrs.update(values)


def both(*changes):
    return lambda file: [change(file) for change in changes]


FIRST, HOLES = (lambda x: x.transpose(0, 3, 1, 2)), (lambda x: x * np.uint8(np.arange(len(x)) < 9)[:, None, None, None])
WRONG = {
    "channels first": (images(FIRST), "channels come last"),
    "images last": (images(lambda x: x.transpose(1, 2, 3, 0)), "images come first"),
    "floats to 1": (images(lambda x: np.float32(x / 255)), "found float32"),
    "floats to 255": (images(lambda x: x * 1.0), "found float64"),
    "integers": (images(np.int64), "found int64"),
    "a column of labels": (labels(lambda y: y[:, None]), "a column"),
    "one-hot labels": (labels(lambda y: np.eye(4, dtype=int)[y]), "one-hot"),
    "labels as floats": (labels(lambda y: y * 1.0), "changes none of them"),
    "labels from 1": (labels(lambda y: y + 1), "found 1 to 4; they count from 1"),
    "labels from 256": (labels(lambda y: np.int64(y) + 256), "found 256 to 259; they count from 256"),
    "mean of 0..255": (attributes(mean=[127.0] * 3, std=[70.0] * 3), "mean as 3 numbers from 0 to 1"),
    "mean per column": (attributes(mean=[0.5] * 8), "mean as 3 numbers"),
    "std as a word": (attributes(std="large"), "std as 3 numbers"),
    "mean of another set": (attributes(mean=[0.2] * 3, std=[0.1] * 3), "the attribute or the images are of"),
    "channels first, their mean by the rule for last": (
        both(images(FIRST), attributes(mean=[0.5] * 8, std=[0.2] * 8)), "channels come last"),
    "labels in a column, from 1": (labels(lambda y: np.int64(y[:, None] + 1)), "a column"),
}


def told(path):
    with pytest.raises(UsageError) as error:
        check(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def complaint(path):
    try:
        check(path)
    except UsageError as error:
        return str(error)
    return ""


def follow(path, message):
    """Does with both parts what the line says about one; the name of what it expected says what the code makes."""
    code = re.search("`(.*)`", message)[1]
    with h5py.File(path, "r+") as file:
        if code.startswith("file."):
            eval(code, {"file": file, "images": file["train/images"], "h5py": h5py})
            return
        kind = "labels" if "labels" in code else "images"
        for part in PARTS:
            names = {"np": np, kind: file[f"{part}/{kind}"]}
            put(file, f"{part}/{kind}", eval(code, names))


def told_of(folder, change):
    """A good file that was changed, and what is said of it."""
    path = folder / "wrong.h5"
    write(path, content())
    with h5py.File(path, "r+") as file:
        change(file)
    return path, told(path)


@pytest.mark.parametrize("kind", WRONG)
def test_what_a_line_tells_to_do_ends_in_the_right_file(tmp_path, kind):
    change, words = WRONG[kind]
    path, message = told_of(tmp_path, change)
    assert words in message
    lines = [message]
    while lines[-1]:
        follow(path, lines[-1])
        lines.append(complaint(path))
        assert lines.count(lines[-1]) == 1, lines
    check(path)
    with Dataset(path) as dataset:
        assert dataset.classes == list(content().classes)
        for part, split in (("train", dataset.train), ("test", dataset.test)):
            out = np.empty_like(PARTS[part][0])
            split.read(np.arange(len(split)), out)
            np.testing.assert_array_equal(out, PARTS[part][0])
            np.testing.assert_array_equal(split.labels, PARTS[part][1])
        np.testing.assert_allclose(dataset.mean, (PARTS["train"][0] / 255).mean((0, 1, 2)))


def test_grey_images_get_their_channel(tmp_path):
    grey = content(channels=1)
    path = tmp_path / "grey.h5"
    write(path, grey)
    for shape in ((-1, 8, 8), (-1, 1, 8, 8)):
        with h5py.File(path, "r+") as file:
            for part in PARTS:
                put(file, f"{part}/images", file[f"{part}/images"][()].reshape(shape))
        message = told(path)
        assert ("channels come last" in message) == (len(shape) == 4)
        follow(path, message)
        check(path)
        with Dataset(path) as dataset:
            np.testing.assert_array_equal(dataset._file["train/images"], grey.train[0])


def test_one_class_by_its_name(tmp_path):
    path = tmp_path / "x.h5"
    write(path, content())
    with h5py.File(path, "r+") as file:
        file.attrs["classes"] = "cat"
        for part in PARTS:
            file[f"{part}/labels"][...] = 0
    message = told(path)
    assert "the one string 'cat'" in message
    follow(path, message)
    check(path)
    with Dataset(path) as dataset:
        assert dataset.classes == ["cat"]


@pytest.mark.parametrize(("change", "words"), [
    (images(lambda x: x.reshape(len(x), -1)), "give each image its height and width"),
    (images(lambda x: x[:0]), "no image at all"),
    (images(lambda x: x - 128.0), "found float64; they are normalised when read, so store them as they were"),
    (images(lambda x: x.astype("S3")), "store them as they were"),
    (labels(lambda y: y + 0.5), "0.5 is the number of no class"),
    (labels(lambda y: np.array([b"cat"] * len(y))), "give each image the number of its class"),
    (labels(lambda y: np.int64(y) - 1), "found -1 to 2; leave out images whose class is not known"),
    (labels(lambda y: np.int64(y) * 9), "found 0 to 27; give the attribute classes all 28 names, or correct"),
    (lambda file: put(file, "test/labels", PARTS["test"][1] + 1), "found 1 to 4; train/labels do not count so"),
    (labels(lambda y: np.full(len(y), 2**64 - 1, np.uint64)), "found 18446744073709551615 to 184467440737095516"),
    (labels(lambda y: np.ones((len(y), 4), int)), "(60, 4); an image must be of one class; give each the number"),
    (labels(lambda y: np.zeros((len(y), 7), int)), "(60, 7); give each image the number of its class"),
    (attributes(classes=np.array([["a", "b"], ["c", "d"]], object)), "list of names"),
    (attributes(classes=np.array(["a", "b", "c", "d"], "S1")), "write it with dtype=h5py.string_dtype"),
    (attributes(classes=h5py.Empty("f")), "list of names"),
    (images(np.zeros_like), "expected training images, found 60 of mean [0. 0. 0.] and std [0. 0. 0.]"),
    (images(HOLES), "of 60 images are black"),
])
def test_no_way_out_is_offered_that_makes_it_worse(tmp_path, change, words):
    _, message = told_of(tmp_path, change)
    assert words in message
    assert "`" not in message
