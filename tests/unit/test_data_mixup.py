"""Laws of mixup: pairs, their shares, and labels that say what was mixed."""

import numpy as np
import pytest

from dsgd_mpi.config import Config
from dsgd_mpi.data import Batches, Recipe
from dsgd_mpi.data.augment import draw
from dsgd_mpi.data.mixup import mix
from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.api import Mixed
from dsgd_mpi.training.build import prepare
from tests.support.data_samples import dataset_file, images, split


def mixed(count, alpha=1.0, stored=None):
    stored, labels = images(count, 6) if stored is None else stored, np.arange(count)
    found = stored.copy(), Mixed(labels, labels.copy(), np.empty(count, np.float32))
    mix(*found, draw(1, 2, labels), alpha)
    return stored, *found


def test_neighbours_are_mixed_as_their_labels_say():
    stored, found, labels = mixed(8)
    np.testing.assert_array_equal(labels.others, [1, 0, 3, 2, 5, 4, 7, 6])
    for image, one, other, share in zip(found, labels.labels, labels.others, labels.share, strict=True):
        exact = share * stored[one].astype(float) + (1 - share) * stored[other]
        assert np.abs(image - exact).max() <= 0.501
    assert len(set(labels.share.tolist())) == 4


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 1.0, 100.0])
def test_shares_are_of_the_beta_distribution(alpha):
    _, _, labels = mixed(4000, alpha, np.zeros((4000, 1, 1, 1), np.uint8))
    shares = labels.share[::2].astype(float)
    assert np.mean(shares) == pytest.approx(1 / 2, abs=0.04)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
    assert 0 <= shares.min() <= shares.max() <= 1


@pytest.mark.parametrize("crop", ["padded", "resized"])
def test_ranks_mix_the_pairs_that_one_rank_mixes_and_a_stream_what_at_does(crop):
    recipe = Recipe(crop, mixup=0.4)
    alone = Batches(split(48), 24, recipe=recipe).at(3)
    for size in (2, 6):
        ranks = [Batches(split(48), 24 // size, rank, size, recipe=recipe) for rank in range(size)]
        parts = [rank.at(3) for rank in ranks]
        np.testing.assert_array_equal(np.concatenate([images for images, _ in parts]), alone[0])
        for name in ("labels", "others", "share"):
            every = np.concatenate([getattr(labels, name) for _, labels in parts])
            np.testing.assert_array_equal(every, getattr(alone[1], name))
    stream = ranks[1].stream(3)
    images_, labels = next(stream)
    np.testing.assert_array_equal(images_, parts[1][0])
    np.testing.assert_array_equal(labels.share, parts[1][1].share)
    stream.close()


@pytest.mark.parametrize("crop", ["padded", "resized"])
def test_what_is_mixed_are_the_crops(crop):
    """To a level, but for the border of small images, which is the level nearest to the mean."""
    x = split(8)
    plain, labels = Batches(x, 8, recipe=Recipe(crop)).at(0)
    found, mixture = Batches(x, 8, recipe=Recipe(crop, mixup=1.0)).at(0)
    np.testing.assert_array_equal(mixture.labels, labels)
    share = mixture.share[:, None, None, None]
    expected = share * plain + (1 - share) * plain.reshape(4, 2, *x.image)[:, ::-1].reshape(plain.shape)
    assert np.abs((found - expected) * x.std).max() < 1.01 / 255
    sent, same = Batches(x, 8, recipe=Recipe(crop, mixup=1.0), byte_memory=lambda s: np.empty(s, np.uint8)).at(0)
    assert sent.places is None
    np.testing.assert_allclose(sent.images * sent.scale + sent.shift, found, atol=1e-5)
    np.testing.assert_array_equal(same.share, mixture.share)


def test_without_augment_nothing_is_mixed():
    _, labels = Batches(split(8), 4, augment=False, recipe=Recipe(mixup=1.0)).at(0)
    assert not isinstance(labels, Mixed)


def test_options_that_do_not_fit_are_refused(tmp_path):
    asked = {"data": str(dataset_file(tmp_path, side=16)), "kernels": "reference", "mixup": 0.2}
    with pytest.raises(UsageError, match=r"--mixup 0.2: expected an even --batch.* found 5; use --batch 6"):
        prepare(Config(batch=5, augment=True, **asked), 1)
    with pytest.raises(UsageError, match=r"--mixup 0.2: expected --augment, .* give it too"):
        prepare(Config(batch=6, **asked), 1)
    prepare(Config(batch=6, augment=True, **asked), 1)
