"""What an evaluation finds beside the answer's accuracy: those of the ranks' own models."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from dsgd_mpi.algorithms.allreduce import Allreduce
from dsgd_mpi.algorithms.backup import Backup
from dsgd_mpi.algorithms.gossip import Gossip
from dsgd_mpi.data import open_dataset
from dsgd_mpi.data.formats import Split
from dsgd_mpi.data.loader import evaluation_batches
from dsgd_mpi.kernels.api import Known
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.training.display import Display
from dsgd_mpi.training.evaluate import evaluate
from dsgd_mpi.training.record import Record
from tests.support.runs import training

KEYS = "own_accuracy_min", "own_accuracy_mean", "own_accuracy_max"


def few_images():
    """Every 50th of the built-in ones."""
    test = open_dataset("fashion-mnist-12k").test
    images = np.empty((40, *test.image), np.uint8)
    test.read(np.arange(0, 2000, 50), images)
    return Split(images, test.labels[::50], test.mean, test.std)


def evaluated(folder, algorithm, size, eval_own):
    """What each rank finds where every rank has another model, and its own accuracy on the images at even places."""
    test = few_images()

    def main(host):
        run = replace(training(host, folder, algorithm(), 1), test=test, eval_own=eval_own)
        record = Record(host, run.algorithm, folder, Display(False), 1000, 2, 1, 5)
        model = run.model
        model.state["fc.bias"][:] = 0.5 * np.random.default_rng(host.rank).standard_normal(10)
        model.state["layer3.0.bn2.running_mean"][:] = host.rank         # statistics of its own
        run.algorithm.start(host, model.flat, run.optimizer)
        before = model.flat.copy()
        found, _ = evaluate(run, 0, record)
        assert np.array_equal(model.flat, before)
        record.loss(Known(1.0))
        record.evaluation(1, 0.1, **found)
        record.finish("", 1, {})
        images, labels = next(evaluation_batches(test, 100))
        return found, float((model.predict(images[::2]).argmax(1) == labels[::2]).mean())
    return Cluster(size).run(main)


@pytest.mark.parametrize(("algorithm", "servers"), [(Gossip, 0), (Backup, 1)])
def test_the_ranks_own_accuracies_are_those_of_their_models_as_they_are(tmp_path, algorithm, servers):
    found, own = zip(*evaluated(tmp_path, algorithm, 4, eval_own=20), strict=True)
    own = own[servers:]
    assert len(set(own)) > 1
    for each in found:
        assert [each[key] for key in KEYS] == pytest.approx([min(own), sum(own) / len(own), max(own)])
    with open(tmp_path / "summary.csv", newline="") as file:
        row = next(csv.DictReader(file))
    assert [float(row[key]) for key in KEYS] == pytest.approx([min(own), sum(own) / len(own), max(own)])


@pytest.mark.parametrize(("algorithm", "eval_own"), [(Allreduce, 20), (Gossip, 0)])
def test_where_models_are_alike_or_nobody_asks_there_are_no_own_accuracies(tmp_path, algorithm, eval_own):
    for found, _ in evaluated(tmp_path, algorithm, 2, eval_own):
        assert [found[key] for key in KEYS] == [None] * 3
    with open(tmp_path / "summary.csv", newline="") as file:
        row = next(csv.DictReader(file))
    assert [row[key] for key in KEYS] == [""] * 3
    assert float(row["accuracy"]) >= 0
