"""Data under mpirun: what is amiss is one line for all ranks, copies on nodes, and conversions that ranks share."""

import os
import re
import shutil
import signal

import pytest
from click.testing import CliRunner

from dsgd_mpi.data import sharding
from dsgd_mpi.data.commands import data
from tests.support import ROOT
from tests.support.data_samples import plan
from tests.support.jobs import Job, pids, run, train, until
from tests.unit.test_data_layouts import photo, put
from tests.unit.test_data_storage import virtual_file

SHORT = ("--model", "resnet8", "--batch", 4, "--threads", 1, "--quiet", "--image-size", 12, "--shuffle", "blocks")
SLOW = """
import time
from dsgd_mpi.data import copies
from dsgd_mpi.train import main
made = copies.copy
copies.BLOCK_BYTES = 1000
copies.copy = lambda source, target, pause, digest: made(
    source, target, lambda count: (time.sleep(0.1), pause(count)), digest)
main()
"""


def sharded(folder, monkeypatch):
    monkeypatch.setattr(sharding, "SHARD_BYTES", 20 * 8 * 8 * 3)
    sharding.make(folder / "set.h5", plan(), 2)
    return folder / "set.h5"


def test_a_virtual_file_whose_part_is_gone_is_refused_by_all_ranks_in_one_line_and_trained_on_when_it_is_back(tmp_path):
    path = virtual_file(tmp_path)
    options = ("--data", path, "--model", "resnet8", "--batch", 4, "--steps", 2, "--quiet", "--out", tmp_path / "run")
    part = tmp_path / "b.h5"
    part.rename(tmp_path / "c.h5")
    status, output, errors = train(*options, ranks=2)
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith(f"Error: {path}: train/images is a virtual dataset in 2 other files, of which b.h5 cannot")
    assert not (tmp_path / "run").exists()
    (tmp_path / "c.h5").rename(part)
    status, _, errors = train(*options, ranks=2)
    assert (status, errors) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.soak)])
def test_a_run_that_is_ended_while_it_copies_leaves_no_copy_and_goes_on_from_another(tmp_path, monkeypatch, number):
    folder, disk, program = tmp_path / "run", tmp_path / "disk", tmp_path / "program.py"
    program.write_text(SLOW)
    options = (*SHORT, "--steps", 4, "--data", sharded(tmp_path, monkeypatch), "--out", folder, "--auto-resume",
               "--stage", "$NODE/disk")
    env = {"NODE": str(tmp_path), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    job = Job(program, *options, ranks=2, env=env)
    until(lambda: list(disk.glob("*/set/.*.part")))
    os.kill(pids(str(program))[-1], number)
    status, _, errors = job.finish()
    until(lambda: not list(disk.iterdir()))
    assert (status, errors) == (75, "") if number == signal.SIGTERM else status
    status, output, errors = train(*options, "--keep-staged", "--no-quiet", ranks=2, env=env)
    assert (status, errors) == (0, "")
    place, = disk.iterdir()
    assert re.search(rf"read from +│ {place}, ", output)
    assert (place / "set" / "train-00000.h5").exists()
    assert "stage = " not in (folder / "config.toml").read_text()
    if number == signal.SIGKILL:            # once is enough
        shutil.rmtree(place)
        status, output, errors = train(*options, "--no-quiet", ranks=2, env=env)
        assert (status, errors, list(disk.iterdir())) == (0, "", [])
        assert output == f"{folder}: already finished, at step 4\n", "without another copy"


def pets(folder):
    for where in ("train", "val"):
        for label in ("cat", "dog"):
            for i in range(3):
                put(folder / where / label / f"{i}.jpg", photo(len(where + label) + i))
    return folder


def test_three_ranks_convert_pictures_to_the_bytes_that_one_process_makes(tmp_path):
    for name in ("alone", "shared"):
        (tmp_path / name).mkdir()
    options = ("data", "folder", "--from", pets(tmp_path / "x"), "--size", 8, "--to")
    done = CliRunner().invoke(data, [str(word) for word in (*options[1:], tmp_path / "alone" / "y.h5")])
    status, output, errors = run("-m", "dsgd_mpi", *options, tmp_path / "shared" / "y.h5", ranks=3)
    assert (status, output, errors) == (0, done.stdout.replace("alone", "shared"), "")
    for name in ("y.h5", "y/train-00000.h5", "y/test-00000.h5"):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


@pytest.mark.soak
@pytest.mark.parametrize("part", ["train", "val"])
def test_an_image_that_is_broken_on_one_of_three_ranks_ends_the_conversion_with_one_line(tmp_path, part):
    put(pets(tmp_path / "x") / part / "cat" / "0.jpg", b"hello")
    status, output, errors = run("-m", "dsgd_mpi", "data", "folder", "--from", tmp_path / "x", "--strict", "--size", 8,
                                 "--to", tmp_path / "y.h5", ranks=3)
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert f"{part}/cat/0.jpg: expected an image, found no picture that Pillow knows" in errors
    assert errors.startswith("Error: rank 1 on " if part == "val" else f"Error: {tmp_path}/x")
