"""Numbers that are not finite: all ranks end together and say where, or leave the update out, or go back."""

import json
import logging
from dataclasses import replace

import h5py
import numpy as np
import pytest

from dsgd_mpi import algorithms
from dsgd_mpi.arrays.flat import Layout, finite
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.optim.schedule import Schedule
from dsgd_mpi.optim.sgd import Sgd
from dsgd_mpi.training.checkpoint import Checkpoints
from dsgd_mpi.training.display import Display
from dsgd_mpi.training.loop import train
from dsgd_mpi.training.nonfinite import Diverged
from dsgd_mpi.training.record import Record
from tests.support.runs import training

WAYS = [*((name, {}) for name in algorithms.names()), ("gossip", {"mode": "push"}),
        ("parameter_server", {"servers": "1"})]
SKIPPING = [way for way in WAYS if way[0] in ("allreduce", "gossip", "parameter_server", "local_sgd", "dgc")]
RESTORING = [way for way in WAYS if way[0] in ("allreduce", "gossip", "parameter_server", "sgp", "backup")]
SHARED_OUT = [("gossip", {"mode": "push"}), ("easgd", {}), ("parameter_server", {})]
RANKS, STEPS, BAD = 3, 8, 5


def poisoned(run, bad):
    """From now on a gradient is taken on images of NaN wherever bad(step, rate)."""
    put, begin, taken = run.model.kernels.put, run.model.begin, []

    def begin_on(*batch, **how):
        taken.append(1)
        begin_on.now = bad(len(taken))
        return begin(*batch, **how)

    def put_nan(images, to):
        put(images, to)
        if begin_on.now:
            to[...] = np.nan
            begin_on.now = False
    begin_on.now = False
    run.model.begin, run.model.kernels.put = begin_on, put_nan


def simulated(folder, name, options, bad, steps=STEPS, every=2, shared_out=False, resume=False, **changes):
    """Each rank's summary, or the error that ended it; bad(rank, gradient): which of its gradients are NaN."""
    folder.mkdir(exist_ok=True)

    def main(host):
        run = training(host, folder, algorithms.build(name, options), steps, shared_out)
        run = replace(run, checkpoint_every=every, **changes)
        poisoned(run, lambda gradient: bad(host.rank, gradient))
        first, totals = (run.checkpoints.restore(run.model.flat, run.optimizer, run.algorithm) if resume
                         else (0, None))
        record = Record(host, run.algorithm, folder, Display(False), 1000, 2, run.ranks_per_step, 1, first, totals)
        try:
            reached = train(run, record, first, lambda: False)
        except Diverged as problem:
            return record.finish("diverged", problem.step, {}), problem
        assert finite(run.model.flat)
        return record.finish("finished", reached, {}), None
    return Cluster(RANKS).run(main)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def whole_and_finite(folder):
    for path in folder.rglob("*.h5"):
        with h5py.File(path) as file:
            file.visititems(lambda name, item: None if isinstance(item, h5py.Group) else finite(item[()]) or 1 / 0)


@pytest.mark.parametrize(("name", "options"), WAYS)
def test_all_ranks_stop_at_one_step_and_say_which_rank_and_step_and_rate(tmp_path, name, options):
    found = simulated(tmp_path, name, options, lambda rank, gradient: rank == 2 and gradient == BAD)
    steps, messages = {problem.step for _, problem in found}, {str(problem) for _, problem in found}
    assert len(steps) == len(messages) == 1
    assert BAD <= steps.pop() <= BAD + 1
    said = messages.pop()
    assert said.startswith(f"rank 2: the loss at step {BAD} is nan at rate 0.01; the newest finite checkpoint is of "
                           "step 4;")
    assert f"--resume {tmp_path}" in said
    assert {problem.exit_code for _, problem in found} == {3}
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "diverged"
    assert sorted(path.name[-1] for path in tmp_path.glob("checkpoint-*")) == ["2", "4"]
    whole_and_finite(tmp_path)


@pytest.mark.parametrize(("name", "options"), SHARED_OUT)
@pytest.mark.parametrize("bad", [2, 5])
def test_where_steps_are_shared_out_all_ranks_stop_too(tmp_path, name, options, bad):
    found = simulated(tmp_path, name, options, lambda rank, gradient: rank == 2 and gradient == bad, 15, 100, True)
    assert all(str(problem).startswith("rank 2: the loss at step") for _, problem in found)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-000000000"]
    assert "the newest finite checkpoint is of step 0" in str(found[0][1])


def test_the_last_step_counts_too(tmp_path):
    found = simulated(tmp_path, "allreduce", {}, lambda rank, gradient: rank == 0 and gradient == STEPS)
    assert {str(problem).partition(" is ")[0] for _, problem in found} == {f"rank 0: the loss at step {STEPS}"}
    assert lines(tmp_path)[-1]["loss"] is None
    assert not (tmp_path / "checkpoint-000000008").exists()


@pytest.mark.parametrize(("name", "options"), SKIPPING)
def test_an_update_whose_gradient_is_not_finite_is_left_out_and_counted(tmp_path, name, options):
    found = simulated(tmp_path, name, options, lambda rank, gradient: rank == 2 and gradient in (3, 5),
                      on_nonfinite="skip")
    alike = name == "allreduce"             # all ranks see the same mean
    assert [problem for _, problem in found] == [None] * RANKS
    assert found[0][0]["rank_updates_skipped"] == ([2, 2, 2] if alike else [0, 0, 2])
    assert found[0][0]["status"] == "finished"
    whole_and_finite(tmp_path)
    again = simulated(tmp_path, name, options, lambda rank, gradient: rank == 2 and gradient == 1, STEPS + 4,
                      resume=True, on_nonfinite="skip")
    assert again[0][0]["rank_updates_skipped"][2] == 3      # a resumed run counts on


