"""Laws of the loader: who sees which image when, and what becomes of the thread."""

import subprocess
import sys
import threading
import time
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsgd_mpi.data import loader
from dsgd_mpi.data.loader import AHEAD, LATE, MOST_AHEAD, Batches, Course, evaluation_batches
from dsgd_mpi.errors import UsageError
from tests.support.data_samples import images, split

shapes = {"images_": st.integers(1, 60), "batch": st.integers(1, 7), "size": st.integers(1, 6)}


@pytest.fixture
def batch_threads():
    """Gives the threads that make batches, less those that other tests have left."""
    def all_of_them():
        return {thread for thread in threading.enumerate() if thread.name == "batches"}

    before = all_of_them()
    return lambda: all_of_them() - before


@given(**shapes, seed=st.integers(0, 9))
def test_every_rank_sees_a_disjoint_share_of_an_epoch(images_, batch, size, seed):
    if batch * size > images_:
        return
    ranks = [Batches(split(images_), batch, rank, size, seed) for rank in range(size)]
    steps = images_ // (batch * size)
    assert {rank.steps_per_epoch for rank in ranks} == {steps}
    for epoch in range(2):
        seen = np.concatenate([rank.indices(epoch * steps + t) for t in range(steps) for rank in ranks])
        assert len(set(seen.tolist())) == len(seen) == steps * batch * size
        assert set(seen.tolist()) <= set(range(images_))


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("size", [2, 3, 6])
def test_n_ranks_see_bit_by_bit_what_one_rank_with_n_times_the_batch_sees(size, augment):
    alone = Batches(split(50), 12, seed=3, augment=augment)
    ranks = [Batches(split(50), 12 // size, rank, size, seed=3, augment=augment) for rank in range(size)]
    for step in range(9):
        for whole, *parts in zip(alone.at(step), *(rank.at(step) for rank in ranks), strict=True):
            np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_batch_depends_on_the_step_alone():
    batches = Batches(split(30), 4, seed=1)
    forward = [batches.at(step) for step in range(20)]
    for step in reversed(range(20)):
        for again, before in zip(Batches(split(30), 4, seed=1).at(step), forward[step], strict=True):
            np.testing.assert_array_equal(again, before)


def test_epochs_and_seeds_are_shuffled_differently():
    orders = [np.concatenate([Batches(split(30), 5, seed=seed).indices(6 * epoch + t) for t in range(6)]).tolist()
              for seed in range(2) for epoch in range(3)]
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert len(set(map(tuple, orders))) == 6


def test_what_one_epoch_leaves_over_gets_its_turn():
    batches = Batches(split(10), 4)
    seen = {int(i) for step in range(40) for i in batches.indices(step)}
    assert seen == set(range(10))


def test_images_keep_their_labels_and_are_normalised():
    x = split(20)
    batches = Batches(x, 5, augment=False)
    out, labels = batches.at(3)
    assert (out.dtype, out.shape, labels.dtype) == (np.float32, (5, 8, 8, 3), np.int64)
    np.testing.assert_allclose(out, (images(20)[labels] / 255 - x.mean) / x.std, atol=1e-6)


@pytest.mark.parametrize(("batch", "size", "message"), [
    (4096, 4, "batch 4096 x 4 ranks = 16384 images a step, but the training set holds 12000; use --batch 3000 or less"),
    (20_000, 1, "batch 20000 x 1 rank = 20000 .* use --batch 12000 or less"),
    (1, 12_001, "use 12000 ranks or fewer"),
    (0, 1, "use --batch 1 or more"),
])
def test_a_step_larger_than_the_training_set_is_refused(batch, size, message):
    with pytest.raises(UsageError, match=message):
        Batches(split(12_000, side=1, channels=1), batch, 0, size)


def test_a_stream_gives_what_at_gives_from_any_step_on():
    batches = Batches(split(30), 4, rank=1, size=2)
    for first in (0, 5):
        stream = batches.stream(first)
        for step, got in zip(range(first, first + 12), stream, strict=False):
            for mine, expected in zip(got, batches.at(step), strict=True):
                np.testing.assert_array_equal(mine, expected)
        stream.close()


def test_a_batch_of_a_stream_stays_until_the_next_is_asked_for():
    batches = Batches(split(30), 4)
    stream = batches.stream()
    for step in range(5):
        got, _ = next(stream)
        time.sleep(0.01)                    # time enough for the thread to spoil it
        np.testing.assert_array_equal(got, batches.at(step)[0])
    stream.close()


def test_bytes_lie_in_the_memory_made_for_them_until_the_next_batch_but_one_is_asked_for():
    made = []

    def memory(shape):
        made.append(np.zeros(shape, np.uint8))
        return made[-1]

    x = split(30)
    batches = Batches(x, 4, augment=False, byte_memory=memory)
    stream = batches.stream()
    before, _ = next(stream)
    for step in range(1, 2 * (1 + LATE + AHEAD)):
        got, _ = next(stream)
        time.sleep(0.01)
        for each, its_step in ((before, step - 1), (got, step)):
            assert any(each.images is one for one in made)
            expected = np.empty_like(each.images)
            x.read(batches.indices(its_step), expected)
            np.testing.assert_array_equal(each.images, expected)
        before = got
    assert 1 + LATE + AHEAD <= len(made) <= 1 + LATE + MOST_AHEAD
    stream.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_stream_is_made_only_so_far_ahead(threads):
    x, reads = split(30), []
    read = x.read
    x.read = lambda indices, out: (reads.append(1), read(indices, out))
    stream = Batches(x, 4, threads=threads).stream()
    next(stream)
    time.sleep(0.1)
    assert len(reads) == 1 + AHEAD + threads - 1
    stream.close()


@pytest.mark.parametrize(("room", "most"), [(1 << 30, MOST_AHEAD), (5 * 4 * 192 * 5, 5), (0, AHEAD)])
def test_more_batches_are_made_ahead_of_a_consumer_that_waits_and_no_more_than_there_is_room_for(monkeypatch, room,
                                                                                                most):
    monkeypatch.setattr(loader, "AHEAD_BYTES", room)
    x, go, reads = split(30), threading.Semaphore(0), []
    read = x.read
    x.read = lambda indices, out: (go.acquire(), reads.append(1), read(indices, out))
    batches = Batches(x, 4)
    assert batches.most_ahead == most
    stream = batches.stream()
    for used in range(1, 2 * MOST_AHEAD):   # each is made only while it is waited for
        threading.Timer(0.001, go.release).start()
        next(stream)
        assert len(reads) == used
    go.release(100)
    time.sleep(0.1)
    assert len(reads) == used + most
    stream.close()


def test_batches_made_by_several_threads_come_in_their_order():
    x = split(60)
    read = x.read

    def slowly(indices, out):
        time.sleep(0.02 if indices[0] % 2 else 0.0)
        read(indices, out)

    x.read = slowly
    stream = Batches(x, 4, threads=4).stream(3)
    for step in range(3, 13):
        got, labels = next(stream)
        want, expected = Batches(split(60), 4).at(step)
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(got, want)
    stream.close()


@pytest.mark.parametrize("after", [0, 3])
def test_what_fails_in_the_thread_is_raised_where_the_batches_are_used(after, batch_threads):
    x, calls = split(30), iter(range(100))
    read = x.read

    def fail(indices, out):
        if next(calls) == after:
            raise OSError("the disk is gone")
        read(indices, out)

    x.read = fail
    stream = Batches(x, 4).stream()
    assert len(list(islice(stream, after))) == after
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    assert not batch_threads()


def test_closing_or_forgetting_a_stream_ends_its_thread(batch_threads):
    for end in ("close", "del"):
        stream = Batches(split(30), 4).stream()
        next(stream)
        assert len(batch_threads()) == 1
        if end == "close":
            stream.close()
        del stream
        assert not batch_threads()


@pytest.mark.parametrize("leave", ["", "sys.exit(3)", "raise SystemExit(3)", "1 / 0"])
def test_a_process_ends_though_a_stream_is_open(leave):
    code = ("import sys\nfrom dsgd_mpi.data import Batches, open_dataset\nfrom dsgd_mpi.data import formats\n"
            "formats.MEMORY_BYTES = 0\n"       # so that the thread is inside HDF5 nearly always
            "stream = Batches(open_dataset('fashion-mnist-12k').train, 32).stream()\nnext(stream)\n" + leave)
    done = subprocess.run([sys.executable, "-c", code], timeout=30, capture_output=True, text=True)
    assert done.returncode == {"": 0, "1 / 0": 1}.get(leave, 3)
    assert done.stderr.splitlines()[-1:] == (["ZeroDivisionError: division by zero"] if leave == "1 / 0" else [])


@given(**shapes)
def test_evaluation_sees_each_test_image_once_over_all_ranks(images_, batch, size):
    x = split(images_)
    seen = []
    for rank in range(size):
        batches = list(evaluation_batches(x, batch, rank, size))
        assert all(len(labels) == batch for _, labels in batches[:-1])
        for out, labels in batches:
            assert 0 < len(labels) <= batch
            np.testing.assert_allclose(out, (images(images_)[labels] / 255 - x.mean) / x.std, atol=1e-6)
            seen += labels.tolist()
    assert seen == list(range(images_))


@pytest.mark.parametrize(("most", "expected"), [
    (4, [0, 2, 5, 7]), (10, list(range(10))), (99, list(range(10))), (None, list(range(10))), (1, [0])])
def test_evaluation_on_a_few_takes_them_evenly_spaced(most, expected):
    """Test sets may be sorted by class."""
    for size in (1, 3):
        seen = [label for rank in range(size) for _, labels in evaluation_batches(split(10), 3, rank, size, most=most)
                for label in labels]
        assert seen == expected


@pytest.mark.parametrize(("batch", "ranks"), [(4, 2), (8, 1), (2, 5), (5, 3), (30, 1)])
def test_each_image_of_an_epoch_is_drawn_once_though_other_ranks_go_on_with_other_batches(batch, ranks):
    """Two ranks with batches of three for a step and a half epoch, then others to the end of the fourth."""
    images = split(33)
    begun = [Batches(images, 3, rank, 2) for rank in range(2)]
    order = [int(each) for step in range(7) for rank in begun for each in rank.indices(step)]
    old = begun[0].course
    course = Course(batch * ranks, old.epoch, old.first, old.workers, 7, old.drawn(7))
    others = [Batches(images, batch, rank, ranks, course=course) for rank in range(ranks)]
    last = course.reaches(4 * old.epoch // old.first)
    order += [int(each) for step in range(7, last) for rank in others for each in rank.indices(step)]
    whole = [Batches(images, 6).indices(step) for step in range(4 * 5 + 5 * 5)]
    assert order == np.concatenate(whole)[:len(order)].tolist()
    assert 0 <= len(order) - 4 * 30 < batch * ranks
    for epoch in range(4):
        assert len(set(order[30 * epoch:30 * (epoch + 1)])) == 30
    assert course.epochs(7) == old.epochs(7)
    assert course.units(7) == 7


@pytest.mark.parametrize(("kw", "cores", "computing", "ways"), [
    ({}, 4, 4, ["--threads 3, which leaves a core to what reads images"]),
    ({}, 1, 1, ["fewer ranks to a core"]),
    ({}, 4, 2, ["--data-threads 2"]),
    ({"byte_memory": np.zeros, "threads": 3}, 4, 4, ["--data-threads 4"]),
])
def test_what_would_feed_a_rank_faster_is_what_it_has_not_tried_yet(kw, cores, computing, ways):
    assert Batches(split(30), 4, **kw).advice(cores, computing, "x.h5") == (
        f"try {', or '.join(ways)}; `python -m dsgd_mpi data bench x.h5` shows what takes how long")


def test_what_would_feed_a_rank_from_a_file_is_to_read_in_runs(monkeypatch):
    x = split(30)
    monkeypatch.setattr(type(x), "in_memory", False)
    assert Batches(x, 4).advice(1, 1, "x.h5").startswith("try --shuffle blocks, or --stage with a folder on a disk of ")
    assert Batches(x, 4, shuffle="blocks").advice(1, 1, "x.h5").startswith("try --stage with a folder on a disk of ")
    assert Batches(x, 4, shuffle="blocks").advice(1, 1, "x.h5", staged=True).startswith("try fewer ranks to a core; ")
