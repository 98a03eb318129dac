"""The training loop: where gradients are taken, and what that leaves alone."""

import numpy as np

from dsgd_mpi.algorithms import Algorithm
from dsgd_mpi.net.simulated.host import Cluster
from dsgd_mpi.training import loop
from dsgd_mpi.training.display import Display
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
