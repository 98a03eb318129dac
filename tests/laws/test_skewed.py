"""Data that differ from rank to rank: who reaches the minimum of all at a constant rate, and who stops before it.

Every rank has a quadratic of its own, without noise, on a simulated cluster.
"""

import numpy as np
import pytest

from dsgd_mpi.algorithms.dpsgd import Decentralised
from dsgd_mpi.algorithms.gradient_tracking import GradientTracking
from dsgd_mpi.algorithms.qgm import QuasiGlobalMomentum
from dsgd_mpi.algorithms.relay import Relay
from dsgd_mpi.net.simulated.cluster import Cluster
from tests.support.quadratic import Skewed, sgd_for, train


def distance(size, algorithm, lr=0.1, momentum=0.9, steps=1000):
    """Of the worst rank's model from the minimum of all, in its worst element."""
    models = Cluster(size).run(lambda host: train(host, algorithm(), Skewed(host.rank), steps, lr, momentum)[0])
    return np.abs(models - Skewed.minimum(size)).max()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("graph", ["ring", "random"])
@pytest.mark.parametrize("variant", ["tracking", "d2"])
@pytest.mark.parametrize("size", [2, 4, 5])
def test_gradient_tracking_reaches_the_minimum_at_a_constant_rate(size, variant, graph, momentum):
    """On a ring of 4, W has the eigenvalue -1/3, which D2 as such does not bear."""
    assert distance(size, lambda: GradientTracking(variant, graph), momentum=momentum) < 1e-8


@pytest.mark.parametrize(("tree", "momentum"), [("tree", 0.9), ("line", 0.9), ("star", 0.0)])
def test_a_relay_along_a_tree_reaches_the_minimum_at_a_constant_rate(tree, momentum):
    assert distance(5, lambda: Relay(tree), momentum=momentum, steps=400) < 1e-7
    assert distance(5, lambda: Decentralised("line"), momentum=momentum, steps=100) > 0.5


@pytest.mark.soak
def test_without_tracking_ranks_stop_at_a_distance_that_is_proportional_to_the_rate():
    """In linear order: the spread of the models is eta times that of the gradients, over the gap of W."""
    near, far = (distance(5, Decentralised, lr, momentum=0.0, steps=4000) for lr in (0.005, 0.01))
    assert 0.01 < near < far
    assert far / near == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("graph", ["ring", "random"])
def test_a_momentum_of_the_mixed_models_leads_less_astray_than_one_s_own(graph):
    assert (distance(5, lambda: QuasiGlobalMomentum(graph=graph)) < 0.4 * distance(5, lambda: Decentralised(graph)))


@pytest.mark.parametrize("nesterov", [True, False])
def test_quasi_global_momentum_on_the_complete_graph_is_that_of_one_rank_with_all_data(nesterov):
    """By the paper's formulas: beta = mu = 0.9; all ranks have the same model."""
    size, beta, lr = 4, 0.9, 0.05

    def main(host):
        algorithm, task = QuasiGlobalMomentum(graph="complete"), Skewed(host.rank)
        x = task.start()
        sgd = sgd_for(x, beta)
        sgd.nesterov = nesterov
        algorithm.start(host, x, sgd)
        for _ in range(30):
            algorithm.step(x, task.gradient, lr)
        return x
    tasks = [Skewed(rank) for rank in range(size)]
    x = m = np.zeros(20)
    for _ in range(30):
        g = np.mean([task.gradient(x) for task in tasks], 0)
        d = g + beta * (beta * m + g) if nesterov else beta * m + g
        m = beta * m + (1 - beta) * d
        x = x - lr * d
    assert np.allclose(Cluster(size).run(main), x, rtol=0, atol=1e-12)
