"""Laws of what the network sees of pictures: their size and crops, alike from JPEG and pixels and on all ranks."""

import io
import sys
from contextlib import closing
from copy import copy
from itertools import islice
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from dsgd_mpi.config import Config
from dsgd_mpi.data import Batches, Recipe, evaluation_batches, pictures, sharding
from dsgd_mpi.data.augment import draw
from dsgd_mpi.data.crops import random_crop
from dsgd_mpi.data.formats import PICTURES, Content, Dataset, Split, open_dataset, write
from dsgd_mpi.errors import UsageError
from dsgd_mpi.training.agreement import about_data
from dsgd_mpi.training.build import prepare
from tests.support.data_samples import MEAN, STD, dataset_file, photograph

STORED, SEEN = 32, 28
RESIZED = Recipe("resized")


class File(NamedTuple):
    """A photograph of a size of its own, as an item of a sharded set."""

    name: str
    label: int
    content: bytes
    jpeg: bool
    size: int = 1

    def picture(self):
        return pictures.picture(self.content, self.name, STORED, self.jpeg)


def file(number, jpeg):
    content = io.BytesIO()
    Image.fromarray(photograph(40 + 3 * number, 64 - number)).save(content, "JPEG", quality=95)
    return File(f"{number}.jpg", number, content.getvalue(), jpeg)


@pytest.fixture(scope="module", params=[False, True], ids=["pixels", "jpeg"])
def jpeg(request):
    """Whether a set is stored so."""
    return request.param


@pytest.fixture(scope="module")
def path(tmp_path_factory, jpeg):
    """A file of 20 + 6 photographs with labels of their own, stored at 32 x 32 or as JPEG."""
    path = tmp_path_factory.mktemp("sizes") / "set.h5"
    files = [file(number, jpeg) for number in range(20)]
    names = [str(number) for number in range(20)]
    sharding.make(path, sharding.Plan(files, files[:6], names, "a test", "none", (STORED, STORED, 3), File.picture,
                                      jpeg), 1)
    return path


def dataset_of(tmp_path, side, channels):
    path = tmp_path / "tiny.h5"
    blank = np.zeros((2, side, side, channels), np.uint8) + np.arange(2, dtype=np.uint8)[:, None, None, None]
    write(path, Content((blank, np.arange(2)), (blank, np.arange(2)), ("a", "b"), "a test", "none"))
    return Dataset(path)


@pytest.mark.parametrize(("stored", "channels", "asked", "seen", "crop"), [
    (256, 3, None, 224, "resized"), (512, 3, None, 448, "resized"), (256, 3, 224, 224, "resized"),
    (256, 3, 256, 256, "resized"), (256, 1, None, 224, "resized"), (256, 3, 96, 96, "resized"),
    (224, 3, None, 224, "resized"), (128, 3, None, 128, "resized"), (127, 3, None, 127, "padded"),
    (32, 3, None, 32, "padded"), (32, 3, 48, 48, "padded"), (256, 2, None, 256, "padded")])
def test_what_the_network_sees_of_images_that_are_stored(tmp_path, stored, channels, asked, seen, crop):
    with dataset_of(tmp_path, stored, channels).sized(asked) as dataset:
        assert dataset.image == dataset.train.image == dataset.test.image == (seen, seen, channels)
        assert dataset.recipe().crop == crop
        assert dataset.stored == (stored, stored, channels)
        assert dataset.sized(stored).image == dataset.stored


def test_images_that_are_not_square_are_neither_scaled_nor_stretched_unless_that_is_asked_for():
    blank = np.zeros((1, 140, 300, 3), np.uint8)
    dataset = copy(open_dataset("fashion-mnist-12k"))
    dataset.train = dataset.test = Split(blank, np.zeros(1), MEAN, STD)
    assert dataset.sized().image == (140, 300, 3)
    assert dataset.recipe().crop == "padded"
    assert dataset.recipe("resized").crop == "resized"
    assert dataset.sized(100).image == (100, 100, 3)


def test_a_test_image_is_the_middle_whichever_way_it_is_stored(path, jpeg):
    with open_dataset(path).sized(SEEN) as dataset:
        assert (dataset.recipe().crop, dataset.image) == ("resized" if jpeg else "padded", (SEEN, SEEN, 3))
        found = [(images, int(labels[0])) for images, labels in evaluation_batches(dataset.test, 1)]
        for images, label in found:
            expected = pictures.fitted(Image.open(io.BytesIO(file(int(label), jpeg).content)), STORED)[2:-2, 2:-2]
            np.testing.assert_allclose(images[0], (expected / 255 - dataset.mean) / dataset.std, atol=1e-4)
        assert len(found) == 6


def test_training_images_are_random_crops_of_the_pictures(path, jpeg):
    with open_dataset(path).sized(SEEN) as dataset:
        batches = Batches(dataset.train, 20, seed=3, recipe=RESIZED)
        images, labels = batches.at(2)
        for image, label, index in zip(images, labels, batches.indices(2), strict=True):
            content = file(int(label), jpeg).content
            picture = content if jpeg else pictures.decoded(content, STORED)
            crop = random_crop(picture, draw(3, 2, np.array([index]))[0], SEEN, SEEN)
            np.testing.assert_allclose(image, (crop / 255 - dataset.mean) / dataset.std, atol=1e-4)


