"""The learning rate over a run."""

from itertools import pairwise

import pytest

from dsgd_mpi.optim.schedule import Schedule


@pytest.mark.parametrize("kind", ["constant", "step", "cosine", "linear"])
def test_the_rate_rises_to_its_peak_and_never_exceeds_it(kind):
    rate = Schedule(0.4, kind, steps=100, warmup=10)
    rates = [rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.04 * (step + 1) for step in range(10)])
    assert max(rates) == pytest.approx(0.4)
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))


def test_the_rate_falls_as_told():
    assert [Schedule(1.0, "step", 100)(step) for step in (0, 49, 50, 74, 75, 99)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    cosine = Schedule(1.0, "cosine", 100)
    assert (cosine(0), cosine(50)) == (1, pytest.approx(0.5))
    assert cosine(99) < 0.001


def test_a_line_ends_at_zero_and_milestones_are_where_they_are_put():
    line = Schedule(1.0, "linear", steps=110, warmup=10)
    assert [line(step) for step in (10, 60, 109)] == [1, 0.5, 0.01]
    cut = Schedule(1.0, "step", steps=100, milestones=(10, 20.5, 30))
    assert [cut(step) for step in (9, 10, 20, 21, 29, 30)] == [1, 0.1, 0.1, 0.01, 0.01, 1e-3]
    assert Schedule(1.0, "step", steps=100, milestones=())(99) == 1
