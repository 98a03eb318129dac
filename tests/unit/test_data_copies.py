"""Laws of copies: what has a file's name is whole, who leaves last removes it, and no run disturbs another."""

import os
import subprocess
import sys
from types import SimpleNamespace

import h5py
import pytest

from dsgd_mpi.config import Config
from dsgd_mpi.data import copies, sharding, unused
from dsgd_mpi.data.copies import Copies, Place, free_memory
from dsgd_mpi.data.formats import Dataset
from dsgd_mpi.errors import UsageError
from dsgd_mpi.training import staging
from tests.support.data_samples import dataset_file, plan
from tests.support.jobs import until
from tests.unit.test_data_storage import virtual_file

WAY_OUT = "leave out --stage"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Shards of up to 20 images of 8 x 8 x 3 bytes, and blocks of 1,000 bytes."""
    monkeypatch.setattr(sharding, "SHARD_BYTES", 20 * 8 * 8 * 3)
    monkeypatch.setattr(copies, "BLOCK_BYTES", 1000)


def made(folder, kind):
    folder.mkdir()
    if kind == "one file":
        return dataset_file(folder)
    if kind == "jpeg":
        pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
        sharding.SHARD_BYTES = 20           # the fixture puts it back
    sharding.make(folder / "set.h5", plan(kind == "jpeg"), 2)
    return folder / "set.h5"


def entered(folder, dataset):
    place = Place(folder, f"--stage {folder}", WAY_OUT)
    place.enter(dataset)
    return place


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in ("in-use", "kept") and path.suffix != ".sha256"}


def make_all(found, pause=lambda count: None):
    for number in range(len(found.files)):
        found.make(number, pause)


def refused(place, act, *args):
    with pytest.raises(UsageError) as problem:
        act(*args)
    assert "\n" not in problem.value.message
    assert problem.value.message.startswith(f"{place.asked}: expected ")
    return problem.value.message


@pytest.mark.parametrize("kind", ["one file", "images", "jpeg"])
def test_a_copy_is_the_set_again_and_what_is_whole_of_one_is_not_copied_again(tmp_path, monkeypatch, kind):
    path = made(tmp_path / "set", kind)
    with Dataset(path) as dataset:
        place, done = entered(tmp_path / "disk", dataset), []
        found = Copies(dataset, place)
        assert found.missing() == found.total() == sum(map(len, files_in(tmp_path / "set").values()))
        make_all(found, done.append)
        assert files_in(place.folder) == files_in(tmp_path / "set")
        assert (sum(done), found.missing()) == (found.total(), 0)
        with Dataset(found.path) as copy:
            assert copy.verify() == dataset.verify()
        monkeypatch.setattr(copies, "copy", None)           # nothing is
        make_all(found, done.append)
        assert sum(done) == 2 * found.total()
        place.leave()
    assert list((tmp_path / "disk").iterdir()) == []


def cut_off(path):
    os.truncate(path, path.stat().st_size - 1)


def flip(path):
    with h5py.File(path) as file:           # of a shard, what its SHA-256 is of
        at = file["images"].id.get_offset() if "images" in file else 1000
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_off, flip, os.remove], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("kind", ["one file", "images"])
def test_what_is_not_whole_of_a_copy_is_copied_again(tmp_path, kind, damage):
    with Dataset(made(tmp_path / "set", kind)) as dataset:
        place = entered(tmp_path / "disk", dataset)
        found = Copies(dataset, place)
        make_all(found)
        for target in found.targets:
            damage(target)
        make_all(found)
        assert files_in(place.folder) == files_in(tmp_path / "set")


@pytest.mark.parametrize("kind", ["one file", "images"])
def test_a_copy_that_was_broken_off_at_any_block_has_no_name(tmp_path, kind):
    class Killed(Exception):
        pass

    with Dataset(made(tmp_path / "set", kind)) as dataset:
        place = entered(tmp_path / "disk", dataset)
        found = Copies(dataset, place)
        for end in range(1, 8):
            steps = iter(range(end))

            def pause(count, steps=steps):
                if next(steps, None) is None:
                    raise Killed

            with pytest.raises(Killed):
                found.make(0, pause)
            assert files_in(place.folder) == {}
        make_all(found)
        assert files_in(place.folder) == files_in(tmp_path / "set")


def test_a_shard_that_is_damaged_is_told_with_what_tells_more_and_gets_no_copy(tmp_path):
    path = made(tmp_path / "set", "images")
    with h5py.File(tmp_path / "set" / "set" / "train-00001.h5", "r+") as file:
        file["images"][3, 0, 0, 0] ^= 1
    with Dataset(path) as dataset:
        place = entered(tmp_path / "disk", dataset)
        told = refused(place, make_all, Copies(dataset, place))
    assert "train-00001.h5 on " in told
    assert f"found something else; `python -m dsgd_mpi data verify {path}` tells" in told
    assert sorted(files_in(place.folder)) == ["set.h5", "set/train-00000.h5"]


def test_users_share_a_copy_which_the_last_one_removes_unless_it_is_kept(tmp_path):
    with Dataset(made(tmp_path / "set", "one file")) as dataset:
        first, second = entered(tmp_path / "disk", dataset), entered(tmp_path / "disk", dataset)
        make_all(Copies(dataset, first))
        first.leave()
        assert Copies(dataset, second).missing() == 0
        second.leave()
        assert not first.folder.exists()
        third = entered(tmp_path / "disk", dataset)
        make_all(Copies(dataset, third))
        third.keep()
        third.leave()
        assert entered(tmp_path / "disk", dataset).folder == third.folder
        assert Copies(dataset, third).missing() == 0


def test_a_set_that_has_changed_has_another_copy(tmp_path):
    path = made(tmp_path / "set", "one file")
    with Dataset(path) as dataset:
        before = entered(tmp_path / "disk", dataset)
    os.utime(path, (1, 1))
    with Dataset(path) as dataset:
        assert entered(tmp_path / "disk", dataset).folder != before.folder


def test_what_a_killed_run_has_left_is_removed_by_the_next_and_what_is_in_use_or_kept_is_not(tmp_path):
    with Dataset(made(tmp_path / "set", "one file")) as dataset:
        place = entered(tmp_path / "disk", dataset)
    others = {name: place.folder.with_name(f"dsgd_mpi-{os.getuid()}-{name}") for name in ("left", "used", "kept")}
    for folder in others.values():
        (folder / "set").mkdir(parents=True)
        for name in ("in-use", "set/train-00000.h5", *(["kept"] if folder == others["kept"] else [])):
            (folder / name).touch()
    lock = unused.locked(others["used"], unused.fcntl.LOCK_SH)
    place.tidy()
    assert {name for name, folder in others.items() if folder.exists()} == {"used", "kept"}
    os.close(lock)
    place.leave()


def test_a_child_removes_the_copy_once_all_who_use_it_have_ended(tmp_path):
    with Dataset(made(tmp_path / "set", "one file")) as dataset:
        places = [entered(tmp_path / "disk", dataset) for _ in range(2)]
        make_all(Copies(dataset, places[0]))
    command = [sys.executable, "-I", "-S", unused.__file__, str(places[0].folder)]
    child = subprocess.Popen(command, start_new_session=True)
    os.close(places[0]._lock)               # as the kernel does with that of a process that is killed
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.3)
    assert files_in(places[0].folder) == files_in(tmp_path / "set")
    os.close(places[1]._lock)
    assert child.wait(10) == 0
    until(lambda: not places[0].folder.exists())


def test_a_disk_that_has_no_room_or_cannot_be_written_is_refused(tmp_path, monkeypatch):
    with Dataset(made(tmp_path / "set", "one file")) as dataset:
        place = entered(tmp_path / "disk", dataset)
        place.check_room(10**6, "tiny")
        monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_bavail=3, f_frsize=10**6))
        assert "4.5 MB free on" in (told := refused(place, place.check_room, 4_500_000, "tiny"))
        assert told.endswith("for the copy of tiny, found 3.0 MB; leave out --stage")
        monkeypatch.setattr(copies, "MEMORY", tmp_path)
        monkeypatch.setattr(copies, "free_memory", lambda: 2_000_000)
        assert "found 2.0 MB" in refused(place, place.check_room, 2_500_000, "tiny")
        (tmp_path / "file").touch()
        for root, cause in ((tmp_path / "file", "File exists"), (tmp_path / "no" / "disk", "No such file")):
            bad = Place(root, f"--stage {root}", WAY_OUT)
            assert cause in refused(bad, bad.enter, dataset)

        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(copies, "copy", full)
        assert "No space left on device; leave out" in refused(place, make_all, Copies(dataset, place))


def test_a_folder_that_is_somebody_elses_is_not_used(tmp_path):
    with Dataset(made(tmp_path / "set", "one file")) as dataset:
        place = entered(tmp_path / "disk", dataset)
        place.leave()
        place.folder.symlink_to(tmp_path / "set")
        refused(place, place.enter, dataset)


def test_a_set_in_files_elsewhere_is_refused(tmp_path):
    with Dataset(virtual_file(tmp_path)) as dataset:
        place = entered(tmp_path / "disk", dataset)
        assert "found train/images of" in refused(place, Copies, dataset, place)
    path = made(tmp_path / "set", "images")
    with h5py.File(path, "r+") as file:
        names = [f"../set/{name}" for name in file["train/shards/file"].asstr()]
        file["train/shards/file"][...] = names
    with Dataset(path) as dataset:
        refused(place, Copies, dataset, place)


def test_free_memory_is_that_of_the_machine_or_of_the_narrowest_group_around(tmp_path):
    meminfo, groups = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemTotal:       9000 kB\nMemAvailable:       8000 kB\n")
    groups.write_text("0::/job/step\n")
    assert free_memory(meminfo, groups, tmp_path) == 8000 << 10
    for folder, most, used in (("job", "5000000", 3_000_000), ("job/step", "max", 2_000_000)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "memory.max").write_text(f"{most}\n")
        (tmp_path / folder / "memory.current").write_text(f"{used}\n")
        (tmp_path / folder / "memory.stat").write_text("anon 7\nactive_file 200\ninactive_file 1000\n")
    assert free_memory(meminfo, groups, tmp_path) == 2_001_200
    groups.write_text("4:cpu,memory:/old\n3:freezer:/job\n")
    (tmp_path / "memory" / "old").mkdir(parents=True)
    for name, text in (("limit_in_bytes", "1000"), ("usage_in_bytes", "900"),
                       ("stat", "active_file 1\ntotal_active_file 20\ntotal_inactive_file 30\n")):
        (tmp_path / "memory" / "old" / f"memory.{name}").write_text(text)
    assert free_memory(meminfo, groups, tmp_path) == 150


@pytest.mark.parametrize(("options", "found"), [
    ({"stage": "/disk", "cache": "ram"}, "--stage and --cache ram: expected one of them, found both"),
    ({"keep_staged": True}, "--keep-staged: expected --stage DIR, found none"),
    ({"stage": "$NOT_SET_HERE/x"}, r"--stage \$NOT_SET_HERE/x: expected a folder .* found a variable that is not set"),
    ({"stage": ""}, "--stage : expected a folder .* found an empty name")])
def test_what_does_not_go_together_is_refused(options, found):
    with pytest.raises(UsageError, match=found):
        staging.check(Config(**options))


def test_variables_of_a_node_are_put_in(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/local/job 7")
    assert str(staging.root_of("$TMPDIR/data")) == str(staging.root_of("${TMPDIR}/data")) == "/local/job 7/data"


def test_what_one_rank_raises_all_raise_and_an_error_counts_more_than_a_stop():
    def host(*others):
        return SimpleNamespace(allgather=lambda item: [item, *others])

    with staging.together(host([None, False])):
        pass
    with pytest.raises(UsageError, match="no room"), staging.together(host([None, True], ["no room", False])):
        pass
    with pytest.raises(UsageError, match="here"), staging.together(host(["there", False])):
        raise UsageError("here")
    with pytest.raises(staging.Stopped), staging.together(host([None, True])):
        pass
    with pytest.raises(staging.Stopped), staging.together(host([None, False])):
        raise staging.Stopped
