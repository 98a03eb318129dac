"""Laws of real photographs, whatever way they come in: their pixels are Pillow's, scaled and cut as torchvision does.

Those in `tests/photos` are in the public domain and come with matplotlib and scikit-image; README.rst there says more.
"""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from dsgd_mpi.data import pictures
from dsgd_mpi.data.formats import Dataset, check
from tests.support import ROOT
from tests.unit.test_data_layouts import put, run, tar

NAMES = ["grace_hopper.jpg", "rocket.jpg", "clock_motion.png"]
PHOTOS = {name: (ROOT / "tests" / "photos" / name).read_bytes() for name in NAMES}
LABELS = dict(zip(NAMES, [0, 1, 1], strict=True))
SYNSETS = ["n01440764", "n02012849"]
SIZE = 120


def folders(folder):
    for part in ("train", "val"):
        for name in NAMES:
            put(folder / part / f"class{LABELS[name]}" / name, PHOTOS[name])
    return ["folder"]


def imagenet(folder):
    for label, synset in enumerate(SYNSETS):
        of = {f"{synset}_{i}.JPEG": PHOTOS[name] for i, name in enumerate(NAMES) if LABELS[name] == label}
        put(folder / "train" / f"{synset}.tar", tar(of))
    put(folder / "ILSVRC2012_img_val.tar",
        tar({f"ILSVRC2012_val_{i + 1:08}.JPEG": PHOTOS[name] for i, name in enumerate(NAMES)}))
    put(folder / "LOC_val_solution.csv",
        "".join(f"ILSVRC2012_val_{i + 1:08},{SYNSETS[LABELS[name]]} 1 2 3 4\n" for i, name in enumerate(NAMES)))
    return ["imagenet"]


def webdataset(folder):
    samples = {f"{i}.{kind}": content for i, name in enumerate(NAMES)
               for kind, content in ((name[-3:], PHOTOS[name]), ("cls", b"%d" % LABELS[name]))}
    for part in ("train", "val"):
        put(folder / f"{part}-0.tar", tar(samples))
    return ["webdataset"]


def parquet(folder):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as pq
    folder.mkdir()
    pictures = [{"bytes": PHOTOS[name], "path": name} for name in NAMES]
    table = pa.table({"image": pictures, "label": list(LABELS.values())})
    for part in ("train", "validation"):
        pq.write_table(table, folder / f"{part}-00000-of-00001.parquet", row_group_size=2)
    return ["hf-parquet"]


def by_pillow(content):
    """Resize(SIZE), CenterCrop(SIZE), written down anew."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    short = min(image.size)
    image = image.resize([SIZE * side // short for side in image.size], Image.Resampling.BILINEAR)
    left, top = (round((side - SIZE) / 2) for side in image.size)
    return np.asarray(image)[top:top + SIZE, left:left + SIZE].astype(int)


@pytest.mark.parametrize("jpeg", [False, True])
def test_a_photograph_that_is_damaged_within_is_broken_though_pillow_reads_it(jpeg):
    pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
    whole = PHOTOS["rocket.jpg"]
    for damaged in (whole[:60_000] + bytes(200) + whole[60_200:], whole[:60_000] + whole[60_100:]):
        Image.open(io.BytesIO(damaged)).load()
        with pytest.raises(pictures.Broken, match=r"damaged within \(premature end of data segment\)"):
            pictures.picture(damaged, "rocket.jpg", SIZE, jpeg)
    end = whole.rindex(b"\xff\xd9")
    found = pictures.picture(whole[:end] + bytes(50) + whole[end:], "rocket.jpg", SIZE, jpeg)
    assert found.remarks == ("a JPEG with bytes of no use in it, as damage may leave them",)
    np.testing.assert_array_equal(found.pixels, by_pillow(whole))


def test_without_simplejpeg_it_is_told_that_damage_is_not_looked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    done = run(*folders(tmp_path / "x"), "--from", tmp_path / "x", "--to", tmp_path / "y.h5", "--size", 8)
    assert done.exit_code == 0, done.output
    assert ("Warning: JPEG files were not searched for damage within, which takes simplejpeg: pip install simplejpeg\n"
            in done.stderr)


def found_in(split):
    found = np.empty((len(split), SIZE, SIZE, 3), np.uint8)
    split.read(np.arange(len(split)), found)
    return found.astype(int)


@pytest.mark.parametrize(("way", "jpeg"), [(folders, False), (imagenet, False), (webdataset, False), (parquet, False),
                                           (folders, True), (parquet, True)])
def test_photographs_come_out_as_pillow_reads_them(tmp_path, way, jpeg):
    command = way(tmp_path / "x")
    to = tmp_path / "y.h5"
    done = run(*command, "--from", tmp_path / "x", "--to", to, "--size", SIZE, *(["--jpeg"] if jpeg else []))
    assert done.exit_code == 0, done.output
    assert "2 images are greyscale, made RGB" in done.stderr
    check(to)
    expected = {name: by_pillow(content) for name, content in PHOTOS.items()}
    with Dataset(to) as dataset:
        for split in (dataset.train, dataset.test):
            for pixels, label in zip(found_in(split), split.labels, strict=True):
                apart = {name: np.abs(pixels - expected[name]).max() for name in NAMES if LABELS[name] == label}
                name = min(apart, key=apart.get)
                assert apart.pop(name) <= (0 if not jpeg else 1 if name.endswith(".jpg") else 2)
                assert all(other > 50 for other in apart.values())
        if jpeg:
            stored = {bytes(each) for each in dataset.train._images.encoded(np.arange(3))}
            assert {PHOTOS[name] for name in NAMES if name.endswith(".jpg")} < stored
