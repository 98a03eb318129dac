"""Laws of shuffles: each image once an epoch over all ranks, as far apart as promised, and read in runs."""

import dataclasses
import os
from functools import partial

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsgd_mpi.config import Config
from dsgd_mpi.data import Batches, Course, formats, sharding, shards, shuffle
from dsgd_mpi.data.formats import Dataset, Split, open_dataset
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.training.build import assemble, prepare
from tests.support.data_samples import MEAN, STD, content, images, plan

IMAGE_BYTES = 8 * 8 * 3


def split(count, shard=20):
    """Images of which so many are taken for a shard, and the label of each is its number."""
    class Cut(Split):
        shards = property(lambda self: tuple(min(shard, count - start) for start in range(0, count, shard)))
    return Cut(images(count), np.arange(count), MEAN, STD)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Makes a set of 320 images in shards of 32, that is in blocks of 4 and 5 windows of 64, left in its files."""
    def made(jpeg=False, one_file=False):
        if jpeg:
            pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
        monkeypatch.setattr(sharding, "SHARD_BYTES", 32 if jpeg else 32 * IMAGE_BYTES)
        monkeypatch.setattr(formats, "RUN_BYTES", 32 * IMAGE_BYTES)
        monkeypatch.setattr(formats, "MEMORY_BYTES", 0)
        path = tmp_path / "set.h5"
        if one_file:
            formats.write(path, content(320))
        else:
            sharding.make(path, plan(jpeg, content(320)), 2)
        return Dataset(path)
    return made


@settings(deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=40), st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_in_blocks_has_each_image_once_among_those_drawn_and_those_read(shards, seed, epoch):
    order, count = shuffle.blocks(seed, epoch, tuple(shards)), sum(shards)
    assert sorted(order.images.tolist()) == sorted(order.places.tolist()) == list(range(count))
    read = order.images[np.argsort(order.places)]
    runs = np.split(read, np.flatnonzero(np.diff(read) != 1) + 1)
    assert len(runs) <= sum(-(-shuffle.BLOCKS * each // max(shards)) for each in shards), "blocks"
    assert order.window % shuffle.LANES == 0
    for first in range(0, count // shuffle.LANES * shuffle.LANES, order.window):
        window = np.sort(order.places[first:min(first + order.window, count // shuffle.LANES * shuffle.LANES)])
        assert np.count_nonzero(np.diff(window) != 1) < shuffle.LANES, "of each lane, one stretch"
    lanes = order.places // max(1, count // shuffle.LANES)
    for first in range(0, count - shuffle.LANES + 1, shuffle.LANES):
        assert sorted(lanes[first:first + shuffle.LANES].tolist()) == list(range(shuffle.LANES)), "a round"


def test_another_epoch_or_seed_is_another_order_and_the_same_the_same():
    made = [shuffle.blocks(seed, epoch, (40,) * 9).images.tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, made))) == 4
    shuffle.blocks.cache_clear()
    assert shuffle.blocks(1, 1, (40,) * 9).images.tolist() == made[3]
    full = shuffle.full(0, 0, 360).tolist()
    assert full not in made
    assert sorted(full) == list(range(360))


def test_neighbours_come_as_far_apart_as_a_window_is_long():
    """A third of it, as a third of all images in a full shuffle; and a set of one window is shuffled fully."""
    count, shard = 200_000, 800
    order = shuffle.blocks(0, 0, (shard,) * (count // shard))
    full = shuffle.full(0, 0, count)
    window = order.window
    assert window == 64 * shuffle.LANES
    assert np.mean(shuffle.apart(full)) == pytest.approx(count / 3, rel=0.02)
    inside = shuffle.apart(order.images)
    assert np.median(inside) == pytest.approx((1 - np.sqrt(0.5)) * window, rel=0.06)
    assert np.mean(inside[inside < window]) == pytest.approx(window / 3, rel=0.04)
    small = shuffle.blocks(0, 0, (16_000,)).images
    assert np.mean(shuffle.apart(small)) == pytest.approx(16_000 / 3, rel=0.02)
    assert shuffle.together(full, 256) == pytest.approx(256 / count, rel=0.2)
    assert shuffle.together(order.images, 256) == pytest.approx(256 / window * (1 - 256 / 3 / window), rel=0.2)
    # what of it a step shows: nothing where images are stored shuffled, nearly all where they are sorted
    labels = np.random.default_rng(0).integers(0, 100, count)
    assert not shuffle.sorted_by_class(labels)
    assert shuffle.sorted_by_class(np.sort(labels))
    assert not shuffle.sorted_by_class(np.zeros(9, int))
    known = shuffle.varied(full, labels, 64)
    assert shuffle.varied(order.images, labels, 64) == pytest.approx(known, rel=0.01)
    assert shuffle.varied(order.images, np.sort(labels), 64) < known / 2


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 100), st.integers(1, 7), st.integers(1, 6), st.integers(1, 40))
def test_every_rank_takes_a_disjoint_share_of_an_epoch(count, batch, size, shard):
    if batch * size > count:
        return
    data = split(count, shard)
    ranks = [Batches(data, batch, rank, size, shuffle="blocks") for rank in range(size)]
    alone = Batches(data, batch * size, shuffle="blocks")
    for step in range(2 * ranks[0].steps_per_epoch):
        each = [rank.indices(step) for rank in ranks]
        assert np.concatenate(each).tolist() == alone.indices(step).tolist()
    for epoch in range(2):
        seen = np.concatenate([alone.indices(step + epoch * alone.steps_per_epoch)
                               for step in range(alone.steps_per_epoch)])
        assert len(set(seen.tolist())) == len(seen) == count // (batch * size) * batch * size


@pytest.mark.parametrize("size", [2, 6])
def test_n_ranks_see_bit_by_bit_what_one_rank_with_n_times_the_batch_sees(size):
    data = split(50, 7)
    alone = Batches(data, 12, seed=3, shuffle="blocks")
    ranks = [Batches(data, 12 // size, rank, size, seed=3, shuffle="blocks") for rank in range(size)]
    for step in (0, 3, 4, 8):
        for whole, *parts in zip(alone.at(step), *(rank.at(step) for rank in ranks), strict=True):
            np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize(("batch", "ranks"), [(4, 2), (2, 5), (30, 1)])
def test_each_image_of_an_epoch_is_drawn_once_though_other_ranks_go_on_with_other_batches(batch, ranks):
    """Two ranks with batches of three for a step and a half epoch, then others to the end of the third."""
    data = split(33, 5)
    begun = [Batches(data, 3, rank, 2, shuffle="blocks") for rank in range(2)]
    seen = [int(each) for step in range(7) for rank in begun for each in rank.indices(step)]
    old = begun[0].course
    course = Course(batch * ranks, old.epoch, old.first, old.workers, 7, old.drawn(7))
    others = [Batches(data, batch, rank, ranks, course=course, shuffle="blocks") for rank in range(ranks)]
    for step in range(7, course.reaches(3 * old.epoch // old.first)):
        seen += [int(each) for rank in others for each in rank.indices(step)]
    for epoch in range(3):                  # a step may end one epoch and begin another, in this order
        assert len(set(seen[30 * epoch:30 * (epoch + 1)])) == 30


@pytest.mark.parametrize(("jpeg", "one_file"), [(False, False), (True, False), (False, True)],
                         ids=["images", "jpeg", "one file"])
@pytest.mark.parametrize(("batch", "size", "first"), [(5, 1, 0), (4, 3, 17), (20, 8, 0)])
def test_a_stream_is_what_at_gives_and_reads_each_window_once_in_runs(stored, monkeypatch, jpeg, one_file, batch, size,
                                                                     first):
    with stored(jpeg, one_file) as dataset:
        data, rank = dataset.train, size // 2
        batches = Batches(data, batch, rank, size, seed=1, shuffle="blocks")
        steps = range(first, first + 320 // (batch * size) + 3)
        expected = [batches.at(step) for step in steps]
        runs, real = [], h5py.Dataset.read_direct
        monkeypatch.setattr(h5py.Dataset, "read_direct",
                            lambda self, out, *slices: runs.append(slices[0]) or real(self, out, *slices))
        stream = batches.stream(first)
        for want, got in zip(expected, stream, strict=False):
            for mine, other in zip(want, got, strict=True):
                np.testing.assert_array_equal(mine, other)
        stream.close()
        assert not data._kept, "what was read ahead is forgotten with the stream"
        assert not getattr(data._images, "kept", None)
        if not jpeg:
            read = sum(run.stop - run.start for run in runs)
            assert batch * len(steps) <= read <= batch * len(steps) + 3 * (64 // size + batch)
            if size != 3:                   # of which 16 lanes are no multiple
                assert read / len(runs) > (2 if size == 1 else 1.5)


@pytest.mark.parametrize("jpeg", [False, True], ids=["images", "jpeg"])
def test_the_system_is_asked_for_the_bytes_of_a_window_before_they_are_read(stored, monkeypatch, jpeg):
    asked = []

    def advised(handle, start, size, advice):
        assert advice == os.POSIX_FADV_WILLNEED
        asked.append(os.pread(handle, size, start))

    with stored(jpeg) as dataset:
        data, indices = dataset.train, np.array([7, 40, 5, 6, 41, 200])
        monkeypatch.setattr(os, "posix_fadvise", advised)
        data.keep(indices)
        expected = np.empty((320, *data.image), np.uint8)
        data.read(np.arange(320), expected)
        runs = [[5, 6, 7], [40, 41], [200]]
        if jpeg:
            assert asked == [b"".join(data._images.encoded(np.array(run))) for run in runs]
        else:
            assert asked == [expected[run].tobytes() for run in runs]
        assert sorted(data._images.kept if jpeg else data._kept) == [5, 6, 7, 40, 41, 200]
        data.forget(indices)


def test_what_is_gone_when_a_window_is_read_ahead_is_raised_where_the_batches_are_used(stored):
    with stored() as dataset:
        data = dataset.train
        for shard in range(10):
            data._images.file_of(shard).unlink()
        with pytest.raises(UsageError, match=r"train-0000\d\.h5: expected the images .* found no file; put it back"):
            list(Batches(data, 4, shuffle="blocks").stream())


def test_no_more_shards_are_open_than_lanes(stored, monkeypatch):
    opened, real = [], shards.Shards._checked
    with stored() as dataset:
        monkeypatch.setattr(shards.Shards, "_checked", lambda self, shard: opened.append(shard) or real(self, shard))
        stream = Batches(dataset.train, 16, shuffle="blocks").stream()
        for _ in range(20):
            next(stream)
        stream.close()
    assert len(opened) == 10
    assert shuffle.LANES <= shards.MOST_OPEN


def test_blocks_of_images_that_each_belong_to_a_rank_are_refused():
    with pytest.raises(UsageError, match=r"^--shuffle blocks: expected --partition iid, found shards:2, .*; use "
                                         r"--shuffle full"):
        prepare(Config(shuffle="blocks", partition="shards:2"), 2)
    prepare(Config(partition="shards:2"), 2)


@pytest.mark.parametrize(("sorted_", "shuffled", "said"), [
    (True, "blocks", 1), (True, "full", 0), (False, "blocks", 0)])
def test_a_line_tells_that_images_are_stored_sorted(tmp_path, monkeypatch, caplog, sorted_, shuffled, said):
    monkeypatch.setattr(formats, "MEMORY_BYTES", 0)
    made = content()
    labels = np.sort(made.train[1]) if sorted_ else made.train[1]
    formats.write(tmp_path / "set.h5", dataclasses.replace(made, train=(made.train[0], labels)))
    with Dataset(tmp_path / "set.h5") as dataset:
        prepare(Config(shuffle=shuffled), 1, dataset)
    assert [record.getMessage() for record in caplog.records] == said * [
        f"{tmp_path}/set.h5: images of one class are stored side by side, and so a step with --shuffle blocks has few "
        "classes; use --shuffle full, or store them shuffled"]


def test_what_is_asked_for_on_the_command_line_is_done(tmp_path):
    def main(host, **options):
        batches = assemble(prepare(Config(kernels="reference", **options), 2), host, tmp_path).batches
        return batches.shuffle, batches.threads, batches.indices(9).tolist()

    asked = Cluster(2).run(partial(main, shuffle="blocks", data_threads=3))
    split = open_dataset("fashion-mnist-12k").train
    assert asked == [("blocks", 3, Batches(split, 16, rank, 2, shuffle="blocks").indices(9).tolist())
                     for rank in range(2)]
    assert [each[:2] for each in Cluster(2).run(main)] == [("full", 1)] * 2
