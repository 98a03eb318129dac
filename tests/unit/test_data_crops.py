"""Laws of crops: torchvision's boxes and pixels as recorded, Pillow's live, and what JPEG is decoded at."""

import base64
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dsgd_mpi.data.augment import DRAWS, MIRROR, draw
from dsgd_mpi.data.crops import AREA, RATIO, middle, random_box, random_crop, resized
from tests.support.data_samples import photograph

RECORDED = json.loads(Path(__file__).with_name("torchvision_crops.json").read_text())
SIDE = RECORDED["side"]


def stored(text, shape):
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape)


def picture_of(name):
    """As `crops` takes it, and its pixels."""
    pixels = stored(RECORDED["pixels"], RECORDED["shape"])
    if name == "jpeg":
        content = base64.b64decode(RECORDED["jpeg"])
        return content, simplejpeg.decode_jpeg(content, "RGB")
    return (pixels[..., 1:2],) * 2 if name == "grey" else (pixels, pixels)


def apart(found, expected):
    return int(np.abs(found.astype(int) - expected).max())


@pytest.mark.parametrize("case", RECORDED["boxes"], ids=lambda case: "x".join(map(str, case["shape"])))
def test_a_box_is_the_one_that_torchvision_takes_with_the_same_numbers(case):
    draws = np.zeros(DRAWS)
    draws[:2], draws[3:23] = case["draws"][:2], case["draws"][2:]
    assert list(random_box(draws, *case["shape"])) == case["box"]


@pytest.mark.parametrize("case", RECORDED["crops"], ids=lambda case: f"{case['picture']} {case['box']}")
def test_a_scaled_box_is_torchvisions_to_one_level(case):
    found = resized(picture_of(case["picture"])[1], case["box"], SIDE, SIDE)
    assert apart(found, stored(case["expected"], found.shape)) <= 1


@pytest.mark.parametrize("case", RECORDED["middles"], ids=lambda case: case["picture"])
def test_a_test_image_is_torchvisions_to_one_level(case):
    found = middle(picture_of(case["picture"])[0], SIDE)
    assert found.shape[:2] == (SIDE, SIDE)
    assert apart(found, stored(case["expected"], found.shape)) <= 1


@given(height=st.integers(1, 300), width=st.integers(1, 300), image=st.integers(0, 10**9))
def test_a_box_lies_in_its_picture_and_is_of_the_area_and_the_ratio_that_are_allowed(height, width, image):
    top, left, h, w = random_box(draw(0, 0, np.array([image]))[0], height, width)
    assert top >= 0 < h <= height - top
    assert left >= 0 < w <= width - left
    if min(height, width) >= 50 and 3 / 4 <= width / height <= 4 / 3:       # else rounding counts, or there is no try
        assert AREA[0] * 0.9 <= h * w / (height * width) <= 1
        assert RATIO[0] * 0.9 <= w / h <= RATIO[1] * 1.1


def test_areas_are_spread_evenly_and_ratios_by_their_logarithm():
    boxes = np.array([random_box(draws, 1000, 1000) for draws in draw(0, 0, np.arange(4000))])
    area, ratio = boxes[:, 2] * boxes[:, 3] / 1e6, np.log(boxes[:, 3] / boxes[:, 2])
    small = area < 0.7                      # of these none is too wide or too high
    assert np.mean(area[small]) == pytest.approx((0.08 + 0.7) / 2, abs=0.01)
    assert np.abs(np.mean(ratio)) < 0.01
    assert np.std(ratio[small]) == pytest.approx(2 * math.log(4 / 3) / math.sqrt(12), abs=0.005)


@given(height=st.integers(1, 90), width=st.integers(1, 90), image=st.integers(0, 99), grey=st.booleans())
def test_a_random_crop_is_pillows_of_its_box_and_mirrored_by_half(height, width, image, grey):
    pixels, draws = photograph(height, width)[..., :1 if grey else 3], draw(3, 1, np.array([image]))[0]
    top, left, h, w = random_box(draws, height, width)
    whole = Image.fromarray(pixels[..., 0] if grey else pixels)
    expected = np.asarray(whole.crop((left, top, left + w, top + h)).resize((20, 24), Image.Resampling.BILINEAR))
    expected = expected[:, ::-1] if draws[MIRROR] < 0.5 else expected
    assert apart(random_crop(pixels, draws, 24, 20), expected.reshape(24, 20, -1)) <= 1


@pytest.mark.parametrize(("side", "scale"), [(300, 1), (101, 1), (100, 2), (51, 2), (50, 4), (26, 4), (25, 8), (1, 8)])
def test_jpeg_is_decoded_as_small_as_the_crop_allows(monkeypatch, side, scale):
    """As Pillow's `draft` decodes it."""
    file, decode, shapes = io.BytesIO(), simplejpeg.decode_jpeg, []
    Image.fromarray(photograph(211, 203)).save(file, "JPEG", quality=95)
    monkeypatch.setattr("dsgd_mpi.data.crops.random_box", lambda *_: (5, 1, 200, 201))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *args, **kw: [
        found := decode(*args, **kw), shapes.append(found.shape)][0])
    found = random_crop(file.getvalue(), np.ones(DRAWS), side, side)
    assert shapes == [(-(-211 // scale), -(-203 // scale), 3)]
    whole = Image.open(file)
    whole.draft("RGB", (203 // scale, 211 // scale))
    assert whole.size == shapes[0][1::-1]
    box = np.array([1, 5, 202, 205]) / scale
    cut = [int(box[0]), int(box[1]), math.ceil(box[2]), math.ceil(box[3])]
    expected = whole.crop(cut).resize((side, side), Image.Resampling.BILINEAR, box - np.array(cut[:2] * 2))
    assert apart(found, expected) <= 1


def test_jpeg_that_is_decoded_smaller_looks_as_if_it_were_not():
    file, draws = io.BytesIO(), draw(0, 0, np.arange(20))
    Image.fromarray(photograph(300, 400)).save(file, "JPEG", quality=95)
    for each in draws:
        found, expected = (random_crop(picture, each, 32, 32).astype(int) for picture in
                           (file.getvalue(), simplejpeg.decode_jpeg(file.getvalue(), "RGB")))
        assert np.abs(found - expected).mean() < 2