@pytest.mark.parametrize("crop", ["padded", "resized"])
def test_an_image_is_cropped_alike_whoever_has_it_and_in_whichever_batch(path, crop):
    """In the same epoch: the ranks, their batches, the shuffle, threads and where a run is resumed are free."""
    with open_dataset(path).sized(SEEN) as dataset:
        def epoch(batch, size, first=0, **how):
            """Each image, by its label, in the second epoch."""
            every = [Batches(dataset.train, batch, rank, size, seed=1, recipe=Recipe(crop), **how)
                     for rank in range(size)]
            begin, end = every[0].steps_per_epoch + first, 2 * every[0].steps_per_epoch
            found = {}
            for rank in every:
                with closing(rank.stream(begin)) as stream:
                    for images, labels in islice(stream, end - begin):
                        found |= dict(zip(labels.tolist(), images.copy(), strict=True))
            return found

        alone = epoch(20, 1)
        for found in (epoch(1, 4), epoch(5, 2, threads=2), epoch(3, 1), epoch(2, 3, first=2),
                      epoch(5, 2, shuffle="blocks", threads=2), epoch(3, 3, shuffle="blocks", first=1)):
            for label, image in found.items():
                np.testing.assert_array_equal(image, alone[label])
            assert len(found) >= 6


def test_crops_change_from_epoch_to_epoch_in_passes_over_own_images_too(path):
    with open_dataset(path) as dataset:
        batches = Batches(dataset.train, 5, rank=1, size=2, recipe=RESIZED, own=np.arange(5))
        seen = [dict(zip(batches.at(step)[1].tolist(), batches.at(step)[0], strict=True)) for step in range(4)]
        assert len({tuple(sorted(each)) for each in seen}) == 1
        assert len({image.tobytes() for each in seen for image in each.values()}) > 15     # a middle may come twice


def test_what_a_device_gets_as_bytes_is_what_a_host_gets_as_floats(path):
    with open_dataset(path).sized(SEEN) as dataset:
        kinds = [Batches(dataset.train, 6, recipe=RESIZED, byte_memory=memory)
                 for memory in (None, lambda shape: np.empty(shape, np.uint8))]
        floats, sent = (batches.at(1)[0] for batches in kinds)
        assert sent.places is None
        np.testing.assert_allclose(floats, sent.images * sent.scale + sent.shift, atol=1e-4)


def test_many_large_images_are_not_in_memory_at_once():
    split, read, most = Split(np.zeros((1, 64, 64, 3), np.uint8), np.zeros(1), MEAN, STD).sized(8), Split._read, []
    split.stored._read = lambda indices, out: (most.append(len(indices)), read(split.stored, indices, out))
    split.read(np.zeros(40, int), np.empty((40, 8, 8, 3), np.uint8))
    assert most == [PICTURES, PICTURES, 40 - 2 * PICTURES]


@pytest.mark.parametrize("jpeg", [True], indirect=True)
def test_a_broken_jpeg_is_told_by_its_number(path, jpeg, monkeypatch):
    with open_dataset(path).sized(SEEN) as dataset:
        monkeypatch.setattr(type(dataset.train._images), "encoded", lambda self, indices: [b"x"] * len(indices))
        for act in (lambda: Batches(dataset.train, 4, recipe=RESIZED).at(0),
                    lambda: next(evaluation_batches(dataset.test, 4))):
            with pytest.raises(UsageError, match=rf"{dataset.path}: damaged.*(train|test) image \d+ cannot be read"):
                act()


@pytest.mark.parametrize(("options", "side", "channels", "message"), [
    ({"crop": "resized"}, 32, 3, "--crop resized: expected --augment, without which training images stay as they are; "
                                 "give it too"),
    ({"pca_noise": 0.1}, 32, 3, "--pca-noise 0.1: expected --augment"),
    ({"jitter": 0.4, "augment": True}, 32, 1, r"tiny.h5: expected images of 3 channels, red, green and blue, for "
                                              r"--jitter, found 1; leave it out"),
    ({"image_size": 24}, 32, 2, r"tiny.h5: expected images of 1 or 3 channels for --crop resized or --image-size, "
                                r"found 2; leave these options out"),
    ({"augment": True, "crop": "resized"}, 32, 4, "found 4; leave these options out"),
])
def test_options_that_do_not_fit_are_refused(tmp_path, options, side, channels, message):
    path = dataset_file(tmp_path, side=side, channels=channels)
    with pytest.raises(UsageError, match=message):
        prepare(Config(data=str(path), batch=4, kernels="reference", **options), 1)
    prepare(Config(data=str(path), batch=4, kernels="reference", augment=True), 1)      # what the message says


def test_without_pillow_images_are_not_scaled_and_the_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    path = dataset_file(tmp_path, side=16)
    with open_dataset(path) as dataset:
        assert dataset.sized().recipe().crop == "padded"
        with pytest.raises(UsageError, match=r"tiny\.h5: scaling its images needs Pillow, .* pip install pillow"):
            dataset.sized(12)


def test_a_run_may_go_on_with_another_size(tmp_path):
    """A checkpoint compares the data as they are stored; the network's size is an option."""
    with open_dataset(dataset_file(tmp_path, side=16)) as dataset:
        assert about_data(dataset) == about_data(dataset.sized(12))
        assert about_data(dataset)["image"] == [16, 16, 3]
    parts = prepare(Config(data=str(tmp_path / "tiny.h5"), batch=4, kernels="reference", image_size=12), 1)
    assert parts.dataset.image == (12, 12, 3)
