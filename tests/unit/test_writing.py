"""Checkpoints are written while the run goes on: it waits for none but the one before and the last."""

import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from dsgd_mpi.algorithms.allreduce import Allreduce
from dsgd_mpi.algorithms.gossip import Gossip
from dsgd_mpi.arrays.flat import Layout
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.optim.sgd import Sgd
from dsgd_mpi.training import checkpoint, rankfile, writing
from dsgd_mpi.training.checkpoint import Checkpoints
from dsgd_mpi.training.display import Display
from dsgd_mpi.training.loop import train
from dsgd_mpi.training.record import Record
from tests.support.runs import training


def on_cluster(folder, act, size=2, kind=Gossip):
    """`act(checkpoints, save, x)` on each rank; `save(step)` with x full of the step and the rank's number."""
    def main(host):
        x, own = np.zeros(6, "float32"), kind()
        sgd = Sgd().start(Layout({"w": (5,)}, {"mean": (1,)}), like=x)
        own.start(host, x, sgd)
        checkpoints = Checkpoints(host, folder, {})

        def save(step):
            x[:] = own.t = step
            x[0] = host.rank
            checkpoints.save(step, x, sgd, own, {})
        checkpoints.take = lambda: (checkpoints.restore(x, sgd, own)[0], x.tolist())
        return act(checkpoints, save, x)
    return Cluster(size).run(main)


class Disk:
    """An fsync that takes as long as it is told to, in the threads of checkpoints; how many were in it at once."""

    def __init__(self, monkeypatch):
        self.free, self.lock, self.real = threading.Event(), threading.Lock(), os.fsync
        self.calls = self.within = self.most = 0
        self.seconds = 0.0
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, descriptor):
        if threading.current_thread().name != "checkpoint":
            return self.real(descriptor)
        with self.lock:
            self.calls, self.within = self.calls + 1, self.within + 1
            self.most = max(self.most, self.within)
        assert self.free.wait(30)
        time.sleep(self.seconds)
        with self.lock:
            self.within -= 1
        return self.real(descriptor)


@pytest.fixture
def disk(monkeypatch):
    disk = Disk(monkeypatch)
    yield disk
    disk.free.set()


def soon(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_a_checkpoint_is_of_the_state_at_its_step_whatever_the_run_does_while_it_is_written(tmp_path, disk):
    def act(checkpoints, save, x):
        save(10)
        soon(lambda: disk.calls)
        assert checkpoint.steps_in(tmp_path) == []
        x[:] = -1
        checkpoints.host.allgather(None)
        disk.free.set()
        checkpoints.finish()
        return checkpoints.take()
    assert on_cluster(tmp_path, act) == [(10, [rank, 10, 10, 10, 10, 10]) for rank in range(2)]


def test_it_is_whole_as_soon_as_all_ranks_have_written_theirs_without_a_word_between_them(tmp_path, disk):
    def act(checkpoints, save, x):
        save(10)
        checkpoints.host.allgather(None)    # all threads have started
        disk.free.set()
        soon(lambda: checkpoint.steps_in(tmp_path))
        found = sorted(os.listdir(tmp_path / "checkpoint-000000010"))
        checkpoints.finish()
        return found
    assert on_cluster(tmp_path, act, 3) == [["SHA256SUMS", "rank0.h5", "rank1.h5", "rank2.h5"]] * 3


def test_what_rank_0_does_not_see_in_the_folder_it_is_told_where_ranks_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "noted", lambda path: None)

    def act(checkpoints, save, x):
        for step in (10, 20):
            save(step)
            assert checkpoint.steps_in(tmp_path) == [10] * (step == 20)
        checkpoints.finish()
        return checkpoints.take()[0]
    assert on_cluster(tmp_path, act) == [20, 20]


@pytest.mark.parametrize("kind", [Gossip, Allreduce])
def test_the_second_waits_for_the_first_and_the_end_for_the_last(tmp_path, disk, kind):
    disk.seconds = 0.05
    disk.free.set()

    def act(checkpoints, save, x):
        for step in (10, 20, 30):
            save(step)
        checkpoints.finish()
        return checkpoint.steps_in(tmp_path) if checkpoints.host.rank == 0 else None
    assert on_cluster(tmp_path, act, 1, kind) == [[20, 30]]
    assert disk.most == 1


