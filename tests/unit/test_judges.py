"""The benchmarks that judge the methods by what is not ours are themselves right."""

import numpy as np
import pytest

from benchmarks import table
from benchmarks.learning import logistic, torchft
from benchmarks.learning.logistic import Logistic


@pytest.fixture
def task():
    draw = np.random.default_rng(1)
    return Logistic(draw.normal(size=(60, 5)).astype("float32"), draw.integers(0, 4, 60), 0.1)


def test_the_gradient_is_that_of_the_loss(task):
    draw = np.random.default_rng(2)
    x, d, batch = draw.normal(size=20), draw.normal(size=20), np.arange(7, 30)

    def loss(step):
        return task.loss_and_gradient(x + step * d, batch)[0]
    assert task.gradient(x, batch) @ d == pytest.approx((loss(1e-5) - loss(-1e-5)) / 2e-5)


@pytest.mark.parametrize("name", ["allreduce", "backup"])
def test_a_curve_ends_near_the_optimum_whoever_has_which_images(task, name):
    minimum = task.start()
    for _ in range(300):
        minimum = minimum - 0.5 * task.loss_and_gradient(minimum)[1]
    losses = logistic.curve(task, name, 0.02, 4, 100, 5, "dirichlet:1", 0)
    assert len(losses) == len(logistic.looks(100))
    assert losses[0] - task.loss(minimum) > 5 * (losses[-1] - task.loss(minimum)) > 0


def test_every_image_is_some_worker_s_and_comes_once_a_pass(task):
    own = logistic.shares(task, 3, "dirichlet:0.5", 0)
    assert sorted(np.concatenate(own)) == list(range(60))
    drawn = logistic.batches(own[0], 5, 0, 0)
    assert sorted(np.concatenate([next(drawn) for _ in range(4)])) == sorted(own[0])


def test_the_table_has_each_method_at_its_best_rate_the_nearest_first(monkeypatch):
    curves = {"gossip": {"0.1": [1.0, 0.4], "0.2": [1.0, 0.3]}, "allreduce": {"0.1": [1.0, 0.1], "0.2": [1.0, 0.2]}}
    result = {"ranks": 4, "partition": "iid", "batch": 5, "steps": 2, "rates": "0.1,0.2", "curves": curves}
    monkeypatch.setattr(table, "files", lambda kind: [result])
    task = "4 ranks, iid, 5 images a rank, 2 steps"
    assert [line.strip(" *-") for line in table.logistic().splitlines()][-10:] == [
        task, "allreduce", "0.1 of 0.1, 0.2", "1.00e-01", "1.0", task, "gossip", "0.2 of 0.1, 0.2", "3.00e-01", "3.0"]
    monkeypatch.setattr(table, "files", lambda kind: [])
    assert table.logistic() == ""           # and its title is left out


@pytest.mark.parametrize("name", torchft.CASES)
def test_all_losses_are_those_of_torchft(name):
    """Which runs elsewhere, on PyTorch: benchmarks.learning.torchft has saved them."""
    assert np.allclose(torchft.ours(torchft.CASES[name]), torchft.recorded()[name], rtol=0, atol=1e-9)


def test_torchft_has_a_fragment_arrive_at_its_turn_and_ours_sends_it_then():
    """All that differs, and only with a delay."""
    name = "diloco, 2 fragments, delayed"
    theirs, later = np.array(torchft.recorded()[name]), np.array(torchft.ours(torchft.CASES[name], ahead=0))
    turn = torchft.CASES[name].options["period"] // 2       # of the first fragment
    assert np.allclose(later[:, :turn], theirs[:, :turn], rtol=0, atol=1e-9)
    assert (np.abs(later - theirs)[:, turn] > 0.1).all()
