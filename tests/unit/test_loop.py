"""The training loop: where gradients are taken, and what that leaves alone."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dsgd_mpi import algorithms
from dsgd_mpi.algorithms import Algorithm
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.training import loop
from dsgd_mpi.training.display import Display
from dsgd_mpi.training.evaluate import take_answer
from dsgd_mpi.training.record import Record
from tests.support.runs import training


class Elsewhere(Algorithm):
    """Asks for a gradient at another place than where its model is."""

    def step(self, x, gradient, lr):
        before, place = x.copy(), 0.5 * x
        elsewhere = gradient(place).copy()
        self.seen = np.array_equal(x, before), np.array_equal(place, 0.5 * x), elsewhere, gradient(x).copy()


def test_a_gradient_taken_elsewhere_leaves_the_model_alone(tmp_path):
    def main(host):
        algorithm = Elsewhere()
        run = training(host, tmp_path, algorithm, steps=1)
        record = Record(host, algorithm, tmp_path, Display(False), 1000, 2, 1, 5)
        loop.train(run, record, 0, lambda: False)
        record.finish("", 1, {})
        other = training(host, tmp_path, algorithm, steps=1)
        x, expected = other.model.flat, []
        for scale, step in ((0.5, 0), (2, 1)):
            x *= scale
            other.model.loss_and_gradient(*other.batches.at(step))
            expected.append(other.model.flat_gradient.copy())
        return algorithm.seen, expected
    (kept, place_kept, elsewhere, here), expected = Cluster(1).run(main)[0]
    assert kept
    assert place_kept
    assert np.array_equal(elsewhere, expected[0])
    assert np.array_equal(here, expected[1])
    assert not np.array_equal(elsewhere, here)


class Late:
    """A loss that is known only to who waits for it."""

    def __init__(self, value, log):
        self.value, self.log, self.step = value, log, log.count("begin")
        log.append("begin")

    def done(self):
        return False

    def wait(self, between=None):
        between()
        self.log.append(self.step)
        return self.value


def written(folder, log_every, log=None, stop_at=None):
    """The losses of a run of 7 steps that is evaluated at the fourth, by step: of metrics.jsonl, and of summary.csv."""
    def main(host):
        asked = iter(range(100))
        run = replace(training(host, folder, algorithms.build("allreduce", {}), steps=7), eval_every=4)
        if log is not None:
            begin = run.model.begin
            run.model.begin = lambda *batch, **how: Late(begin(*batch, **how).wait(), log)
        record = Record(host, Algorithm(), folder, Display(False), 1000, 2, 1, log_every)
        reached = loop.train(run, record, 0, lambda: next(asked) == stop_at)
        record.finish("", reached, {})
    folder.mkdir()
    Cluster(1).run(main)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = (folder / "summary.csv").read_text().splitlines()[1:] if stop_at is None else []
    return [(line["step"], line["loss"], line["rank_steps"], line["images"]) for line in lines], rows


@pytest.mark.parametrize("log_every", [1, 3])
@pytest.mark.parametrize("stop_at", [None, 2])
def test_losses_that_are_known_late_are_written_for_the_same_steps(tmp_path, log_every, stop_at):
    log = []
    expected, rows = written(tmp_path / "known", log_every, stop_at=stop_at)
    found, late_rows = written(tmp_path / "late", log_every, log, stop_at)
    assert found == expected
    assert [row.split(",")[:5] for row in rows] == [row.split(",")[:5] for row in late_rows]
    assert [line[0] for line in found] == [step for step in range(1, (stop_at or 7) + 1) if step % log_every == 0]
    # a step late, but before an evaluation and before the end
    until_fourth = ["begin", "begin", 0, "begin", 1, "begin", 2, 3]
    assert log == (["begin", "begin", 0, 1] if stop_at else [*until_fourth, "begin", "begin", 4, "begin", 5, 6])


@pytest.mark.parametrize(("name", "options"), [
    ("allreduce", {}), ("gossip", {"mode": "push"}), ("gosgd", {}), ("parameter_server", {"servers": "1"})])
def test_the_model_of_the_end_is_the_one_that_was_evaluated_and_what_the_last_checkpoint_gives(tmp_path, name, options):
    def main(host):
        run = replace(training(host, tmp_path, algorithms.build(name, options), steps=5), bn="recalibrate")
        asked, whole = [], run.algorithm.answer

        def answer(x):
            asked.append(1)
            return whole(x)
        run.algorithm.answer = answer
        record = Record(host, run.algorithm, tmp_path, Display(False), 1000, 2, 1, 5)
        loop.train(run, record, 0, lambda: False)
        record.finish("", 5, {})
        again = training(host, tmp_path, algorithms.build(name, options), steps=5)
        again = replace(again, bn="recalibrate")
        again.checkpoints.restore(again.model.flat, again.optimizer, again.algorithm)
        again.algorithm.start(host, again.model.flat, again.optimizer)
        take_answer(again, 5, record)
        return len(asked), run.model.flat.copy(), again.model.flat.copy()
    for times, there, restored in Cluster(3).run(main):
        assert times == 1
        assert np.allclose(there, restored, rtol=0, atol=1e-6)
