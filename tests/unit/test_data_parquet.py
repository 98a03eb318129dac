"""Laws of pictures in Parquet files: what Hugging Face's files hold comes out, and what is amiss has its one line."""

import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from dsgd_mpi.data import parquet, sharding
from dsgd_mpi.data.formats import Dataset, check
from dsgd_mpi.errors import UsageError
from tests.unit.test_data_layouts import BROKEN, put
from tests.unit.test_data_packed import EVERY, LABELS, NAMES, PHOTOS, contents_of, run

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
CLASSES = ["fox", "cat", "dog"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def metadata(names=CLASSES, image="image", label="label"):
    features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def struct(pictures, paths=None):
    return pa.array([{"bytes": each, "path": f"{i}.jpg" if paths is None else paths}
                     for i, each in enumerate(pictures)], IMAGE)


def write(path, columns, metadata=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata), path, **{"row_group_size": 3} | options)


def files(folder, labels=LABELS, names=NAMES, meta=None, image="image", label="label", column=struct, **options):
    meta = metadata(image=image, label=label) if meta is None else meta
    for name, pictures, numbers in zip(names, PHOTOS, labels, strict=True):
        write(folder / f"{name}.parquet", {image: column(pictures), label: numbers}, meta, **options)


def found_in(folder, **options):
    """As the command finds them."""
    found, there = parquet.find(folder, **options), folder.with_name(f"{folder.name}-unpacked")
    there.mkdir(exist_ok=True)
    for job in found.jobs(there):
        parquet.unpack(job, lambda count: True)
    return found.found(there)


WAYS = {
    "datasets": {}, "no compression": {"compression": "none"}, "zstd": {"compression": "zstd", "row_group_size": 100},
    "plain bytes": {"column": pa.array, "meta": {}}, "large": {"column": lambda x: pa.array(x, pa.large_binary())},
    "other columns": {"image": "img", "label": "fine_label"}, "any columns": {"image": "photo", "label": "kind"},
    "dictionary": {"use_dictionary": True, "data_page_size": 100},
    "bytes alone": {"column": lambda x: pa.array([{"bytes": each} for each in x], pa.struct([("bytes", pa.binary())]))},
}


@pytest.mark.parametrize("way", WAYS)
def test_what_parquet_files_hold_is_found_with_labels_and_names(tmp_path, way):
    files(tmp_path / "x", **WAYS[way])
    found = found_in(tmp_path / "x")
    assert contents_of(found) == (EVERY[:8], EVERY[8:])
    assert found.classes == (["0", "1", "2"] if way == "plain bytes" else CLASSES)
    assert found.remarks == ()
    named = way not in ("plain bytes", "large", "bytes alone")
    assert found.train[1].name == f"{tmp_path}/x/{NAMES[0]}.parquet/1{' 1.jpg' * named}"


