"""A run that goes on without ranks that die, on a simulated cluster: what is left of it, and of the figures."""

import dataclasses
import json

import numpy as np
import pytest

from dsgd_mpi import algorithms
from dsgd_mpi.config import Config
from dsgd_mpi.data import Batches, Course, open_dataset
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.net.simulated.host import RankLost
from dsgd_mpi.net.simulated.machine import star
from dsgd_mpi.training import loop
from dsgd_mpi.training.build import prepare
from dsgd_mpi.training.display import Display
from dsgd_mpi.training.folder import Claim, inherited
from dsgd_mpi.training.parts import Meeting
from dsgd_mpi.training.record import Record
from dsgd_mpi.training.survive import Survivor
from tests.support.runs import training

STEPS, RANKS = 9, 5
WAYS = [(name, {}, "mean") for name in algorithms.surviving()]
WAYS += [("allreduce", {}, "compute"), ("allreduce", {}, "save"), ("gossip", {"mode": "push"}, "save"),
         ("sgp", {"overlap": "0"}, "compute"),
         ("local_sgd", {"period": "3", "slow_momentum": "0.3", "post_local": "5"}, "compute")]


class Dying:
    """In place of `Faults`: what befalls a rank, `{(rank, step): where}`, where is "compute", "mean" or "save"."""

    def __init__(self, host, deaths):
        self.host, self.rank, self.deaths, self.where, self.record = host, host.rank, deaths, None, None
        mean, allgather = host.mean, host.allgather
        host.mean = lambda *args, **kwargs: self.at("mean") or mean(*args, **kwargs)
        host.allgather = lambda item: self.at("save") or allgather(item)

    delay_s = 0.0

    def before(self, step):
        self.where = self.deaths.get((self.rank, step), self.where)
        self.at("compute")

    def at(self, where):
        if self.where == where:
            if self.record.output:
                self.record.output.close()
            if writing := self.checkpoints.writing:     # a thread dies with its process
                writing.told.put([None])
                writing.thread.join()
            self.host.die()

    def spoiling(self, x, trained):
        return np.errstate()

    def saved(self, file):
        pass


def fewer(run, step):
    """As `build.among`, of a run put together by hand."""
    host, batch = run.host, run.batches.batch
    course = dataclasses.replace(run.course, batch=batch * host.size, step=step, images=run.course.drawn(step))
    batches = Batches(run.batches.split, batch, host.rank, host.size, 0, False, course=course)
    steps = max(step, course.reaches(run.schedule.steps))
    return dataclasses.replace(run, batches=batches, course=course, workers=host.size, ranks_per_step=host.size,
                               steps=steps)


def survived(folder, way, deaths, ranks=RANKS, machine=None, faults=Dying, **changes):
    """The summary of a run of STEPS steps; of each rank that lives its members, model and algorithm."""
    name, options = way

    def main(host):
        run = training(host, folder, algorithms.build(name, options), steps=STEPS)
        course = Course(2 * ranks, 2 * ranks * 1000, 2 * ranks, ranks)
        places = [{"host": "h", "pid": 100 + rank} for rank in range(ranks)]
        run = dataclasses.replace(run, course=course, survival=Survivor(fewer, places), faults=faults(host, deaths),
                                  checkpoint_every=4, **changes)
        run.checkpoints.course, run.faults.checkpoints = course, run.checkpoints
        ends = []
        record = run.faults.record = Record(host, run.algorithm, folder, Display(False), 1000, 2, ranks, 1,
                                            course=course)

        def conclude(run, reached):
            ends[:] = run, record.finish("finished", reached, {"ranks": host.size})
        reached = loop.train(run, record, 0, lambda: False, conclude)
        run, summary = ends
        assert reached == run.steps
        return summary, host.members, run.model.flat.copy(), run.algorithm, run.course
    found = Cluster(ranks, machine).run(main)
    return json.loads((folder / "summary.json").read_text(encoding="utf-8")), found


