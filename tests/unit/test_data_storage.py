"""Laws of what is stored: nothing that HDF5 would replace by zeros is trained on, and each cause has its own line."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from dsgd_mpi.config import Config
from dsgd_mpi.data import check as checks
from dsgd_mpi.data import storage
from dsgd_mpi.data.formats import Dataset, check
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.launch import Launch
from dsgd_mpi.training import build
from dsgd_mpi.training.build import prepare
from tests.support.data_samples import content, dataset_file

ROWS = 60
HALF = ROWS // 2


def refused(act, path, *words):
    with pytest.raises(UsageError) as told:
        act(path)
    message = str(told.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def verified(path):
    check(path)


def trained(path):
    """What `train` does before the first step."""
    prepare(Config(data=str(path), batch=4, model="resnet8", kernels="reference"), 1)


BOTH = pytest.mark.parametrize("act", [verified, trained])


def virtual_file(folder, name="all.h5", part="{}.h5"):
    """The training images in a.h5 and b.h5, by relative names unless `part` says otherwise."""
    whole = dataset_file(folder)
    images = content().train[0]
    layout = h5py.VirtualLayout(images.shape, np.uint8)
    for index, letter in enumerate("ab"):
        rows = slice(HALF * index, HALF * (index + 1))
        with h5py.File(folder / f"{letter}.h5", "w") as file:
            file["x"] = images[rows]
        layout[rows] = h5py.VirtualSource(part.format(letter), "x", images[rows].shape)
    path = whole.rename(folder / name)
    with h5py.File(path, "r+") as file:
        del file["train/images"]
        file.create_virtual_dataset("train/images", layout)
    return path


@BOTH
def test_a_virtual_dataset_is_as_good_as_a_plain_one_while_it_is_whole(tmp_path, act, monkeypatch):
    path = virtual_file(tmp_path)
    act(path)
    out = np.empty((ROWS, 8, 8, 3), np.uint8)
    with Dataset(path) as dataset:
        dataset.train.read(np.arange(ROWS), out)
    np.testing.assert_array_equal(out, content().train[0])
    (tmp_path / "link.h5").symlink_to(path)
    act(tmp_path / "link.h5")
    monkeypatch.chdir(tmp_path)
    act("all.h5")


@BOTH
@pytest.mark.parametrize("by", ["{}.h5", "absolute"])
def test_a_virtual_dataset_whose_parts_are_gone_is_refused_by_their_names(tmp_path, act, by):
    path = virtual_file(tmp_path, part=f"{tmp_path}/{{}}.h5" if by == "absolute" else by)
    (tmp_path / "b.h5").rename(tmp_path / "c.h5")
    refused(act, path, "train/images is a virtual dataset in 2 other files, of which ", "b.h5 cannot be found")
    (tmp_path / "c.h5").rename(tmp_path / "b.h5")
    act(path)                               # as the line says: put them where they were
    if by != "absolute":                    # those were not moved
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        moved = path.rename(elsewhere / path.name)
        refused(act, moved, "a.h5, b.h5 cannot be found")
        code = f"from dsgd_mpi.data.formats import check; check({str(moved)!r})"
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "HDF5_VDS_PREFIX": str(tmp_path)})


@pytest.mark.parametrize(("change", "words"), [
    (lambda f: f.move("x", "y"), "has no x for it"),
    (lambda f: (f.pop("x"), f.update(x=content().train[0][:HALF - 1])), "another shape, (29, 8, 8, 3)"),
    (lambda f: (f.pop("x"), f.create_dataset("x", (HALF, 8, 8, 3), "u1", chunks=(10, 8, 8, 3))), "only 0 of 3 chunks"),
    (lambda f: (f.pop("x"), f.create_dataset("x", (HALF, 8, 8, 3), "u1")), "was never written"),
])
@BOTH
def test_a_part_that_is_there_but_does_not_hold_its_images_is_refused(tmp_path, act, change, words):
    path = virtual_file(tmp_path)
    with h5py.File(tmp_path / "b.h5", "r+") as file:
        change(file)
    refused(act, path, words)


@BOTH
def test_a_part_that_is_damaged_or_no_hdf5_is_refused(tmp_path, act):
    path = virtual_file(tmp_path)
    (tmp_path / "b.h5").write_bytes(b"zeros")
    refused(act, path, "b.h5", "damaged")


@BOTH
def test_a_virtual_dataset_that_is_not_mapped_everywhere_is_refused(tmp_path, act):
    path = virtual_file(tmp_path)
    layout = h5py.VirtualLayout((ROWS, 8, 8, 3), np.uint8)
    layout[:HALF] = h5py.VirtualSource("a.h5", "x", (HALF, 8, 8, 3))
    with h5py.File(path, "r+") as file:
        del file["train/images"]
        file.create_virtual_dataset("train/images", layout)
    refused(act, path, "only 5760 of 11520 values are mapped")


def test_virtual_datasets_that_mean_each_other_are_refused(tmp_path):
    path = dataset_file(tmp_path)
    layout = h5py.VirtualLayout((ROWS,), np.uint8)
    layout[:] = h5py.VirtualSource(".", "train/labels", (ROWS,))
    with h5py.File(path, "r+") as file:
        del file["train/labels"]
        file.create_virtual_dataset("train/labels", layout)
    refused(check, path, "more than 8 deep")


@BOTH
def test_a_virtual_dataset_without_an_end_is_refused_too_when_its_part_is_gone(tmp_path, act):
    path = virtual_file(tmp_path)
    images, end = content().train[0], h5py.h5s.UNLIMITED
    limits = {"shape": images.shape, "maxshape": (None, 8, 8, 3)}
    layout = h5py.VirtualLayout(dtype=np.uint8, **limits)
    layout[0:end] = h5py.VirtualSource("b.h5", "x", **limits)[0:end]
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("x", data=images, maxshape=limits["maxshape"])
    with h5py.File(path, "r+") as file:
        del file["train/images"]
        file.create_virtual_dataset("train/images", layout)
    act(path)
    (tmp_path / "b.h5").unlink()
    refused(act, path, "b.h5 cannot be found")


@BOTH
def test_external_files_are_found_whole_or_the_file_is_refused(tmp_path, act, monkeypatch):
    path, images = dataset_file(tmp_path), content().train[0]
    monkeypatch.chdir(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["train/images"]
        file.create_dataset("train/images", data=images, external=[("1.raw", 8, HALF * 192), ("2.raw", 0, HALF * 192)])
    act(path)
    os.truncate("2.raw", 100)
    refused(act, path, "expected 5760 bytes of train/images in 2.raw", "found 100")
    (tmp_path / "2.raw").unlink()
    refused(act, path, "train/images is kept in 2 other files, of which 2.raw cannot be found")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "1.raw").rename(tmp_path / "elsewhere" / "1.raw")
    (tmp_path / "elsewhere" / "2.raw").write_bytes(images[HALF:].tobytes())
    code = f"from dsgd_mpi.data.formats import check; check({str(path)!r})"
    subprocess.run([sys.executable, "-c", code], check=True,
                   env={**os.environ, "HDF5_EXTFILE_PREFIX": str(tmp_path / "elsewhere")})


@BOTH
@pytest.mark.parametrize("name", ["train", "test/labels"])
def test_a_link_to_a_file_that_is_gone_is_told_by_its_name(tmp_path, act, name):
    path = dataset_file(tmp_path)
    with h5py.File(path, "r+") as file, h5py.File(tmp_path / "other.h5", "w") as other:
        file.copy(name, other, "x")
        del file[name]
        file[name] = h5py.ExternalLink("other.h5", "/x")
    act(path)
    (tmp_path / "other.h5").rename(tmp_path / "moved.h5")
    refused(act, path, f"{name}", "is a link to /x in other.h5, where it cannot be found")


@BOTH
@pytest.mark.parametrize("name", ["train/images", "test/images", "train/labels", "test/labels"])
@pytest.mark.parametrize("chunked", [True, False])
def test_what_was_never_written_is_refused(tmp_path, act, name, chunked):
    path = dataset_file(tmp_path)
    with h5py.File(path, "r+") as file:
        shape, kind = file[name].shape, file[name].dtype
        del file[name]
        if chunked:
            file.create_dataset(name, shape, kind, chunks=(10, *shape[1:]))[:10] = 1
        else:
            file.create_dataset(name, shape, kind)
    of = shape[0] // 10
    words = f"only 1 of {of} chunks of {name} were ever written" if chunked else f"{name} was never written"
    refused(act, path, words, "HDF5 gives 0", "convert it again")


def test_of_very_many_chunks_some_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "COUNTED", 10)
    monkeypatch.setattr(storage, "LOOKED_AT", 20)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        images = file.create_dataset("x", (ROWS, 2), "u1", chunks=(1, 2))
        images[:-1] = 1
        with pytest.raises(UsageError, match="only 20 of 21 chunks"):
            storage.check_written(images, tmp_path, thorough=False)
        with pytest.raises(UsageError, match="only 59 of 60 chunks"):
            storage.check_written(images, tmp_path)
        images[-1] = 1
        storage.check_written(images, tmp_path, thorough=False)


def with_filter(path, code, name="train/images"):
    """Says that a filter was used, as a program does that has it."""
    with h5py.File(path, "r+") as file:
        data = file[name][()]
        pipeline = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        pipeline.set_chunk(data.shape)
        pipeline.set_filter(code, h5py.h5z.FLAG_OPTIONAL, ())
        del file[name]
        made = h5py.h5d.create(file.id, name.encode(), h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple(data.shape),
                               pipeline)
        made.write_direct_chunk((0,) * data.ndim, data.tobytes(), 0)


@BOTH
@pytest.mark.parametrize(("code", "name"), [(32001, "Blosc"), (32015, "Zstandard"), (32008, "bitshuffle"),
                                            (32004, "LZ4"), (40000, "of a name unknown here")])
def test_a_filter_that_is_not_installed_is_named_and_the_file_not_blamed(tmp_path, act, code, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    path = dataset_file(tmp_path)
    with_filter(path, code)
    message = refused(act, path, f"filter {code} ({name})", "not installed", "pip install hdf5plugin",
                      "HDF5_PLUGIN_PATH")
    assert "damaged" not in message
    assert "again" not in message


HOLDING = """
import sys, h5py
file = h5py.File(sys.argv[1], 'r+', libver=sys.argv[2] or None)
file.attrs['being'] = 'written'
print('open', flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("libver", "locking", "words"), [
    ("", "TRUE", "locked, another process has it open for writing"), ("", "junk", None), ("", "FALSE", None),
    ("latest", None, "open for writing elsewhere")])
