"""Laws of the ways in: every layout of ImageNet is the same set, and whatever is strange in it is told in one line."""

import io
import os
import shutil
import struct
import tarfile
import zlib

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dsgd_mpi.data import layouts, matfile, pictures
from dsgd_mpi.data.commands import data
from dsgd_mpi.data.formats import Dataset, check
from dsgd_mpi.errors import UsageError

SYNSETS = {"n01440764": "tench, Tinca tinca", "n02012849": "crane", "n03126707": "crane"}
IDS = {"n01440764": 3, "n02012849": 1, "n03126707": 2}      # the devkit's order is another
TRAIN = [(name, f"{name}_{i}") for name in SYNSETS for i in (10, 7, 105)]
VAL = ["n03126707", "n01440764", "n01440764", "n02012849"]
CLASSES = ["n01440764 tench", "n02012849 crane", "n03126707 crane"]


def photo(seed, mode="RGB", kind="JPEG", size=(12, 9), **options):
    channels = {"RGB": 3, "L": 1, "CMYK": 4, "RGBA": 4, "LA": 2}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), np.uint8)
    made = io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode).save(made, kind, **options) if mode in ("CMYK", "LA") else \
        Image.fromarray(pixels.squeeze()).save(made, kind, **options)
    return made.getvalue()


def train_photos():
    return {name: (synset, photo(i)) for i, (synset, name) in enumerate(TRAIN)}


def val_photos():
    return {f"ILSVRC2012_val_{i + 1:08}": (synset, photo(100 + i)) for i, synset in enumerate(VAL)}


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def tar(contents):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as file:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return made.getvalue()


def element(kind, content):
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def small(kind, content):
    return struct.pack("<HH", kind, len(content)) + content.ljust(4, b"\0")


def matrix(kind, shape, *parts, name=b""):
    start = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, start + (small(1, name) if len(name) <= 4 else element(1, name)) + b"".join(parts))


def text(value):
    return matrix(4, (1, len(value)), element(4, value.encode("utf-16-le")))


def number(value):
    return matrix(6, (1, 1), small(2, bytes([value])))


def meta(packed=True):
    """As MATLAB wrote the devkit's: small numbers in the small form, names of fixed width, synsets of synsets too."""
    rows = [(IDS[name], name, words) for name, words in SYNSETS.items()] + [(4, "n00001740", "entity")]
    fields = b"".join(name.encode().ljust(16, b"\0") for name in ("ILSVRC2012_ID", "WNID", "words", "children"))
    values = b"".join(number(number_) + text(name) + text(words) + matrix(9, (0, 0), element(2, b""))
                      for number_, name, words in sorted(rows))
    body = matrix(2, (4, 1), small(5, struct.pack("<i", 16)), element(1, fields), values, name=b"synsets")
    if packed:
        body = struct.pack("<II", 15, len(zlib.compress(body))) + zlib.compress(body)
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + body


TRUTH = "".join(f"{IDS[name]}\n" for name in VAL)


def train_folders(folder, place="train"):
    for name, (synset, content) in train_photos().items():
        put(folder / place / synset / f"{name}.JPEG", content)


def train_tars(folder):
    for synset in SYNSETS:
        of = {f"{name}.JPEG": content for name, (other, content) in train_photos().items() if other == synset}
        put(folder / "train" / f"{synset}.tar", tar(of))


def train_tar_of_tars(folder):
    train_tars(folder)
    put(folder / "ILSVRC2012_img_train.tar",
        tar({path.name: path.read_bytes() for path in (folder / "train").iterdir()}))
    shutil.rmtree(folder / "train")


def val_flat(folder, place="val"):
    for name, (_, content) in val_photos().items():
        put(folder / place / f"{name}.JPEG", content)


def val_classes(folder):
    for name, (synset, content) in val_photos().items():
        put(folder / "val" / synset / f"{name}.JPEG", content)


def val_tar(folder):
    photos = {f"{name}.JPEG": content for name, (_, content) in val_photos().items()}
    put(folder / "ILSVRC2012_img_val.tar", tar(photos))


def devkit(folder):
    put(folder / "ILSVRC2012_devkit_t12" / "data" / layouts.META, meta())
    put(folder / "ILSVRC2012_devkit_t12" / "data" / layouts.TRUTH, TRUTH)


