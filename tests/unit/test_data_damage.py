"""Laws of bytes that are no data: whatever a file holds, it is refused in one line, soon, and in little memory."""

import gzip
import os
import pickle
import signal
import struct
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsgd_mpi.data import convert, open_dataset, trial
from dsgd_mpi.data.formats import check, write
from dsgd_mpi.errors import UsageError
from tests.support import ROOT
from tests.support.damage import damaged
from tests.support.data_samples import content

FEW = settings(max_examples=60, deadline=None, derandomize=True,
               suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = settings(FEW, max_examples=2000, derandomize=False)


def plain(path, libver=None):
    """As a user writes it by h5py, without chunks or checksums."""
    made = content(100, 40)
    with h5py.File(path, "w", libver=libver) as file:
        for part, (images, labels) in (("train", made.train), ("test", made.test)):
            file[f"{part}/images"], file[f"{part}/labels"] = images, labels.astype(np.int64)
        x = made.train[0] / 255
        file.attrs.update(mean=x.mean((0, 1, 2)), std=x.std((0, 1, 2)), source="a", licence="b")
        file.attrs.create("classes", list(made.classes), dtype=h5py.string_dtype())


MAKERS = {"plain": plain, "latest": lambda path: plain(path, "latest"), "ours": lambda path: write(path, content()),
          "gzip": lambda path: write(path, content(), "gzip")}


def tried(folder, maker, count):
    """In a child, which a crash ends, or a limit of memory or time."""
    path = folder / "x.h5"
    MAKERS[maker](path)
    done = subprocess.run([sys.executable, "-m", "tests.support.damage", path, "0", str(count)], cwd=ROOT,
                          capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (done.returncode, lines[-1:], done.stderr[-2000:])
    assert len(lines) == count
    assert any("passed" in line for line in lines)      # of a byte that means nothing
    assert any("damaged" in line or "cut off" in line for line in lines)


@pytest.mark.parametrize("maker", ["plain", "gzip"])
def test_hdf5_files_with_wrong_bytes_are_refused_in_one_line(tmp_path, maker):
    tried(tmp_path, maker, 25)


@pytest.mark.soak
@pytest.mark.parametrize("maker", MAKERS)
def test_very_many_hdf5_files_with_wrong_bytes_are_refused_in_one_line(tmp_path, maker):
    tried(tmp_path, maker, 2000)


def test_a_file_that_hdf5_never_comes_back_from_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "CPU_S", 1)
    path = tmp_path / "x.h5"
    plain(path)
    made = bytearray(path.read_bytes())
    heap = made.index(b"GCOL")              # of strings: 16 bytes, then for each 8 bytes, its length in 8, and itself
    for place in range(heap + 24, heap + 200, 24):
        made[place:place + 8] = bytes(8)
    path.write_bytes(made)
    with pytest.raises(UsageError, match="damaged, HDF5 does not come back from it"):
        open_dataset(path)


def test_what_comes_of_a_trial_is_told(tmp_path):
    def refuse():
        raise UsageError("two\u2013three")

    def fail():
        raise KeyError("x")

    trial.tried(lambda: 1, tmp_path)
    with pytest.raises(UsageError, match="two\u2013three"):
        trial.tried(refuse, tmp_path)
    with pytest.raises(RuntimeError, match="KeyError: 'x'"):
        trial.tried(fail, tmp_path)
    with pytest.raises(RuntimeError, match="without a word"):
        trial.tried(lambda: os._exit(3), tmp_path)
    for number in (signal.SIGSEGV, signal.SIGBUS):
        with pytest.raises(UsageError, match=f"HDF5 crashes on it .{signal.strsignal(number)}"):
            trial.tried(lambda number=number: os.kill(os.getpid(), number), tmp_path)


@pytest.mark.parametrize("name", ["images", "labels", "both"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_header_that_claims_very_many_images_takes_no_memory(tmp_path, name, chunked):
    path, many = tmp_path / "x.h5", 2**56
    plain(path)
    with h5py.File(path, "r+") as file:
        for kind in ("images", "labels"):
            if name in (kind, "both"):
                data = file[f"train/{kind}"][()]
                del file[f"train/{kind}"]
                if chunked:
                    made = file.create_dataset(f"train/{kind}", data.shape, data.dtype, data=data,
                                               chunks=(50, *data.shape[1:]), maxshape=(None, *data.shape[1:]))
                    made.resize(many, axis=0)
                else:
                    file[f"train/{kind}"] = data
    if not chunked:
        made = path.read_bytes()
        for kind, shape in (("images", (100, 8, 8, 3)), ("labels", (100,))):
            if name in (kind, "both"):
                old = struct.pack(f"<{2 * len(shape)}Q", *shape, *shape)        # now, and at most
                assert made.count(old) == 1
                made = made.replace(old, struct.pack(f"<{2 * len(shape)}Q", *2 * (many, *shape[1:])))
        path.write_bytes(made)
    start = time.monotonic()
    with pytest.raises(UsageError) as told:
        check(path)
    assert "\n" not in str(told.value)
    assert time.monotonic() - start < 5


def idx_bytes(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def refused_or_read(convert_, folder):
    """Its content, or None if it was refused, in one line."""
    try:
        return convert_(folder)
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return None


def idx_law(folder, seed, pack):
    for part, count in (("train", 20), ("t10k", 10)):
        for kind, array in (("images-idx3", content(count, 1, channels=1).train[0][..., 0]),
                            ("labels-idx1", np.arange(count, dtype=np.uint8) % 10)):
            made = gzip.compress(idx_bytes(array), 1) if pack else idx_bytes(array)
            if (part, kind) == ("train", "images-idx3"):
                made, _ = damaged(made, np.random.default_rng(seed))
            (folder / f"{part}-{kind}-ubyte").write_bytes(made)
    refused_or_read(lambda folder: convert.fashion_mnist(folder, as_is=True), folder)


def pickle_law(folder, seed, protocol):
    rng = np.random.default_rng(seed)
    made = pickle.dumps({"data": rng.integers(0, 256, (12, 3072), np.uint8), "labels": [*range(10), np.int64(3), 4]},
                        protocol)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(made)
    (folder / "data_batch_1").write_bytes(damaged(made, rng)[0])
    found = refused_or_read(convert.cifar10, folder)
    if found:
        assert found.train[0].shape == (60, 32, 32, 3)
        assert found.train[1].max() < 10


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(convert, "CIFAR10_BATCH", 12)


SEEDS = st.integers(0, 2**32)


@FEW
@given(SEEDS, st.booleans())
def test_idx_files_with_wrong_bytes_are_refused_or_read(tmp_path, seed, pack):
    idx_law(tmp_path, seed, pack)


@FEW
@given(SEEDS, st.integers(0, 5))
def test_pickles_with_wrong_bytes_are_refused_or_read(tmp_path, small_batches, seed, protocol):
    pickle_law(tmp_path, seed, protocol)


@pytest.mark.soak
@MANY
@given(SEEDS, st.booleans(), st.integers(0, 5))
def test_very_many_files_with_wrong_bytes_are_refused_or_read(tmp_path, small_batches, seed, pack, protocol):
    idx_law(tmp_path, seed, pack)
    pickle_law(tmp_path, seed, protocol)


@FEW
@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_no_data_set(tmp_path, small_batches, made):
    path = tmp_path / "x.h5"
    path.write_bytes(made)
    with pytest.raises(UsageError, match="expected an HDF5 file"):
        check(path)
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + made)
    with pytest.raises(UsageError, match=r"damaged|cut off"):
        check(path)
    (tmp_path / "data_batch_1").write_bytes(made)
    assert refused_or_read(convert.cifar10, tmp_path) is None


def test_a_path_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "loop.h5").symlink_to(tmp_path / "loop.h5")
    (tmp_path / "folder.h5").mkdir()
    for name in ("pipe.h5", "loop.h5", "folder.h5", "/dev/zero", "none.h5", "x" * 300 + ".h5", "x\0y.h5", "\udcff.h5"):
        with pytest.raises(UsageError) as told:
            check(tmp_path / name)
        assert "\n" not in str(told.value)