def test_skipping_ends_where_no_update_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(Sgd, "patience", 4)
    found = simulated(tmp_path, "gossip", {}, lambda rank, gradient: rank == 2 and gradient > 1, on_nonfinite="skip")
    assert {problem.step for _, problem in found} <= {5, 6}
    step = found[0][1].step
    assert {str(problem).partition(";")[0] for _, problem in found} == {
        f"rank 2: the last 4 gradients before step {step} are not finite at rate 0.01, and 4 updates were left out"}


def test_an_update_is_left_out_whole_and_a_lost_model_is_told():
    x, g = np.ones(6, "float32"), np.full(6, 2, "float32")
    sgd = Sgd().start(Layout({"w": (5,)}, {"mean": (1,)}), like=x)
    sgd.leaves_out = True
    for bad in (np.nan, np.inf, -np.inf):
        for place in range(6):
            spoiled = g.copy()
            spoiled[place] = bad
            assert not sgd.change(x, spoiled, 0.1).any()
            assert not sgd.state["v"].any()
    assert (sgd.skipped, sgd.in_a_row, sgd.stuck) == (18, 18, False)
    assert sgd.change(x, g, 0.1).all()
    assert sgd.in_a_row == 0
    x[0] = np.inf
    sgd.update(x, spoiled, 0.1)
    assert sgd.stuck


@pytest.mark.parametrize(("name", "options"), RESTORING)
def test_restoring_goes_back_to_the_newest_checkpoint_at_half_the_rate(tmp_path, name, options, caplog):
    with caplog.at_level(logging.WARNING):
        found = simulated(tmp_path, name, options, lambda rank, gradient: rank == 2 and gradient == BAD,
                          on_nonfinite="restore")
    assert [problem for _, problem in found] == [None] * RANKS
    assert (found[0][0]["status"], found[0][0]["steps"], found[0][0]["restores"]) == ("finished", STEPS, 1)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, STEPS + 1))      # each once
    assert [line["lr"] for line in lines(tmp_path)] == [0.01] * 4 + [0.005] * 4
    assert f"restore 1 of 3, to step 4 and rate 0.005; rank 2: the loss at step {BAD} is nan" in caplog.text
    whole_and_finite(tmp_path)
    again = simulated(tmp_path, name, options, lambda *_: False, STEPS + 2, resume=True)
    assert lines(tmp_path)[-1]["lr"] == 0.005               # a resumed run keeps it
    assert again[0][0]["restores"] == 1


@pytest.mark.parametrize(("name", "options"), SHARED_OUT)
def test_steps_that_are_shared_out_are_restored(tmp_path, name, options):
    found = simulated(tmp_path, name, options, lambda rank, gradient: rank == 2 and gradient == 3, 15, 6, True,
                      on_nonfinite="restore")
    assert [(problem, summary["steps"], summary["restores"]) for summary, problem in found] == [(None, 15, 1)] * RANKS
    assert sum(found[0][0]["rank_steps"]) == 15
    whole_and_finite(tmp_path)


def test_restoring_without_a_checkpoint_goes_back_to_the_start_and_gives_up_after_three(tmp_path):
    found = simulated(tmp_path, "allreduce", {}, lambda rank, gradient: rank == 1 and gradient % 2 == 0, every=0,
                      on_nonfinite="restore")
    assert found[0][0]["restores"] == 3
    assert str(found[0][1]).startswith("rank 1: the loss at step 1 is nan at rate 0.00125, after 3 restores; ")
    other = simulated(tmp_path, "allreduce", {}, lambda *_: False, every=0, resume=True,
                      schedule=Schedule(0.002, "constant", STEPS))
    assert (other[0][1], other[0][0]["restores"], lines(tmp_path)[0]["lr"]) == (None, 0, 0.002)


@pytest.mark.parametrize("where", ["x", "v", "keeps"])
def test_a_checkpoint_with_a_number_that_is_not_finite_is_neither_written_nor_taken_up(tmp_path, where, caplog):
    def main(host, spoil=False):
        x = np.ones(6, "float32")
        sgd, algorithm = Sgd().start(Layout({"w": (5,)}, {"mean": (1,)}), like=x), algorithms.build("sgp", {})
        algorithm.start(host, x, sgd)
        checkpoints = Checkpoints(host, tmp_path, {})
        if spoil:
            for step in (1, 2):
                checkpoints.save(step, x, sgd, algorithm, {})
            if where != "keeps" and host.rank == 1:
                {"x": x, "v": sgd.state["v"]}[where][3] = np.inf
            algorithm.w = np.nan if where == "keeps" else 1.0
            checkpoints.save(3, x, sgd, algorithm, {})
            checkpoints.finish()
            return None
        return checkpoints.restore(x, sgd, algorithm)[0]
    with caplog.at_level(logging.WARNING):
        Cluster(2).run(lambda host: main(host, spoil=True))
    assert sorted(path.name[-1] for path in tmp_path.glob("checkpoint-*")) == ["1", "2"]
    assert "no checkpoint at step 3" in caplog.text
    with h5py.File(tmp_path / "checkpoint-000000002" / "rank1.h5", "r+") as file:      # as an older version wrote it
        name = {"x": "x", "v": "optimizer/v", "keeps": "keeps/w"}[where]
        file[name][...] = np.nan
    assert Cluster(2).run(main) == [1, 1]
    assert "holds numbers that are not finite" in caplog.text