@pytest.mark.parametrize(("name", "options", "where"), WAYS)
def test_the_others_go_on_in_every_method_wherever_two_ranks_die(tmp_path, name, options, where):
    """Rank 0, which writes, and another, at another step."""
    summary, found = survived(tmp_path, (name, options), {(0, 3): where, (3, 6): where})
    assert [each["rank"] for each in summary["lost"]] == [0, 3]
    assert [each["pid"] for each in summary["lost"]] == [100, 103]
    assert len(found) == summary["ranks"] == 3
    for _, members, _, _, course in found:
        assert members == [1, 2, 4]
        assert course.batch == 6
    drawn = found[0][4].drawn(summary["steps"])
    assert STEPS * 2 * RANKS <= drawn < STEPS * 2 * RANKS + 10, "the length stays, in images"
    models = [model for _, _, model, _, _ in found]
    assert all(np.isfinite(model).all() for model in models)
    assert all(np.array_equal(model, models[0]) for model in models), "the answer is the same on all"
    rows = (tmp_path / "summary.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", str(summary["steps"])]
    newest = max(tmp_path.glob("checkpoint-*"))
    files = list(newest.glob("rank*.h5"))
    assert len(files) == (1 if algorithms.find(name).replicated else 3)
    assert not list(tmp_path.glob(".checkpoint-*"))


@pytest.mark.parametrize("name", ["sgp", "gosgd"])
def test_the_weights_of_those_that_live_sum_to_their_number(tmp_path, name):
    def main(host):
        algorithm = algorithms.build(name, {})
        algorithm.w = 0.5 + host.rank / 8
        before = algorithm.w
        algorithm.go_on(host, 0)
        return before, algorithm.w
    found = np.array(Cluster(3).run(main))
    assert np.isclose(found[:, 1].sum(), 3)
    assert np.allclose(found[:, 1] / found[:, 0], 3 / found[:, 0].sum()), "so their weighted mean stays as it is"


def test_after_a_loss_allreduce_is_what_fewer_ranks_would_have_done_from_there(tmp_path):
    """No image is left out or seen twice, and the models are those of a run of three ranks from that step on."""
    _, found = survived(tmp_path, ("allreduce", {}), {(1, 4): "compute"}, ranks=4)
    course = found[0][4]
    split = open_dataset("fashion-mnist-12k").train
    before = Course(8, 8000, 8, 4)
    seen = np.concatenate(
        [Batches(split, 2, rank, 4, course=before).indices(step) for step in range(3) for rank in range(4)]
        + [Batches(split, 2, rank, 3, course=course).indices(step) for step in range(3, 9) for rank in range(3)])
    assert course.step == 3
    assert course.drawn(3) == 24
    assert len(set(seen)) == len(seen) == 24 + 6 * 6


@pytest.mark.parametrize(("name", "options", "same"), [
    ("allreduce", {}, ("x", "v")), ("topk", {}, ("x",)), ("gossip", {}, ()),
    ("diloco", {"delay": "3"}, ("u", "x0")), ("local_sgd", {"post_local": "7"}, ("x", "v")),
    ("local_sgd", {"slow_momentum": "0.3"}, ("u", "x0"))])
def test_what_is_the_same_on_all_ranks_is_that_of_the_furthest(tmp_path, name, options, same):
    """Rank 0 dies; rank 1 is about to save after 3 steps, rank 3 has begun the step after 5, rank 2 that after 4."""
    begun = {1: (3, Meeting(False, False, True)), 2: (4, None), 3: (5, None)}

    def main(host):
        run = training(host, tmp_path, algorithms.build(name, options), steps=STEPS)
        record = Record(host, run.algorithm, tmp_path, Display(False), 1000, 2, 4, 1)
        if host.rank == 0:
            record.output.close()
            host.die()
        run.algorithm.start(host, run.model.flat, run.optimizer)
        run.algorithm.t = begun[host.rank][0]
        mine = {"x": run.model.flat, "v": run.optimizer.state["v"],
                **{each: getattr(run.algorithm, each) for each in run.algorithm.alike}}
        for array in mine.values():
            array[:] = host.rank
        survivor = Survivor(fewer, [{"host": "h", "pid": 1}] * 4)
        survivor.keep(run, record, *begun[host.rank])
        for array in mine.values():         # in the middle of the step
            array[:] = -1
        number = host.rank
        try:
            host.allgather(None)
        except RankLost as failure:
            run, step, meeting = survivor.went_on(run, record, failure)
        record.finish("", step, {})
        found = {"x": run.model.flat, "v": run.optimizer.state["v"],
                 **{each: getattr(run.algorithm, each) for each in run.algorithm.alike}}
        for each, array in found.items():
            assert np.all(array == (3 if each in same else number)), each
        assert run.algorithm.t == 5 or run.algorithm.replicated
        return step, tuple(meeting)
    assert Cluster(4).run(main) == [(5, (False, False, True))] * 3


