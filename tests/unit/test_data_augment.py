"""Laws of augmentation, against the same thing written an image at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsgd_mpi.data.augment import DRAWS, Transform, draw
from tests.support.data_samples import images


def exact(x, mean, std):
    return (x / 255 - np.asarray(mean)) / np.asarray(std)


def one_by_one(x, mean, std, draws):
    pad, side = x.shape[1] // 8, x.shape[1]
    padded = np.pad(exact(x, mean, std), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out = []
    for image, (down, across, mirror) in zip(padded, draws[:, :3], strict=True):
        i, j = int(down * (2 * pad + 1)), int(across * (2 * pad + 1))
        crop = image[i:i + side, j:j + side]
        out.append(crop[:, ::-1] if mirror < 0.5 else crop)
    return np.array(out)


@given(side=st.integers(1, 33), channels=st.integers(1, 4), batch=st.integers(0, 6), seed=st.integers(0, 99))
def test_augmentation_crops_and_mirrors_each_image(side, channels, batch, seed):
    mean, std = np.random.default_rng(seed).uniform(0.1, 0.5, (2, channels))
    x, draws = images(batch, side, channels, seed), draw(seed, 0, np.arange(batch))
    out = np.empty(x.shape, np.float32)
    Transform(6, x.shape[1:], mean, std).augment(x, out, draws)
    np.testing.assert_allclose(out, one_by_one(x, mean, std, draws).reshape(x.shape), atol=5e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_byte_is_normalised_to_float32_accuracy(channels):
    x = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), channels, axis=3)
    mean, std = [0.5, 0.4, 0.3][:channels], [0.2, 0.3, 0.25][:channels]
    out = np.empty(x.shape, np.float32)
    Transform(0, x.shape[1:], mean, std).normalise(x, out)
    np.testing.assert_allclose(out, exact(x, mean, std), atol=5e-7)


def test_a_draw_in_the_middle_moves_and_mirrors_nothing_or_only_mirrors():
    x, transform = images(2, 16), Transform(2, (16, 16, 3), [0] * 3, [1] * 3)
    plain, out = np.empty((2, *x.shape), np.float32)
    transform.normalise(x, plain)
    transform.augment(x, out, np.array([[0.5, 0.5, 0.9], [0.5, 0.5, 0.1]]))
    np.testing.assert_array_equal(out[0], plain[0])
    np.testing.assert_array_equal(out[1], plain[1, :, ::-1])


def test_what_comes_in_from_outside_is_the_mean():
    x = np.full((1, 16, 16, 1), 255, np.uint8)
    out = np.empty(x.shape, np.float32)
    Transform(1, (16, 16, 1), [0.25], [0.5]).augment(x, out, np.array([[0.0, 0.999, 0.9]]))
    assert (out[0, :2] == 0).all()
    assert (out[0, :, -2:] == 0).all()
    assert (out[0, 2:, :-2] == 1.5).all()


def test_an_images_draws_depend_on_the_seed_the_epoch_and_its_index_and_not_on_what_is_drawn_with_it():
    together = draw(7, 2, np.arange(12))
    np.testing.assert_array_equal(draw(7, 2, np.array([11, 3, 3])), together[[11, 3, 3]])


def test_draws_differ_between_seeds_epochs_and_images_and_from_the_shuffle():
    keys = [(s, e) for s in range(3) for e in range(3)]
    numbers = [draw(*key, np.arange(50)).ravel().tolist() for key in keys]
    numbers += [np.random.default_rng(key).random(50).tolist() for key in keys]
    every = [number for each in numbers for number in each]
    assert len(set(every)) == len(every)


def test_draws_are_those_of_splitmix64():
    """As Java's SplittableRandom, begun at the state that NumPy makes of seed, epoch and 1, gives them."""
    state, mask = int(np.random.SeedSequence((7, 2, 1)).generate_state(1, np.uint64)[0]), 2**64 - 1
    for number in draw(7, 2, np.arange(3)).ravel():
        state = state + 0x9e3779b97f4a7c15 & mask
        z = (state ^ state >> 30) * 0xbf58476d1ce4e5b9 & mask
        z = (z ^ z >> 27) * 0x94d049bb133111eb & mask
        assert number == ((z ^ z >> 31) >> 11) / 2**53


def test_all_shifts_and_both_mirrorings_are_equally_likely_and_independent():
    draws = draw(0, 0, np.arange(20_000))
    for column, bins in ((0, 9), (1, 9), (2, 2)):
        counts = np.bincount((draws[:, column] * bins).astype(int), minlength=bins)
        assert np.abs(counts / len(draws) * bins - 1).max() < 0.1
    assert np.abs(np.corrcoef(draws.T) - np.eye(DRAWS)).max() < 0.03