def devkit_packed(folder):
    with tarfile.open(folder / layouts.DEVKIT_PACKED, "w:gz") as file:
        for name, content in ((layouts.META, meta(False)), (layouts.TRUTH, TRUTH.encode())):
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def kaggle(folder):
    train_folders(folder, "ILSVRC/Data/CLS-LOC/train")
    val_flat(folder, "ILSVRC/Data/CLS-LOC/val")
    lines = [f"{name},{synset} 1 2 3 4 \n" for name, (synset, _) in reversed(val_photos().items())]
    put(folder / layouts.SOLUTION, "ImageId,PredictionString\n" + "".join(lines))
    put(folder / "LOC_synset_mapping.txt", "".join(f"{name} {words}\n" for name, words in SYNSETS.items()))


def words(folder):
    put(folder / "synset_words.txt", "".join(f"{name} {words}\n" for name, words in SYNSETS.items()))


LAYOUTS = {
    "tars": (train_tar_of_tars, val_tar, devkit_packed), "folders": (train_folders, val_classes, words),
    "flat": (train_tars, val_flat, devkit), "kaggle": (kaggle,),
}


def contents_of(items):
    return [(item.label, item.content()) for item in items]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_imagenet_is_the_same_set(tmp_path, layout):
    for make in LAYOUTS[layout]:
        make(tmp_path)
    found = layouts.imagenet(tmp_path)
    label = {name: i for i, name in enumerate(SYNSETS)}
    assert found.classes == CLASSES
    assert sorted(contents_of(found.train)) == sorted((label[s], content) for s, content in train_photos().values())
    assert sorted(contents_of(found.test)) == sorted((label[s], content) for s, content in val_photos().values())
    assert found.remarks == ("9 + 4 images in 3 classes were found; as published there are 1,281,167 + 50,000 images "
                             "in 1,000 classes",)


@pytest.mark.parametrize("line", ["{}.JPEG {}\n", "val/{}.JPEG\t{}\r\n", '"{}",{}\n'])
def test_a_list_of_names_and_synsets_is_read_as_people_write_it(tmp_path, line):
    train_folders(tmp_path)
    val_flat(tmp_path)
    put(tmp_path / "list.txt", "".join(line.format(name, synset) for name, (synset, _) in val_photos().items()))
    found = layouts.imagenet(tmp_path, tmp_path / "list.txt")
    assert [found.classes[item.label].split()[0] for item in found.test] == VAL


def test_matlab_structs_cells_and_numbers_are_read():
    body = matrix(1, (1, 2), text("aé"), number(7), name=b"c")
    body += matrix(6, (2, 2), element(9, np.arange(4.0).tobytes()), name=b"numbers")
    found = matfile.load(bytes(124) + b"\0\1IM" + body)
    assert found["c"][0] == "aé"
    np.testing.assert_array_equal(found["numbers"], [[0, 2], [1, 3]])
    synsets = matfile.load(meta())["synsets"]
    assert [each["WNID"] for each in synsets] == ["n02012849", "n03126707", "n01440764", "n00001740"]
    assert matfile.load(meta())["synsets"][2]["words"] == "tench, Tinca tinca"


@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_matlab_file_is_a_value_error_wherever_it_is_cut(packed):
    whole = meta(packed)
    for end in (*range(0, 128, 9), *range(129, len(whole) - 8, 7)):
        with pytest.raises(ValueError, match=r"damaged|no MATLAB file"):
            matfile.load(whole[:end])
    rng, refused = np.random.default_rng(0), 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.integers(128, len(whole))] = rng.integers(256)
        try:
            matfile.load(bytes(damaged))
        except ValueError:                  # and nothing else
            refused += 1
    assert refused > 20