def test_a_file_that_is_open_for_writing_elsewhere_is_said_to_be_that(tmp_path, libver, locking, words):
    path = dataset_file(tmp_path)
    if libver:
        with h5py.File(path) as old, h5py.File(tmp_path / "new.h5", "w", libver=libver) as new:
            for name in old:
                old.copy(name, new)
            new.attrs.update(old.attrs)
        path = tmp_path / "new.h5"
    reader = {key: value for key, value in os.environ.items() if key != "HDF5_USE_FILE_LOCKING"}
    verify = [sys.executable, "-m", "dsgd_mpi", "data", "verify", path]
    with subprocess.Popen([sys.executable, "-c", HOLDING, path, libver], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"open\n"
        done = subprocess.run(verify, env={**reader, **({"HDF5_USE_FILE_LOCKING": locking} if locking else {})},
                              capture_output=True, text=True)
        if words:
            assert done.returncode == 2
            assert done.stderr.count("\n") == 1
            assert words in done.stderr
            assert "damaged" not in done.stderr
        else:
            assert (done.returncode, done.stderr) == (0, "")
        writer.communicate()
    check(path)                             # as the line says: it has been closed


@pytest.mark.parametrize(("error", "words"), [
    (PermissionError(13, "x"), "no permission"), (FileNotFoundError(2, "x"), "is gone"),
    (OSError("Can't read data (file read failed: time = x, errno = 5, error message = 'I')"), "Input/output error"),
    (OSError("Can't read data (file read failed: time = x, errno = 116, error message = 'S')"), "Stale file handle"),
    (OSError("unable to lock file, errno = 11, error message = 'R'"), "HDF5_USE_FILE_LOCKING=FALSE"),
    (OSError("file is already open for write (may use <h5clear file>)"), "h5clear -s /d.h5"),
    (OSError("truncated file: eof = 96, sblock->base_addr = 0, stored_eof = 2048"), "96 of its 2048 bytes"),
    (OSError("Can't read data (required filter 'x' is not registered)"), "not installed"),
    (OSError("Can't read data (can't open directory (/usr/local/hdf5/lib/plugin). Please verify it exists)"),
     "not installed"),
    (OSError("Can't read data (filter returned failure during read)"), "checksum does not match"),
    (MemoryError("Unable to allocate 8 EiB"), "memory"), (KeyError("object 'x' doesn't exist"), "damaged, or still"),
])
def test_causes_are_told_apart(tmp_path, error, words):
    assert words in storage.cause(error, "/d.h5", "train/images")


def large(folder, monkeypatch):
    """A set that a quick check does not read whole."""
    monkeypatch.setattr(checks, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(checks, "SAMPLE", 20)
    return dataset_file(folder)


def test_a_large_set_is_sampled_before_training_and_read_whole_only_on_suspicion(tmp_path, monkeypatch):
    path = large(tmp_path, monkeypatch)
    whole = []
    monkeypatch.setattr(checks, "_tallied", lambda images, path: whole.append(images.name))
    trained(path)
    assert not whole
    monkeypatch.undo()
    path = large(tmp_path, monkeypatch)
    with h5py.File(path, "r+") as file:
        file.attrs["mean"] = file.attrs["mean"] * 0.8
    refused(trained, path, "expected the attribute mean to be that of the training images")


def test_a_sample_shows_the_mean_of_the_images_own_deviations(tmp_path, monkeypatch):
    """It went round the world as the std of CIFAR-10, 0.2023 for 0.2470."""
    path = large(tmp_path, monkeypatch)
    rng = np.random.default_rng(0)
    images = np.uint8(rng.integers(0, 100, (ROWS, 8, 8, 3)) + rng.integers(0, 156, (ROWS, 1, 1, 1)))
    with h5py.File(path, "r+") as file:
        file["train/images"][...] = images
        file.attrs.update(mean=(images / 255).mean((0, 1, 2)), std=(images / 255).std((0, 1, 2)))
    trained(path)
    with h5py.File(path, "r+") as file:
        file.attrs["std"] = (images / 255).std((1, 2)).mean(0)
    refused(trained, path, "expected the attribute std to be that of the training images")


def test_one_rank_looks_for_all(tmp_path, monkeypatch):
    path = dataset_file(tmp_path)
    with h5py.File(path, "r+") as file:
        file.attrs["mean"] = file.attrs["mean"] / 2
    monkeypatch.setattr(build, "launched", lambda: Launch(1, 2, None))
    trained(path)
    monkeypatch.setattr(build, "launched", lambda: Launch(0, 2, None))
    refused(trained, path, "expected the attribute mean")


def test_what_passes_the_thorough_check_is_not_refused_by_a_sample(tmp_path, monkeypatch):
    path = large(tmp_path, monkeypatch)
    with h5py.File(path, "r+") as file:
        images = np.zeros((ROWS, 8, 8, 3), np.uint8)
        images[7] = 255                     # no sample of few shows this mean
        file["train/images"][...] = images
        file.attrs.update(mean=(images / 255).mean((0, 1, 2)), std=(images / 255).std((0, 1, 2)))
    check(path)
    trained(path)


def test_the_first_and_last_images_are_always_looked_at(tmp_path, monkeypatch):
    path = large(tmp_path, monkeypatch)
    monkeypatch.setattr(checks, "SAMPLE", 1)
    monkeypatch.setattr(checks, "SAMPLE_S", 0)
    read = []
    monkeypatch.setattr(checks, "_read", lambda images, rows, path: read.append((images.name, rows)) or images[rows])
    with Dataset(path) as dataset:
        dataset.verify(thorough=False)
    for part, count in (("train", ROWS), ("test", 20)):
        assert {(f"/{part}/images", 0), (f"/{part}/images", count - 1)} <= set(read)
