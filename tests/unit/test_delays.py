"""Slow ranks: what is asked for by words, and what is drawn, the same for a run as for a simulated cluster."""

import json

import numpy as np
import pytest

from dsgd_mpi.config import Config
from dsgd_mpi.net.delays import DISTRIBUTIONS, Delay, drawn
from dsgd_mpi.net.simulated.gradients import Gradients
from dsgd_mpi.net.simulated.machine import Gradient, Machine, Slow, star
from dsgd_mpi.study.simulate import Simulation, run


@pytest.mark.parametrize(("text", "expected"), [
    ("3:0.5", [Delay(range(3, 4), "constant", 0.5)]), ("3:constant:0.5", [Delay(range(3, 4), "constant", 0.5)]),
    ("0:uniform:0.1:0.3", [Delay(range(1), "uniform", pytest.approx(0.1), 0.1)]),
    ("2-5:exponential:0.1, 7:pareto:2", [Delay(range(2, 6), "exponential", 0.1), Delay(range(7, 8), "pareto", 2.0)])])
def test_slow_ranks_are_asked_for_by_words(text, expected):
    assert Config(slow_rank=text).slowed() == expected


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_what_is_drawn_has_the_mean_that_was_given_at_every_rank_and_step(distribution):
    delay = Delay(range(2, 4), distribution, mean=0.1, least=0.05)
    seconds = np.array([[delay.seconds(rank, step, seed=1) for rank in range(5)] for step in range(4000)])
    assert np.array_equal(seconds[7:9, 2], [delay.seconds(2, step, seed=1) for step in (7, 8)])     # by its arguments
    assert not seconds[:, [0, 1, 4]].any()
    assert seconds[:, 2:4].min() >= 0.05
    medians = {"constant": 0.1, "uniform": 0.1, "exponential": 0.1 * np.log(2), "pareto": 0.1 * (2**0.5 - 1)}
    assert np.median(seconds[:, 2:4]) == pytest.approx(0.05 + medians[distribution], rel=0.04)
    assert distribution == "pareto" or seconds[:, 2:4].mean() == pytest.approx(0.15, rel=0.03)
    assert distribution == "constant" or len(set(seconds[:, 2])) > 3000
    assert distribution == "constant" or delay.seconds(2, 0, 2) != seconds[0, 2] != seconds[0, 3]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_cluster_s_slow_ranks_draw_by_the_same_distributions(distribution):
    machine = Machine(gradient=Gradient(1.0), slow=(Slow(ranks=(1,), seconds=0.5, distribution=distribution),))
    times = Gradients(machine, 2)
    found = sorted(times.seconds(1, step, 0.0) - 1 for step in range(2000))
    expected = sorted(drawn(distribution, 0.5, np.random.default_rng(1), (2000,)))
    assert np.quantile(found, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(expected, [0.1, 0.5, 0.9]), rel=0.15)
    assert all(times.seconds(0, step, 0.0) == 1 for step in range(5))


def test_a_run_takes_as_long_as_its_slowest_ranks_draw(tmp_path):
    """Steps that end with a mean over all ranks are as long as the longest of their gradients."""
    config = Config("local_sgd", ("period=1",), slow_rank="1:uniform:0.1:0.3,2-3:exponential:0.2", steps=20, batch=4,
                    seed=5, quiet=True, out=str(tmp_path / "run"))
    run(config, Simulation(star(gradient_s=1.0, latency_s=0.0), 4, "none", "resnet8"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    slow = [max(sum(delay.seconds(rank, step, 5) for delay in config.slowed()) for rank in range(4))
            for step in range(20)]
    assert summary["wall_s"] == pytest.approx(20 + sum(slow), rel=0.001)