def lacking(name):
    def act(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return act


AMISS = {
    "no train": (lacking("train"), "expected one of ILSVRC2012_img_train.tar, train, .*, found ILSVRC2012_devkit"),
    "no val": (lacking("val"), "expected one of ILSVRC2012_img_val.tar, val"),
    "no devkit": (lacking("ILSVRC2012_devkit_t12"), "from class folders, LOC_val_solution.csv, .* found neither"),
    "no meta": (lacking(f"ILSVRC2012_devkit_t12/data/{layouts.META}"), "expected the classes of the validation .*"
                "found ILSVRC2012_validation_ground_truth.txt, whose numbers only meta.mat tells the synsets of"),
    "meta": (lambda folder: put(folder / "ILSVRC2012_devkit_t12/data/meta.mat", b"x"), "the devkit's meta.mat"),
    "short": (lambda folder: put(folder / "ILSVRC2012_devkit_t12/data" / layouts.TRUTH, "3\n1\n"),
              "expected a class for each of the validation images in .*, found 2 for image 4"),
    "number": (lambda folder: put(folder / "ILSVRC2012_devkit_t12/data" / layouts.TRUTH, "9\n1\n1\n1\n"), "found no 9"),
    "inner": (lambda folder: put(folder / "ILSVRC2012_devkit_t12/data" / layouts.TRUTH, "4\n1\n1\n1\n"),
              "expected one of the 3 synsets in .*train, found n00001740"),
    "empty": (lambda folder: [path.unlink() for path in (folder / "train" / "n02012849").iterdir()],
              "train: expected images of each class, found none in n02012849; add some, or remove what is empty"),
    "no images": (lambda folder: [path.unlink() for path in (folder / "val").iterdir()], "val: expected images, found"),
    "other classes": (lambda folder: [path.rename(path.with_name(f"class{path.name}")) for path in
                                      (folder / "train").iterdir()], "`data folder` takes other class folders"),
    "list": (lambda folder: put(folder / layouts.SOLUTION, "ILSVRC2012_val_00000001,n01440764 1 2 3 4\n"),
             "expected lines of a name and a synset for all 4 validation images, found 1 and none for .*val_00000002"),
    "binary": (lambda folder: put(folder / layouts.SOLUTION, b"\xff\xfe\xfa"), "expected a list in UTF-8"),
}


@pytest.mark.parametrize("kind", AMISS)
def test_what_is_amiss_with_imagenet_is_one_line(tmp_path, kind):
    for make in (train_folders, val_flat, devkit):
        make(tmp_path)
    act, message = AMISS[kind]
    act(tmp_path)
    with pytest.raises(UsageError, match=message) as told:
        layouts.imagenet(tmp_path)
    assert str(told.value).startswith(str(tmp_path))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("cut", [100, 1000, 9 * 1024, "gz"])
def test_a_tar_file_that_is_cut_off_or_compressed_is_named(tmp_path, cut):
    for make in (train_tar_of_tars, val_tar, devkit):
        make(tmp_path)
    path = tmp_path / "ILSVRC2012_img_val.tar"
    if cut == "gz":
        path.write_bytes(zlib.compress(path.read_bytes()))
    else:
        os.truncate(path, cut if cut < 9000 else 4 * 1024 + 512)
    with pytest.raises(UsageError, match=r"_img_val\.tar: expected a whole tar file, not compressed, found none"):
        layouts.imagenet(tmp_path)


def run(*arguments):
    return CliRunner().invoke(data, [str(argument) for argument in arguments])


@pytest.mark.parametrize("jpeg", [False, True])
def test_imagenet_from_tars_to_what_training_opens(tmp_path, monkeypatch, jpeg):
    if jpeg:
        pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
    monkeypatch.setenv("DSGD_DATA_DIR", str(tmp_path / "data"))
    for make in LAYOUTS["tars"]:
        make(tmp_path)
    done = run("imagenet", "--from", tmp_path, "--size", 8, "--workers", 2, *(["--jpeg"] if jpeg else []))
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{tmp_path}/data/imagenet.h5: 9 training and 4 test images in 2 shards")
    assert done.stderr.count("\n") == 1
    check(tmp_path / "data" / "imagenet.h5")
    with Dataset(tmp_path / "data" / "imagenet.h5") as dataset:
        assert (dataset.image, dataset.classes) == ((8, 8, 3), CLASSES)
        assert [dataset.classes[label].split()[0] for label in dataset.test.labels] == VAL
        found = np.empty((4, 8, 8, 3), np.uint8)
        dataset.test.read(np.arange(4), found)
    for pixels, (_, content) in zip(found, val_photos().values(), strict=True):
        scaled = Image.open(io.BytesIO(content)).resize((10, 8), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(pixels, np.asarray(scaled)[:, 1:9])
    again = run("imagenet", "--from", tmp_path, "--size", 8)
    assert (again.exit_code, again.stdout, again.stderr.count("\n")) == (2, "", 1)


def png(pixels):
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "PNG")
    return made.getvalue()


def turned():
    image, made = Image.new("RGB", (12, 9), (9, 99, 200)), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(made, "JPEG", exif=exif)
    return made.getvalue()


STRANGE = {
    "grey.jpg": (photo(1, "L"), ["1 image is greyscale, made RGB"]),
    "cmyk.jpg": (photo(2, "CMYK"), ["1 image is CMYK, made RGB"]),
    "alpha.png": (photo(3, "RGBA", "PNG"), ["1 image is with alpha, which was dropped"]),
    "deep.png": (png(np.full((9, 9), 40_000, np.uint16)), ["1 image is of 16 bits, made RGB of 8"]),
    "png.JPEG": (photo(4, kind="PNG"), ["1 image is PNG under a name that ends in .JPEG"]),
    "turned.jpg": (turned(), ["1 image is with an EXIF rotation, which was ignored"]),
    "dot.png": (png(np.array([[[255, 0, 0]]], np.uint8)), ["1 image is smaller than 8 pixels, enlarged"]),
    "sound.jpg": (photo(5), []),
}
BROKEN = {
    "cut.jpg": (photo(6, size=(60, 60))[:2000], "image file is truncated"), "empty.jpg": (b"", "an empty file"),
    "page.jpg": (b"<!DOCTYPE html><p>404", "a web page"), "text.jpg": (b"hello", "no picture that Pillow knows"),
    "cut.png": (photo(7, kind="PNG")[:60], ""),
}


def deep_png(*values):
    """9 x 9 pixels of 16 bits a value, by the book: Pillow writes only grey ones."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = (b"\0" + struct.pack(f">{len(values)}H", *values) * 9) * 9
    header = struct.pack(">2I5B", 9, 9, 16, {1: 0, 2: 4, 3: 2, 4: 6}[len(values)], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(image, kind, **options):
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


RED = Image.new("RGB", (9, 9), (255, 0, 0))
MORE = {                                    # the file, its remarks, and the colour of its pixels at 8 x 8
    "grey.png": (deep_png(0x1234), ["of 16 bits, made RGB of 8"], (0x12, 0x12, 0x12)),
    "rgb.png": (deep_png(0x1234, 0xffff, 0x00ff), ["of 16 bits, made RGB of 8"], (0x12, 0xff, 0)),
    "rgba.png": (deep_png(0x1234, 0xffff, 0x00ff, 9), ["of 16 bits, made RGB of 8", "with alpha, which was dropped"],
                 (0x12, 0xff, 0)),
    "deep.tif": (saved(Image.fromarray(np.full((9, 9), 0x1234, np.uint16)), "TIFF"), ["of 16 bits, made RGB of 8"],
                 (0x12, 0x12, 0x12)),
    "la.png": (saved(Image.new("LA", (9, 9), (7, 9)), "PNG"), ["with alpha, which was dropped"], (7, 7, 7)),
    "palette.png": (saved(RED.quantize(2), "PNG"), ["of a palette, made RGB"], (255, 0, 0)),
    "bits.png": (saved(Image.new("1", (9, 9), 1), "PNG"), ["black and white, made RGB"], (255, 255, 255)),
    "moves.gif": (saved(RED, "GIF", save_all=True, append_images=[Image.new("RGB", (9, 9), "blue")]),
                  ["of a palette, made RGB", "of several frames, of which the first was taken"], (255, 0, 0)),
    "long.png": (saved(Image.new("RGB", (90, 9), (1, 2, 3)), "PNG"),
                 ["more than 8 times as long as wide, of which only the middle was taken"], (1, 2, 3)),
    "dot.jpg": (saved(Image.new("RGB", (1, 1), (255, 255, 255)), "JPEG"), ["smaller than 8 pixels, enlarged"],
                (255, 255, 255)),
    "jpeg.png": (saved(RED, "JPEG", quality=95), ["JPEG under a name that ends in .png"], (254, 0, 0)),
    "cmyk.jpg": (saved(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "JPEG", quality=95), ["CMYK, made RGB"],
                 (255, 0, 0)),
    "webp.jpg": (saved(RED, "WEBP", lossless=True), ["WEBP under a name that ends in .jpg"], (255, 0, 0)),
}


@pytest.mark.parametrize("name", MORE)
def test_each_kind_of_picture_is_read_as_told_and_has_its_colour(name):
    content, remarks, colour = MORE[name]
    found = pictures.picture(content, name, 8, False)
    assert list(found.remarks) == remarks
    np.testing.assert_allclose(found.pixels, np.broadcast_to(colour, (8, 8, 3)), atol=1)


@pytest.mark.parametrize(("content", "reason"), [
    (saved(RED, "BMP")[:18] + struct.pack("<2I", 60_000, 60_000) + saved(RED, "BMP")[26:], "3600000000 pixels"),
    (saved(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), "floating-point pixels"),
    (saved(Image.fromarray(np.full((9, 9), 1 << 20, np.int32)), "TIFF"), "32 bits a pixel"),
])
def test_a_picture_that_cannot_be_bytes_is_broken(content, reason):
    with pytest.raises(pictures.Broken, match=reason):
        pictures.picture(content, "x.png", 8, False)


def test_what_is_no_picture_by_name_or_in_no_class_is_counted_and_named(tmp_path):
    classes_folder(tmp_path, {f"{i}.heic": b"x" for i in range(3)})
    put(tmp_path / "val" / "stray.jpg", photo(1))
    put(tmp_path / "val" / "list.txt", "a list is told of nowhere")
    assert layouts.class_folders(tmp_path).remarks == (
        f"5 files are no picture in a class's folder, by name and place, and left out: {tmp_path}/train/cat/0.heic, "
        f"{tmp_path}/train/cat/1.heic, {tmp_path}/train/cat/2.heic, ...",)


def test_what_is_no_picture_in_a_tar_file_is_named_too(tmp_path):
    for part in ("train", "val"):
        for label in ("cat", "dog"):
            put(tmp_path / part / f"{label}.tar", tar({"1.jpg": photo(1), ".hidden": b"x", "2.heic": b"x"}))
    found = layouts.class_folders(tmp_path)
    assert (len(found.train), len(found.test), found.classes) == (2, 2, ["cat", "dog"])
    assert found.remarks[0].startswith("4 files are no picture in a class's folder, by name and place, and left out: "
                                       f"{tmp_path}/train/cat.tar/2.heic, {tmp_path}/train/dog.tar/2.heic, ")


def classes_folder(folder, extra):
    for part in ("train", "val"):
        for label in ("cat", "dog"):
            put(folder / part / label / "1.jpg", photo(len(part + label)))
    for name, content in extra.items():
        put(folder / "train" / "cat" / name, content)
    put(folder / "train" / "cat" / "Thumbs.db", b"x")
    put(folder / "train" / ".hidden" / "1.jpg", b"x")


@pytest.mark.parametrize("jpeg", [False, True])
def test_what_is_strange_is_converted_counted_and_told_and_what_is_broken_is_left_out(tmp_path, jpeg):
    if jpeg:
        pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
    classes_folder(tmp_path / "x", {name: content for name, (content, _) in (STRANGE | BROKEN).items()})
    to = tmp_path / "pets.h5"
    options = ["--from", tmp_path / "x", "--to", to, "--size", 8, *(["--jpeg"] if jpeg else [])]
    strict = run("folder", *options, "--strict")
    assert (strict.exit_code, strict.stdout, strict.stderr.count("\n")) == (2, "", 1)
    assert ": expected an image, found " in strict.stderr
    done = run("folder", *options)
    assert done.exit_code == 0, done.output
    told = done.stderr.splitlines()
    for _, remarks in STRANGE.values():
        for remark in remarks:
            assert f"Warning: {remark}" in told
    assert ("Warning: 5 images are stored as JPEG of quality 95" in told) == jpeg
    for name, (_, reason) in BROKEN.items():
        assert any(line.startswith(f"Warning: left out train {tmp_path}/x/train/cat/{name}: {reason}") for line in told)
    assert (f"Warning: 1 file is no picture in a class's folder, by name and place, and left out: {tmp_path}/x/train/"
            "cat/Thumbs.db") in told
    assert len(told) == len(BROKEN) + len(STRANGE) + jpeg
    assert done.stdout.startswith(f"{to}: {2 + len(STRANGE)} training and 2 test images in 2 shards")
    check(to)
    with Dataset(to) as dataset:
        assert dataset.classes == ["cat", "dog"]
        pixels = dataset.train._images[:]
        assert any((image == [40_000 >> 8] * 3).all() for image in pixels)                      # deep.png
        assert any((np.abs(image.astype(int) - [255, 0, 0]) < 3).all() for image in pixels)     # dot.png


def test_a_share_of_each_class_becomes_test_images(tmp_path):
    for label, count in (("cat", 10), ("dog", 2)):
        for i in range(count):
            put(tmp_path / "x" / label / f"{i}.jpg", photo(i))
    found = layouts.class_folders(tmp_path / "x", 0.2)
    assert [[item.label for item in part] for part in (found.train, found.test)] == [[0] * 8 + [1], [0, 0, 1]]
    assert not {item.name for item in found.train} & {item.name for item in found.test}
    assert layouts.class_folders(tmp_path / "x", 0.2) == found
    with pytest.raises(UsageError, match=r"share of the images that become test images, as --test-share 0\.1"):
        layouts.class_folders(tmp_path / "x")
    classes_folder(tmp_path / "both", {})
    with pytest.raises(UsageError, match=r"expected --test-share only where there are no .*, found .*both/val"):
        layouts.class_folders(tmp_path / "both", 0.2)
    (tmp_path / "x" / "dog" / "1.jpg").unlink()
    with pytest.raises(UsageError, match="x/dog: expected at least 2 images"):
        layouts.class_folders(tmp_path / "x", 0.2)


@pytest.mark.parametrize(("act", "message"), [
    (lambda folder: shutil.rmtree(folder), "expected a folder, found nothing"),
    (lambda folder: shutil.rmtree(folder / "train" / "cat"), "expected a folder of images for each class, found dog"),
    (lambda folder: put(folder / "val" / "cow" / "1.jpg", b"x"), "val: expected the classes of .*train, found cow too"),
    (lambda folder: shutil.rmtree(folder / "val"), "expected train/ and val/ or test/ in it, found train; give"),
    (lambda folder: (folder / "train" / "cow").mkdir(), "expected images of each class, found none in cow"),
])
def test_what_is_amiss_with_class_folders_is_one_line(tmp_path, act, message):
    classes_folder(tmp_path / "x", {})
    act(tmp_path / "x")
    with pytest.raises(UsageError, match=message) as told:
        layouts.class_folders(tmp_path / "x")
    assert "\n" not in str(told.value)


def test_pictures_are_safe_from_their_conversion(tmp_path):
    """The folder beside pets.h5 is pets."""
    classes_folder(tmp_path / "pets", {})
    before = sorted(tmp_path.rglob("*"))
    refused = run("folder", "--from", tmp_path / "pets", "--to", tmp_path / "pets.h5")
    assert refused.exit_code == 2
    assert refused.stderr == (f"Error: {tmp_path}/pets: expected an empty folder for the shards, or what is whole of "
                              "them, found train, val; choose another path by --to\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_that_goes_round_is_followed_once(tmp_path):
    classes_folder(tmp_path, {})
    (tmp_path / "train" / "cat" / "again").symlink_to(tmp_path / "train" / "cat")
    assert len(layouts.class_folders(tmp_path).train) == 2


def test_names_that_are_no_utf8_are_told_and_stored(tmp_path):
    classes_folder(tmp_path / "x", {})
    for part in (b"train", b"val"):
        (tmp_path / "x" / os.fsdecode(part) / "dog").rename(tmp_path / "x" / os.fsdecode(part) / os.fsdecode(b"d\xff"))
    with open(os.fsencode(tmp_path / "x" / "train" / "cat") + b"/\xff.jpg", "wb") as file:
        file.write(b"hello")
    done = run("folder", "--from", tmp_path / "x", "--to", tmp_path / "y.h5", "--size", 8)
    assert done.exit_code == 0, done.output
    assert "no picture that Pillow knows" in done.stderr
    told = run("info", tmp_path / "y.h5").stdout
    assert "cat/\\xff.jpg: no picture that Pillow knows" in told
    assert "in 2 classes: cat, d\\xff" in told


def test_a_made_up_set_is_made_of_any_shape(tmp_path):
    done = run("synthetic", "6x4x2:3:7", "--to", tmp_path / "x.h5", "--workers", 2)
    assert done.stdout.startswith(f"{tmp_path}/x.h5: 7 training and 1 test images in 2 shards, 0.0 MB")
    check(tmp_path / "x.h5")
    with Dataset(tmp_path / "x.h5") as dataset:
        assert dataset.image == (6, 4, 2)
        assert sorted(dataset.train.labels) == [0, 0, 0, 1, 1, 2, 2]
    for what in ("6x4:3", "6x4x2:9:3", "0x4x2:3", "6x4x2:3:0", "x"):
        refused = run("synthetic", what, "--to", tmp_path / "y.h5")
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
        assert "for instance 224x224x3:1000:10000" in refused.stderr