def test_parquet_files_to_what_training_opens_and_nothing_stays_of_what_was_unpacked(tmp_path):
    files(tmp_path / "x" / "data")
    put(tmp_path / "y" / ".train-00000.h5.01234567.part", b"of a process that was killed")
    done = run("hf-parquet", "--from", tmp_path / "x", "--to", tmp_path / "y.h5", "--size", 8)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    assert sorted(path.name for path in (tmp_path / "y").iterdir()) == ["test-00000.h5", "train-00000.h5"]
    check(tmp_path / "y.h5")
    with Dataset(tmp_path / "y.h5") as dataset:
        assert dataset.classes == CLASSES
        assert dataset.test.labels.tolist() == LABELS[2]
        out = np.empty((3, 8, 8, 3), np.uint8)
        dataset.test.read(np.arange(3), out)
    for pixels, (content, _) in zip(out, EVERY[8:], strict=True):
        scaled = Image.open(io.BytesIO(content)).resize((10, 8), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(pixels, np.asarray(scaled)[:, 1:9])


def test_a_conversion_that_was_ended_while_it_unpacks_or_later_goes_on(tmp_path, monkeypatch):
    files(tmp_path / "x")
    options = ("hf-parquet", "--from", tmp_path / "x", "--size", 8, "--workers", 1)
    assert run(*options, "--to", tmp_path / "whole.h5").exit_code == 0
    real, unpacked = parquet.unpack, []

    def unpack(job, done):
        if len(unpacked) == 2:
            raise OSError(28, "No space left on device")
        unpacked.append(job)
        real(job, done)

    with monkeypatch.context() as patched:
        patched.setattr(parquet, "unpack", unpack)
        ended = run(*options, "--to", tmp_path / "y.h5")
    assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1)
    assert "No space left on device; mend that, and convert again: what is whole is kept" in ended.stderr
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "y").iterdir()}
    assert [path.name for path in sorted(there)] == ["unpacked-00000.bin", "unpacked-00001.bin"]
    with monkeypatch.context() as patched:
        patched.setattr(sharding, "_write_index", lambda *_: 1 / 0)
        assert isinstance(run(*options, "--to", tmp_path / "y.h5").exception, ZeroDivisionError)
    assert there.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / "y").iterdir()}.items()
    assert run(*options, "--to", tmp_path / "y.h5").exit_code == 0
    for name in ("train-00000.h5", "test-00000.h5"):
        assert (tmp_path / "y" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_file_that_was_unpacked_by_half_or_of_another_file_is_unpacked_again(tmp_path):
    files(tmp_path / "x")
    found_in(tmp_path / "x")
    first = tmp_path / "x-unpacked" / "unpacked-00000.bin"
    whole = first.read_bytes()
    for damaged in (whole[:-1], whole[1:], b"", b"x" * 9):
        first.write_bytes(damaged)
        found_in(tmp_path / "x")
        assert first.read_bytes() == whole
    files(tmp_path / "x", [*LABELS[:2], [1, 1, 1]], [*NAMES[:2], "val"])
    (tmp_path / "x" / f"{NAMES[2]}.parquet").unlink()
    assert [item.label for item in found_in(tmp_path / "x").test] == [1, 1, 1]


def test_rows_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    """What is written is written before the next rows are read: memory does not grow with the file."""
    pictures = [os.urandom(1000) for _ in range(300)]
    write(tmp_path / "train.parquet", {"image": struct(pictures), "label": [0] * 300}, row_group_size=100)
    seen = []
    parquet.unpack((str(tmp_path / "train.parquet"), "name", "image", str(tmp_path / "out.bin")),
                   lambda count: seen.append(count) or True)
    assert sum(seen) == 300
    assert max(seen) <= parquet.ROWS
    assert (tmp_path / "out.bin").read_bytes().startswith(b"".join(pictures))


def test_a_job_that_is_no_longer_wanted_leaves_nothing(tmp_path):
    files(tmp_path)
    parquet.unpack((str(tmp_path / f"{NAMES[0]}.parquet"), "name", "image", str(tmp_path / "out.bin")), lambda _: False)
    assert not list(tmp_path.glob("*.bin")) + list(tmp_path.glob(".*"))


def test_broken_pictures_and_rows_without_one_are_named_and_left_out(tmp_path):
    files(tmp_path / "x")
    broken = [content for content, _ in BROKEN.values()]
    column = pa.array([*({"bytes": each, "path": f"a\n{i}.jpg"} for i, each in enumerate(broken)), None,
                       {"bytes": None, "path": None}], IMAGE)
    write(tmp_path / "x" / "train-more.parquet", {"image": column, "label": [0] * len(column)}, metadata())
    done = run("hf-parquet", "--from", tmp_path / "x", "--to", tmp_path / "y.h5", "--size", 8)
    told = done.stderr.splitlines()
    assert (done.exit_code, len(told)) == (0, len(column)), done.output
    for row, (_, reason) in enumerate(BROKEN.values()):
        assert any(f"train-more.parquet/{row} a\\n{row}.jpg: {reason}" in line for line in told)
    for row in (len(broken), len(broken) + 1):
        assert any(line.endswith(f"train-more.parquet/{row}: an empty file") for line in told)
    strict = run("hf-parquet", "--from", tmp_path / "x", "--to", tmp_path / "z.h5", "--size", 8, "--strict")
    assert (strict.exit_code, strict.stderr.count("\n")) == (2, 1)


def test_a_share_becomes_test_images_where_there_are_none(tmp_path):
    files(tmp_path / "x", names=["0", "1", "2"])
    train, test = contents_of(found_in(tmp_path / "x", test_share=0.3))
    assert sorted(train + test) == sorted(EVERY)
    assert sorted(label for _, label in test) == [0, 1, 2]
    write(tmp_path / "x" / "3.parquet", {"image": ONE, "label": [3]}, metadata([*CLASSES, "emu"]))
    files(tmp_path / "x", names=["0", "1", "2"], meta=metadata([*CLASSES, "emu"]))
    with pytest.raises(UsageError, match=f"{tmp_path}/x: class emu: expected at least 2 images, .* found 1; add some"):
        parquet.find(tmp_path / "x", test_share=0.3)


def change(**options):
    return lambda folder: files(folder, **options)


def another(name, columns, meta=None):
    return lambda folder: write(folder / f"{name}.parquet", columns, meta or metadata())


ONE = struct(PHOTOS[0][:1])
AMISS = {
    "none": (lambda folder: [path.rename(path.with_suffix(".arrow")) for path in folder.iterdir()],
             r"expected Parquet files, \*\.parquet, in it or in subfolders, found train-00000-of-00002.arrow"),
    "text": (lambda folder: put(folder / f"{NAMES[0]}.parquet", "<html>" * 9), "found none, a web page"),
    "pointer": (lambda folder: put(folder / f"{NAMES[0]}.parquet", "version https://git-lfs.github.com/spec/v1\noid"),
                "found a pointer of Git LFS to one; fetch it by `git lfs pull`"),
    "empty": (lambda folder: put(folder / f"{NAMES[0]}.parquet", b""), "expected a whole Parquet file, found none"),
    "cut": (lambda folder: os.truncate(folder / f"{NAMES[0]}.parquet", 900), "expected a whole Parquet file, found no"),
    "columns": (another("train-x", {"picture": ONE, "label": [1]}, {"a": "b"}),
                "train-x.parquet: expected a column image or img, found picture, label; name it by --image-column"),
    "two": (another("train-x", {"a": ONE, "b": ONE, "label": [1]},
                    {"huggingface": json.dumps({"info": {"features": {key: {"_type": "Image"} for key in "ab"}}})}),
            "found a, b, label; name it by --image-column"),
    "pixels": (another("train-x", {"image": [[[1, 2]]], "label": [1]}),
               "expected image as a struct of bytes and path, or as binary, found list<.*list<"),
    "paths": (another("train-x", {"image": ["a.jpg"], "label": [1]}), "or as binary, found string; name the column"),
    "words": (another("train-x", {"image": ONE, "label": ["cat"]}),
              r"label as integers, found string; number the classes by dataset.class_encode_column\('label'\)"),
    "one-hot": (another("train-x", {"image": ONE, "label": [[0, 1]]}), "expected label as integers, found list<"),
    "floats": (another("train-x", {"image": ONE, "label": [1.0]}), "found double; name the column with the number"),
    "no label": (another("train-x", {"image": ONE, "label": pa.array([None], pa.int64())}),
                 "expected a label in each row, found 1 of 1 without; leave out images that have no known class"),
    "unknown": (change(labels=[*LABELS[:2], [-1, -1, -1]]), "expected labels counted from 0, .* found -1 to 2"),
    "from 1": (change(labels=[[label + 1 for label in each] for each in LABELS]), "found 1 to 3; if they are counted "
               "from 1, add --first-label 1"),
    "few names": (change(meta=metadata(CLASSES[:2])), "expected the names of 3 classes, found 2 and labels from 0 to "
                  "2; add the other names, or give them all by --classes FILE"),
    "other classes": (another("train-x", {"image": ONE, "label": [1]}, metadata(["x", "y", "z"])),
                      "train-x.parquet: expected the classes of .*train-00000.*, found others; give the folder of one"),
    "no rows": (another(NAMES[2], {"image": ONE[:0], "label": pa.array([], pa.int64())}),
                "validation-.*: expected test images, found no rows; give files that have some"),
}


@pytest.mark.parametrize("kind", AMISS)
def test_what_is_amiss_with_parquet_files_is_one_line(tmp_path, kind):
    files(tmp_path / "x")
    act, message = AMISS[kind]
    act(tmp_path / "x")
    with pytest.raises(UsageError, match=message) as told:
        parquet.find(tmp_path / "x")
    assert str(told.value).startswith(str(tmp_path))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("option", "name"), [("image", "picture"), ("label", "kind")])
