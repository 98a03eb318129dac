"""Where each method stops that takes equal steps of data which differ from rank to rank: at the minimum, or before it.

Every rank has a quadratic of its own, without noise or momentum, on a simulated cluster. What a method leaves of the
gradients' differences zeta is a distance of eta zeta / gap, the gap being that of its mixing: squared, it goes with the
square of the rate (D-PSGD: Lian et al. 2017, theorem 1; Yuan, Ling, Yin 2016, arXiv:1310.7063). Methods that step by
the mean gradient at one model, or correct for the differences, go on to the minimum.
"""

import numpy as np
import pytest

from dsgd_mpi import algorithms
from dsgd_mpi.arrays.flat import Layout
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.net.topology import mixing_weights
from dsgd_mpi.optim.sgd import Sgd
from tests.support.quadratic import Skewed, in_one_piece

RANKS = 4
EXACT = [
    ("allreduce", {}), ("backup", {"backups": 0}), ("dgc", {"share": 1.0}), ("topk", {"share": 1.0}),
    ("powersgd", {"rank": 1}),              # what it leaves out of the mean gradient is linear in the ranks' own
    ("gradient_tracking", {}), ("gradient_tracking", {"variant": "d2"}),
    ("parameter_server", {}),               # in step: all read the same model
    ("hierarchical", {"between": "allreduce"}),
    ("local_sgd", {"period": 1}), ("diloco", {"period": 1, "outer_lr": 1.0, "outer_momentum": 0.0}),
    ("sparta", {"share": 1.0}), ("wagma", {"period": 1}), ("qgm", {"graph": "complete"})]
INEXACT = [
    ("dpsgd", {}), ("qgm", {}), ("choco", {"share": 0.5, "gamma": 0.8}), ("sgp", {}), ("gossip", {}), ("adpsgd", {}),
    ("hierarchical", {}), ("wagma", {"period": 3}), ("sparta", {"share": 0.3}),
    ("local_sgd", {"period": 4}), ("diloco", {"period": 4, "outer_momentum": 0.5}),
    ("noloco", {"period": 1, "pull": 1.0, "outer_lr": 1.0, "outer_momentum": 0.0}),
    ("async_local", {"period": 2, "outer_momentum": 0.5}), ("easgd", {"period": 1, "beta": 1.5}),
    ("topk", {"share": 0.3}), ("dgc", {"share": 0.3}), ("ef_signsgd", {})]      # by memories of what was not sent
NOISY = [("gossip", {"mode": "push"}), ("gossip", {"partner": "independent"}), ("gosgd", {})]


class Task(Skewed):
    def gradient(self, x):
        return self.h * (x - self.b)


class Apart(Task):
    """One curvature everywhere; the minima differ by `b`, (ranks, size), so that the mean model's is 0."""

    h = 0.3

    def __init__(self, b, rank):
        self.b = b[rank]


def train(name, options, tasks, x0, lr, steps):
    """All ranks' models at each of the later half of the steps, (ranks, steps / 2, size), and the answer."""
    def main(host):
        algorithm, x, seen = algorithms.find(name)(**options), x0.copy(), []
        gradient = in_one_piece(host, tasks[host.rank].gradient)
        algorithm.start(host, x, Sgd(0.0, weight_decay=0.0).start(Layout({"x": (5, x.size // 5)}), x))
        for _ in range(steps):
            algorithm.step(x, gradient, lr)
            seen.append(x.copy())
        algorithm.rest(x)
        return seen[steps // 2 :], algorithm.answer(x)
    models, answers = zip(*Cluster(len(tasks)).run(main), strict=True)
    return np.array(models), answers[0]


@pytest.mark.parametrize(("name", "options"), EXACT, ids=str)
def test_an_exact_method_reaches_the_minimum_at_a_constant_rate(name, options):
    algorithm, tasks = algorithms.find(name)(**options), [Task(rank) for rank in range(RANKS)]
    workers = tasks[algorithm.servers :]
    minimum = sum(task.h * task.b for task in workers) / sum(task.h for task in workers)
    lr = 0.4 / (len(workers) if algorithm.updates_add_up else 1)
    _, answer = train(name, options, tasks, 0 * minimum, lr, 130)
    assert np.abs(answer - minimum).max() < 1e-8


def slope(name, options):
    """Of the log of the squared distance in that of the rate, from the minimum, over ranks and later steps."""
    minimum, rates = Skewed.minimum(RANKS), np.array([0.02, 0.04, 0.08])
    tasks = [Task(rank) for rank in range(RANKS)]
    squares = [np.mean((train(name, options, tasks, minimum, lr, 100)[0] - minimum) ** 2) for lr in rates]
    return float(np.polyfit(np.log(rates), np.log(squares), 1)[0])


@pytest.mark.parametrize(("name", "options"), INEXACT, ids=str)
def test_the_squared_distance_of_an_inexact_method_goes_with_the_square_of_the_rate(name, options):
    """After 2 / eta steps or more, in which ranks that did not mix would go nearly as far at any rate."""
    assert slope(name, options) == pytest.approx(2, abs=0.35)


@pytest.mark.parametrize(("name", "options"), NOISY, ids=str)
def test_ranks_that_count_unequally_at_a_step_add_noise_which_goes_with_the_rate(name, options):
    """By chance, and equally in the long run: their squared distance is a eta^2 + b eta, between the two slopes."""
    assert 1 < slope(name, options) < 2


@pytest.mark.parametrize("graph", ["ring", "exponential"])
@pytest.mark.parametrize(("name", "options"), [("dpsgd", {}), ("choco", {"gamma": 0.4, "share": 0.3}), ("qgm", {}),
                                               ("gradient_tracking", {}), ("gradient_tracking", {"variant": "d2"})],
                         ids=str)
def test_the_distance_is_the_rate_times_the_difference_over_the_gap(name, options, graph):
    """The ranks differ along the mode that the graph mixes most slowly, b = c u with W u = (1 - gap) u.

    Where x = W x - eta h (x - b), x = eta h b / (gap + eta h); `choco` mixes gamma times as much, `qgm` after the step.
    """
    size, h, lr = 6, Apart.h, 0.01
    w = np.array([[mixing_weights(graph, size, 0, 0, rank).get(peer, 0) for peer in range(size)]
                  for rank in range(size)])
    values, modes = np.linalg.eigh(w + np.diag(1 - w.sum(1)))
    gap = 1 - values[-2]
    b = np.outer(modes[:, -2], np.random.default_rng(1).normal(size=5))
    models, _ = train(name, {**options, "graph": graph}, [Apart(b, rank) for rank in range(size)], np.zeros(5), lr, 120)
    step = lr * h
    share = {"dpsgd": step / (gap + step), "choco": step / (0.4 * gap + step),
             "qgm": (1 - gap) * step / (gap + (1 - gap) * step), "gradient_tracking": 0}[name]
    assert np.allclose(models[:, -1], share * b, rtol=1e-3, atol=1e-6)
