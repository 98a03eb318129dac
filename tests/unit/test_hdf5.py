"""Laws of the atomic writer: the target is as it was or as it should be, whatever happens to the writer."""

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from dsgd_mpi.arrays.hdf5 import ABANDONED_S, Memory, atomic, blocks, digest_if_same, place, placed

NOISE = "np.random.default_rng(0).integers(0, 256, (1000, 1000), np.uint8)"


def value(path):
    with h5py.File(path, "r", locking=False) as file:
        return file["x"][()].tolist()


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "target.h5"
    with atomic(path) as file:
        file["x"] = [1, 2, 3]
    return path


def child(code, *arguments, **kw):
    program = f"import os, signal, sys, time\nimport numpy as np\nfrom dsgd_mpi.arrays.hdf5 import atomic\n{code}"
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **kw)


def test_what_was_written_replaces_what_was_there(old):
    with atomic(old) as file:
        file["x"] = [4]
    assert value(old) == [4]
    assert os.listdir(old.parent) == [old.name]


def test_until_the_block_ends_the_old_file_is_seen(old):
    with atomic(old) as file:
        file["x"] = [4]
        file.flush()
        assert value(old) == [1, 2, 3]


def test_a_file_has_the_permissions_that_any_new_file_has(old):
    plain = old.with_name("plain")
    plain.touch()
    assert old.stat().st_mode == plain.stat().st_mode


def test_an_error_in_the_block_leaves_the_old_file_and_nothing_else(old):
    with pytest.raises(ZeroDivisionError), atomic(old) as file:
        file["x"] = [1 / 0]
    assert value(old) == [1, 2, 3]
    assert os.listdir(old.parent) == [old.name]


def test_a_file_that_fails_verification_is_not_kept(old):
    def verify(file):
        raise ValueError(f"found {file['x'][0]}")

    with pytest.raises(ValueError, match="found 4"), atomic(old, verify) as file:
        file["x"] = [4]
    assert value(old) == [1, 2, 3]
    assert os.listdir(old.parent) == [old.name]


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(28, "No space left on device")])
def test_a_file_written_in_parts_is_there_whole_or_not_at_all(tmp_path, error):
    path = tmp_path / "x.bin"

    def half():
        with placed(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)) as told:
        half()
    assert not os.listdir(tmp_path)
    assert str(told.value) in ("", f"{path} was not written and is unchanged: No space left on device")
    with placed(path) as file:
        file.write(b"one")
        file.write(b"two")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("x.bin", b"onetwo")]


def test_a_symbolic_link_is_followed_and_stays(old):
    link = old.with_name("link.h5")
    link.symlink_to(old)
    with atomic(link) as file:
        file["x"] = [4]
    assert link.is_symlink()
    assert value(old) == [4]


def test_an_impossible_place_is_named(tmp_path):
    with pytest.raises(OSError, match=r"nowhere/x.h5 was not written.*No such file or directory"), \
            atomic(tmp_path / "nowhere" / "x.h5"):
        pass


@pytest.mark.parametrize("limit", [500, 3000, 100_000, 1_000_000])
def test_a_full_disk_leaves_the_old_file_and_a_sound_process(old, limit):
    # a limit on the size of files fails as a full disk does, and needs no file system of our own
    process = child("import resource\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
                    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
                    "try:\n with atomic(sys.argv[1]) as file:\n"
                    f"  file.create_dataset('x', data={NOISE}, chunks=(10, 1000), fletcher32=True)\n"
                    "except OSError as error:\n print(error)\n", old, limit)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")         # HDF5 itself ends in a segmentation fault here
    assert "is unchanged: File too large" in out
    assert value(old) == [1, 2, 3]
    assert os.listdir(old.parent) == [old.name]


def test_a_writer_killed_before_the_rename_leaves_the_old_file(old):
    process = child("def wait(file):\n print('written', flush=True)\n time.sleep(60)\n"
                    "with atomic(sys.argv[1], wait) as file: file['x'] = [4]", old)
    assert process.stdout.readline() == "written\n"
    process.kill()
    process.communicate()
    assert value(old) == [1, 2, 3]
    assert len(os.listdir(old.parent)) == 2             # nobody was left to take away the hidden file


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(old):
    process = child("x = np.empty((1000, 1000), np.uint8)\nfor i in range(10**6):\n x[:] = i % 256\n"
                    " with atomic(sys.argv[1]) as file: file['x'] = x\n if not i: print('go', flush=True)", old)
    assert process.stdout.readline() == "go\n"
    time.sleep(random.Random(0).uniform(0.1, 0.3))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with h5py.File(old, "r", locking=False) as file:
        x = file["x"][()]
    assert x.shape == (1000, 1000)
    assert (x == x[0, 0]).all()


def test_what_a_killed_writer_left_is_taken_away_once_it_is_surely_dead(old):
    dead, alive = (old.with_name(f".{old.name}.{name}.part") for name in ("dead", "alive"))
    for part in (dead, alive):
        part.touch()
    os.utime(dead, (time.time() - 2 * ABANDONED_S,) * 2)
    with atomic(old) as file:
        file["x"] = [4]
    assert not dead.exists()
    assert alive.exists()


@pytest.mark.parametrize("chunks", [None, (7, 100)])
def test_blocks_cover_a_dataset_once(chunks):
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("x", (123, 100_000), "f8", chunks=chunks)
        covered = np.concatenate([np.arange(123)[rows] for rows in blocks(dataset)])
        assert covered.tolist() == list(range(123))
        assert all(rows.start % (chunks or [1])[0] == 0 for rows in blocks(dataset))


@pytest.mark.parametrize("room", [0, 10_000, 10**6])
def test_memory_is_a_file_like_any_other(tmp_path, room):
    memory = Memory()
    memory.write(b"of another file" * 10)
    memory.clear(room)
    with open(tmp_path / "like", "w+b") as like:
        for file in (memory, like):
            file.write(b"begin")
            file.seek(100)
            file.write(b"after a gap")
            file.seek(-3, os.SEEK_END)
            assert file.read() == b"gap"
            assert file.tell() == 111
            file.truncate(50)
            file.truncate(60)
            file.seek(2)
            file.write(b"G")
    assert memory.content().tobytes() == (tmp_path / "like").read_bytes()
    memory.clear(room)
    with h5py.File(memory, "w") as file:
        file["x"] = np.arange(1000)
    with h5py.File(io.BytesIO(memory.content().tobytes())) as file:
        assert file["x"][()].tolist() == list(range(1000))


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content + b"x",
                                    lambda content: content[:-5] + b"12345"])
def test_a_file_that_reads_otherwise_than_it_was_written_is_not_placed(tmp_path, damage):
    content = np.random.default_rng(0).integers(0, 256, 5_000_000, np.uint8)

    def verify(part):
        part.write_bytes(damage(content.tobytes()))
        return digest_if_same(part, content)
    with pytest.raises(OSError, match="was not written and is unchanged: "):
        place(tmp_path / "file", content, verify)
    assert os.listdir(tmp_path) == []
    found = place(tmp_path / "file", content, lambda part: digest_if_same(part, content))
    assert found == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    assert (tmp_path / "file").read_bytes() == content.tobytes()