def test_columns_are_taken_by_the_names_that_are_given(tmp_path, option, name):
    files(tmp_path / "x", meta={}, **{option: name})
    with pytest.raises(UsageError, match=f"name it by --{option}-column"):
        parquet.find(tmp_path / "x")
    assert contents_of(found_in(tmp_path / "x", **{option: name})) == (EVERY[:8], EVERY[8:])


def test_a_file_whose_pages_are_damaged_and_one_that_has_only_paths_are_one_line(tmp_path):
    files(tmp_path / "x", write_page_checksum=True)
    path = tmp_path / "x" / f"{NAMES[1]}.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:300] + bytes(9) + whole[309:])
    done = run("hf-parquet", "--from", tmp_path / "x", "--to", tmp_path / "y.h5")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert f"Error: {path}: expected a whole Parquet file, found none" in done.stderr
    write(path, {"image": pa.array([{"bytes": None, "path": "a/b.jpg"}], IMAGE), "label": [1]}, metadata())
    done = run("hf-parquet", "--from", tmp_path / "x", "--to", tmp_path / "y.h5")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "found only the path a/b.jpg in row 0; write it with its files embedded" in done.stderr


def test_without_pyarrow_the_way_out_is_told(tmp_path, monkeypatch):
    files(tmp_path / "x")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    done = run("hf-parquet", "--from", tmp_path / "x", "--to", tmp_path / "y.h5")
    assert done.stderr == (f"Error: {tmp_path}/x: reading Parquet files needs pyarrow, which is not installed; pip "
                           "install pyarrow\n")