def test_a_rank_that_has_no_room_costs_the_checkpoint_alone_and_is_said_once(tmp_path, monkeypatch, caplog):
    whole = rankfile.place

    def place(path, content, verify):
        if "020" in str(path) and path.name == "rank1.h5":
            raise OSError(f"{path}: No space left on device")
        return whole(path, content, verify)
    monkeypatch.setattr(rankfile, "place", place)

    def act(checkpoints, save, x):
        for step in (10, 20, 30):
            save(step)
        checkpoints.finish()
    with caplog.at_level(logging.WARNING):
        on_cluster(tmp_path, act)
    assert [record.message.partition(":")[0] for record in caplog.records] == ["no checkpoint at step 20"]
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-000000010", "checkpoint-000000030"]


@pytest.mark.parametrize("where", ["place", "conclude"])
def test_what_fails_in_another_way_ends_the_run_where_that_waits(tmp_path, monkeypatch, where):
    def fails(*args):
        raise ZeroDivisionError
    monkeypatch.setattr(*((rankfile, "place") if where == "place" else (checkpoint, "conclude")), fails)

    def act(checkpoints, save, x):
        save(10)
        with pytest.raises(ZeroDivisionError):
            checkpoints.finish()
    on_cluster(tmp_path, act, 1)


@pytest.mark.parametrize("text", ["", "ab", "0" * 64, "0" * 63 + "\n", "g" * 64 + "\n", "0" * 64 + "\n\n", "\xff" * 70])
def test_a_note_that_is_not_complete_is_none(tmp_path, text):
    (tmp_path / "note").write_text(text, encoding="latin-1")
    assert writing.noted(tmp_path / "note") is None
    (tmp_path / "note").write_text("0f" * 32 + "\n")
    assert writing.noted(tmp_path / "note") == "0f" * 32


def run_of(folder, steps, every, asked=lambda step: False):
    """The step that a training on one simulated rank has reached, with a time for each step."""
    times = []

    def main(host):
        run = replace(training(host, folder, Allreduce(), steps), checkpoint_every=every)
        record = Record(host, run.algorithm, folder, Display(False), 1000, 2, 1, 1)
        reached = train(run, record, 0, lambda: times.append(time.monotonic()) or asked(len(times)))
        record.finish("", reached, {})
        return reached
    return Cluster(1).run(main)[0], times


def test_steps_are_taken_while_the_disk_is_slow(tmp_path, disk):
    """Nothing can be written before the last step has begun: a run that waited would end with an error."""
    reached, times = run_of(tmp_path, 6, 6, asked=lambda step: step == 6 and disk.free.set())
    assert (reached, len(times)) == (6, 6)
    assert checkpoint.steps_in(tmp_path) == [0, 6]


def test_a_run_that_is_asked_to_stop_ends_once_its_last_checkpoint_is_whole(tmp_path, disk):
    disk.seconds = 0.1
    disk.free.set()
    reached, times = run_of(tmp_path, 100, 50, asked=lambda step: step > 3)
    assert reached == 3
    assert checkpoint.steps_in(tmp_path) == [0, 3]
    assert time.monotonic() - times[-1] > 0.3, "three fsyncs"


class Killed(BaseException):
    """From now on nothing is done any more."""


CHANGES = ("mkdir", "replace", "unlink", "rmdir", "fsync", "open")


def test_a_kill_at_any_change_of_the_file_system_leaves_the_newest_whole_one(tmp_path, monkeypatch):
    """All changes are counted in a run that is not killed; then a run is killed at each of them in turn."""
    left = [10**9]

    def counted(real):
        def change(*args, **kw):
            if threading.current_thread().name == "checkpoint":
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
            return real(*args, **kw)
        return change
    for name in CHANGES:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))

    def killed_at(folder, number):
        folder.mkdir()
        left[0] = 10**9

        def act(checkpoints, save, x):
            save(10)
            save(20)
            checkpoints.finish()
            left[0] = number
            save(30)
            checkpoints.finish()

        def again(checkpoints, save, x):
            found = checkpoints.take()
            save(40)
            checkpoints.finish()
            return found, checkpoints.take()
        with suppress(Killed):
            on_cluster(folder, act, 1)
        used, left[0] = number - left[0], 10**9
        (step, x), last = on_cluster(folder, again, 1)[0]
        assert x == [0, *[step] * 5]
        assert last == (40, [0, *[40] * 5])
        assert checkpoint.steps_in(folder) == [step, 40]
        assert not [name for name in os.listdir(folder) if name.endswith(".part")]
        return step, used
    _, changes = killed_at(tmp_path / "whole", 10**6)
    assert changes >= 10
    steps = [killed_at(tmp_path / str(number), number)[0] for number in range(changes)]
    assert steps == sorted(steps)
    assert set(steps) == {20, 30}
