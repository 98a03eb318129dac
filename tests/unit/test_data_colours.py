"""Laws of colours: torchvision's jitter as recorded, the published noise, and that each image has its own."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from dsgd_mpi.data.augment import DRAWS, FACTORS, MIX, NOISE, ORDER, Recipe, draw
from dsgd_mpi.data.colours import EIGENVALUES, EIGENVECTORS, ORDERS, change, jittered, lit
from dsgd_mpi.data.loader import Batches
from tests.support.data_samples import images, photograph, split

RECORDED = json.loads(Path(__file__).with_name("torchvision_crops.json").read_text())
SIDE = RECORDED["side"]
BOTH = Recipe(jitter=0.4, pca_noise=0.1)


@pytest.mark.parametrize("case", RECORDED["jittered"], ids=lambda case: str(case["order"]))
def test_jitter_is_torchvisions_to_one_level(case):
    pixels, expected = (np.frombuffer(base64.b64decode(text), np.uint8) for text in
                        (RECORDED["pixels"], case["expected"]))
    height, width, _ = RECORDED["shape"]
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    image = pixels.reshape(height, width, 3)[top:top + SIDE, left:left + SIDE]
    found = jittered(np.ascontiguousarray(image), RECORDED["factors"], case["order"])
    assert np.abs(found.astype(int) - expected.reshape(found.shape)).max() <= 1


def test_factors_of_one_change_nothing():
    image = photograph(20, 30)
    for order in ORDERS:
        np.testing.assert_array_equal(jittered(image, [1.0, 1.0, 1.0], order), image)


def test_noise_is_the_papers_to_one_level():
    """RGB + [p1 p2 p3] [a1 l1, a2 l2, a3 l3], of images from 0 to 1."""
    image, alpha = images(1, 16)[0], np.array([0.12, -0.3, 0.2])
    exact = image / 255 + sum(alpha[i] * EIGENVALUES[i] * EIGENVECTORS[:, i] for i in range(3))
    assert np.abs(lit(image, alpha) - 255 * np.clip(exact, 0, 1)).max() <= 1
    assert np.abs(EIGENVECTORS.T @ EIGENVECTORS - np.eye(3)).max() < 1e-3


def test_what_is_drawn_has_the_spread_that_was_asked_for():
    grey = np.full((2000, 1, 1, 3), 128, np.uint8)
    noisy = grey.copy()
    change(noisy, draw(0, 0, np.arange(2000)), Recipe(pca_noise=0.2))
    alpha = (noisy.reshape(-1, 3) - 128.0) / 255 @ EIGENVECTORS / EIGENVALUES
    assert np.std(alpha[:, 0]) == pytest.approx(0.2, rel=0.05)      # the others are less than a level
    bright = grey[:500].copy()
    change(bright, draw(0, 0, np.arange(500)), Recipe(jitter=0.5))
    assert bright.min() < 70 < 180 < bright.max()
    assert 64 <= bright.min() <= bright.max() <= 192
    orders = {ORDERS[int(each * 6)] for each in draw(0, 0, np.arange(100))[:, ORDER]}
    assert len(orders) == 6


def test_an_images_colours_are_a_function_of_its_own_draws():
    stored, draws = images(8, 8), draw(5, 1, np.arange(8))
    together, alone = stored.copy(), stored[3:4].copy()
    change(together, draws, BOTH)
    change(alone, draws[3:4], BOTH)
    np.testing.assert_array_equal(together[3], alone[0])
    plain = np.full((1, DRAWS), 0.5)        # factors of 1, noise of 0
    change(alone, plain, BOTH)
    np.testing.assert_array_equal(together[3], alone[0])
    assert (FACTORS.stop, ORDER + 1, NOISE.stop, MIX + 1) == (ORDER, NOISE.start, MIX, DRAWS)
    assert not (together == stored).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize("crop", ["padded", "resized"])
def test_batches_change_colours_before_they_normalise_and_ranks_agree(crop):
    recipe = Recipe(crop, 0.4, 0.1)
    alone = Batches(split(24), 12, recipe=recipe).at(1)
    ranks = [Batches(split(24), 6, rank, 2, recipe=recipe).at(1) for rank in range(2)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    plain = Batches(split(24), 12, recipe=Recipe(crop)).at(1)
    np.testing.assert_array_equal(alone[1], plain[1])
    assert np.abs(alone[0] - plain[0]).max() > 0.1
    off = Batches(split(24), 12, recipe=recipe, augment=False).at(1)
    np.testing.assert_array_equal(off[0], Batches(split(24), 12, augment=False).at(1)[0])
