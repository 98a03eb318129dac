"""The learning rate over a run."""

from itertools import pairwise

import pytest

from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.optim.schedule import Schedule
from dsgd_mpi.train import command
from dsgd_mpi.training.build import assemble, prepare


@pytest.mark.parametrize("kind", ["constant", "step", "cosine", "linear"])
def test_the_rate_rises_to_its_peak_and_never_exceeds_it(kind):
    rate = Schedule(0.4, kind, steps=100, warmup=10, start=0.1)
    rates = [rate(step) for step in range(100)]
    assert rates[:11] == pytest.approx([0.1, 0.13, 0.16, 0.19, 0.22, 0.25, 0.28, 0.31, 0.34, 0.37, 0.4], rel=1e-15)
    assert rates[10] == max(rates) == 0.4
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))


@pytest.mark.parametrize("options", [
    ("--algorithm", "allreduce"), ("--algorithm", "gossip"), ("--algorithm", "parameter_server"),
    ("--algorithm", "parameter_server", "--set", "servers=1"), ("--algorithm", "backup"),
    ("--algorithm", "easgd", "--steps-total", "100")])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_ramp_starts_where_all_ranks_move_the_model_as_one_alone(tmp_path, options, size):
    """From the peak divided by the ranks that train, to the peak in a hundredth of an epoch: ten steps of one rank."""
    config = command.main([*options, "--batch", "12", "--lr", "0.3", "--schedule", "constant", "--warmup", "0.01",
                           "--kernels", "reference"], standalone_mode=False)

    def main(host):
        run = assemble(prepare(config, size), host, tmp_path)
        return run.workers, run.schedule.warmup, [run.schedule(step) for step in range(run.schedule.warmup + 2)]
    for workers, warmup, rates in Cluster(size).run(main):
        assert workers == (size - 1 if size > 1 and options[-1] in ("servers=1", "backup") else size)
        assert warmup == round(0.01 * (1000 if options[-1] == "100" else 1000 // workers))
        start = 0.3 / workers
        assert rates[0] == start
        assert rates[:warmup] == pytest.approx([start + step * (0.3 - start) / warmup for step in range(warmup)])
        assert rates[warmup:] == [0.3, 0.3]


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
