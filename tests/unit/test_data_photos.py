"""Laws of real photographs, whatever way they come in: their pixels are Pillow's, scaled and cut as torchvision does.

Those in `tests/photos` are in the public domain and come with matplotlib and scikit-image; README.rst there says more.
"""

import io

import numpy as np
import pytest
from PIL import Image

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