def test_who_is_behind_leaves_out_the_steps_between(tmp_path):
    """Where nobody waits, a slow rank may be far behind."""
    machine = star(gradient_s=lambda rank, step: (0.1, 0.09, 1.0, 0.09)[rank])
    summary, found = survived(tmp_path, ("gossip", {"mode": "push"}), {(0, 4): "compute"}, ranks=4, machine=machine)
    assert summary["lost"][0]["step"] == 3
    assert [algorithm.t for _, _, _, algorithm, _ in found] == [summary["steps"]] * 3
    steps = summary["rank_steps"]
    assert steps[0] == steps[2] == summary["steps"]
    assert steps[1] == summary["steps"] - 3


@pytest.mark.parametrize("name", ["allreduce", "gossip"])
@pytest.mark.parametrize(("death", "bad", "back_to"), [(3, 6, 4), (7, 2, 0)])
def test_a_run_may_both_lose_a_rank_and_go_back(tmp_path, caplog, name, death, bad, back_to):
    """A loss is no number in step `bad`: all go back at half the rate, and keep that when a rank dies."""
    class Spoiling(Dying):
        def spoiling(self, x, trained):
            if self.rank == 2 and self.step == bad and not self.spoilt:
                self.spoilt = True
                x[0] = np.nan
            return np.errstate()

        spoilt, step = False, 0

        def before(self, step):
            self.step = step
            super().before(step)

    summary, found = survived(tmp_path, (name, {}), {(0, death): "compute"}, ranks=4, faults=Spoiling,
                              on_nonfinite="restore")
    assert [each["rank"] for each in summary["lost"]] == [0]
    assert (summary["status"], summary["ranks"], summary["restores"]) == ("finished", 3, 1)
    assert all(np.isfinite(model).all() for _, _, model, _, _ in found)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, summary["steps"] + 1))
    assert [line["lr"] for line in lines] == [0.01 if line["step"] <= back_to else 0.005 for line in lines]
    assert f"restore 1 of 3, to step {back_to} and rate 0.005" in caplog.text


@pytest.mark.parametrize("where", ["mean", "save"])
def test_a_rank_that_dies_at_the_very_end_leaves_the_results_to_the_others(tmp_path, where):
    """In the last evaluation, and between its checkpoint and the summary."""
    summary, found = survived(tmp_path, ("gossip", {}), {(0, STEPS): where}, ranks=3)
    assert len(found) == 2
    assert summary["status"] == "finished"
    rows = (tmp_path / "summary.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", str(summary["steps"])]
    assert summary["accuracy"] is not None


def test_an_error_of_another_kind_ends_the_run(tmp_path):
    class Broken(Dying):
        def before(self, step):
            if (self.rank, step) in self.deaths:
                raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        survived(tmp_path, ("allreduce", {}), {(1, 3): ""}, ranks=2, faults=Broken)


@pytest.mark.parametrize(("options", "told"), [
    ({"algorithm": "easgd"}, "easgd cannot go on without a rank"),
    ({"algorithm": "backup"}, "backup cannot go on without a rank"),
    ({"algorithm": "gossip", "set": ("mode=push",), "steps_total": 9}, "use --steps")])
def test_what_cannot_go_on_without_a_rank_is_refused_with_a_way_out_that_works(options, told):
    with pytest.raises(UsageError) as problem:
        prepare(Config(survive=True, **options), 2)
    assert problem.value.message.startswith("--survive: ")
    assert told in problem.value.message
    for name in algorithms.surviving():
        prepare(Config(survive=True, algorithm=name), 2)


def test_a_claim_of_a_rank_that_has_died_passes_to_another_at_once(tmp_path):
    first = Claim(tmp_path)
    with pytest.raises(UsageError, match="is in use"):
        inherited(tmp_path, [(first.holder.host, first.holder.pid + 1)])
    heir = inherited(tmp_path, [(first.holder.host, first.holder.pid)])
    heir.release()
    first.release()
    assert not list(tmp_path.iterdir())
