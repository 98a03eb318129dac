"""Gradients as matrices of low rank: what is sent, what is left for later, and what comes of it."""

import numpy as np
import pytest

from dsgd_mpi.algorithms.allreduce import Allreduce
from dsgd_mpi.algorithms.powersgd import PowerSGD
from dsgd_mpi.arrays.flat import Layout, beside, to_numpy
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.optim.sgd import Sgd
from tests.support.quadratic import in_one_piece, on

LAYOUT = Layout({"conv": (12, 5, 2), "bias": (12,), "thin": (2, 2), "fc": (9, 11)}, {"mean": (4,)})


def descend(host, algorithm, gradient, steps, momentum=0.9, lr=0.1):
    """`gradient(x, step)` on NumPy's arrays. Returns x."""
    x = on(host, np.zeros(LAYOUT.size))
    algorithm.start(host, x, Sgd(momentum, weight_decay=0.0).start(LAYOUT, x))
    for step in range(steps):
        algorithm.step(x, in_one_piece(host, lambda x, step=step: beside(x, gradient(to_numpy(x), step))), lr)
    return x


def of_rank(rank, seed, worker):
    """A gradient whose matrices have this rank, their columns the same for all workers."""
    fixed, draw = np.random.default_rng(seed), np.random.default_rng((seed, worker))
    g = draw.normal(size=LAYOUT.size)
    for name, (n, m) in {"conv": (12, 10), "fc": (9, 11)}.items():
        g[LAYOUT.slices[name]] = (fixed.normal(size=(n, rank)) @ draw.normal(size=(rank, m))).ravel()
    return g


@pytest.mark.parametrize("rank", [1, 2])
def test_gradients_of_that_rank_are_averaged_as_by_allreduce(rank, world):
    def main(host):
        return [descend(host, algorithm, lambda x, step: of_rank(rank, step, host.rank), 6)
                for algorithm in (PowerSGD(rank=rank), Allreduce())]
    for low, whole in world.run(main):
        assert np.allclose(low, whole, rtol=0, atol=1e-9)


def test_sent_or_left_for_later(world):
    """Without momentum x has moved by all gradients but what is left on average; the rest is sent whole."""
    def main(host):
        algorithm, draw = PowerSGD(rank=2), np.random.default_rng((9, host.rank))
        gradients = draw.normal(size=(7, LAYOUT.size))
        x = descend(host, algorithm, lambda x, step: gradients[step], 7, momentum=0.0)
        return x, gradients.sum(0), to_numpy(algorithm.error), host.traffic.bytes_sent
    models, gradients, errors, sent = zip(*world.run(main), strict=True)
    assert all(np.array_equal(x, models[0]) for x in models)
    trained = slice(0, LAYOUT.parameters)
    expected = -0.1 * (np.mean(gradients, 0) - np.mean(errors, 0))
    assert np.allclose(models[0][trained], expected[trained], rtol=0, atol=1e-12)
    for name in ("bias", "thin", "mean"):
        assert not np.any([error[LAYOUT.slices[name]] for error in errors])
    assert np.abs(errors[0][LAYOUT.slices["conv"]]).min() > 0
    if world.simulated:                     # 2 (12 + 10) + 12 + 4 + 2 (9 + 11) + 4 numbers instead of 239
        assert sent[0] == pytest.approx(7 * 8 * 104 * 2 * (world.size - 1) / world.size, abs=2 * 7 * 8)


def test_the_minimum_is_reached_whatever_the_rank():
    target = np.random.default_rng(4).normal(size=LAYOUT.parameters)

    def gradient(x, step):
        g = np.zeros(LAYOUT.size)
        g[: LAYOUT.parameters] = x[: LAYOUT.parameters] - target
        return g
    x, *_ = Cluster(3).run(lambda host: descend(host, PowerSGD(rank=1), gradient, 400, momentum=0.5, lr=0.05))
    assert np.allclose(x[: LAYOUT.parameters], target, rtol=0, atol=1e-3)
