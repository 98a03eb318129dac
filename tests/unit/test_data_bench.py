"""Laws of `data bench`: a table of rates that are there, and of what is measured nothing is read twice."""

import re

import numpy as np
import pytest
from click.testing import CliRunner

from dsgd_mpi.data import bench, formats, sharding
from dsgd_mpi.data.commands import data
from dsgd_mpi.data.formats import Dataset
from tests.support.data_samples import content, dataset_file, plan

IMAGE_BYTES = 8 * 8 * 3


@pytest.fixture
def sharded(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "SHARD_BYTES", 32 * IMAGE_BYTES)
    sharding.make(tmp_path / "set.h5", plan(made=content(320)), 2)
    return tmp_path / "set.h5"


def run(path, *options):
    return CliRunner().invoke(data, ["bench", str(path), "--seconds", "0.02", "--rounds", "1", *options])


def cells(output):
    return [re.findall(r"[\w,]+(?: memory)?", line) for line in output.splitlines() if line.startswith("│")]


def test_rates_are_shown_by_threads(sharded):
    done = run(sharded, "--threads", "2,1", "--batch", "8")
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert re.fullmatch(r".*set\.h5: 320 training images of 8x8x3, pixels, \d\.\d KB each, made 8x8x3 as by --augment",
                        lines[0])
    bare = re.fullmatch(r"bare sequential read: ([\d,]+) MB/s, ([\d,]+) images/s", lines[2])
    assert int(bare[2].replace(",", "")) > 0
    rows = cells(done.stdout)
    assert [row[0] for row in rows] == ["1", "2"]
    assert all(len(row) == 6 and min(int(cell.replace(",", "")) for cell in row) > 0 for row in rows)
    assert rows[0][2] == rows[1][2], "one thread reads in blocks"
    assert lines[-1] == "medians of 1, batches of 8; the files were dropped before each from this machine's memory"


def test_a_set_that_is_kept_in_memory_is_said_to_be_that(tmp_path):
    done = run(dataset_file(tmp_path), "--threads", "1", "--batch", "8", "--warm")
    assert cells(done.stdout)[0][:3] == ["1", "in memory", "in memory"]
    assert done.stdout.endswith("the files may have been in this machine's memory\n")


@pytest.mark.parametrize(("options", "message"), [
    (("--threads", "0"), "--threads: expected at least 1 and at most 4096, found 0"),
    (("--threads", "1,x"), "--threads: expected an integer, found 'x'"),
    (("--batch", "61"), "--batch 61: expected no more than the 60 training images of .*; use --batch 60 or less"),
])
def test_a_mistake_is_one_line(tmp_path, options, message):
    done = run(dataset_file(tmp_path), *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.fullmatch(f"Error: {message}\n", done.stderr)


def test_no_image_is_read_twice_in_a_measurement(sharded, monkeypatch):
    """Else it would be in memory the second time; what is decoded comes from there."""
    with Dataset(sharded) as dataset:
        split, read = dataset.train, []
        real = type(split)._read
        monkeypatch.setattr(formats.Split, "_read",
                            lambda self, indices, out: (read.extend(indices.tolist()), real(self, indices, out)))
        for batches in (bench.Batches(split, 8, byte_memory=bench.memory, threads=2, shuffle=kind)
                        for kind in ("full", "blocks")):
            for measure in (bench.read, bench.read_in_blocks, bench.whole):
                if batches.shuffle == "full" and measure is bench.read_in_blocks:
                    continue
                read.clear()
                assert measure(batches, 99.0) > 0
                assert set(read) == set(range(320))
                more = 8 * batches.most_ahead if measure is bench.whole and batches.shuffle == "full" else 2 * 64
                assert len(read) <= 320 + (more if measure is bench.whole else 0), (measure, batches.shuffle)
        read.clear()
        assert bench.decoded(batches, 0.02, 1200.0) > 0
        assert len(read) == 320, "once, into memory"
        assert not split._kept


def test_a_bare_read_ends_with_the_files_or_with_the_time(tmp_path):
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(np.random.default_rng(0).bytes(1 << 20))
    bench.drop(paths)
    assert bench.bare(paths, 60.0) > 0
    assert bench.bare(paths, 0.0) == 0
