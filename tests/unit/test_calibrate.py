"""What is measured is what is there: fits of points whose answer is known, and of a simulated cluster."""

from functools import partial

import numpy as np
import pytest

from dsgd_mpi.config import Config
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.net.simulated.machine import Gradient, Link, Machine, read
from dsgd_mpi.nn import Model
from dsgd_mpi.study import calibrate
from dsgd_mpi.study.fits import gradient_of, least_squares, line, with_mean
from dsgd_mpi.study.timings import Groups, Points, sizes
from dsgd_mpi.training.build import prepare

OWN = 300_000


def near(x, tolerance=0.01):
    return pytest.approx(x, rel=tolerance, abs=1e-12)


def test_a_line_is_found_again_and_what_would_be_negative_is_left_out():
    bytes_ = [float(each) for each in sizes(OWN)]
    assert line(Points(bytes_, [3e-6 + each / 2e9 for each in bytes_]), OWN) == near((3e-6, 0.5e-9))
    latency, byte = line(Points(bytes_, [max(1e-6, each / 2e9 - 1e-6) for each in bytes_]), OWN)
    assert latency >= 0
    assert byte > 0
    assert least_squares([[1, 1, 1], [1, 2, 3]], [5, 4, 3]) == near([np.average([5, 4, 3], weights=[1 / 25, 1 / 16,
                                                                                                 1 / 9]), 0])


def test_the_model_counts_most_where_no_line_fits():
    bytes_ = [float(each) for each in sizes(OWN)]
    seconds = [3e-6 + each / (4e9 if each < OWN * 1.5 else 1e9) for each in bytes_]
    latency, byte = line(Points(bytes_, seconds), OWN)
    assert latency + byte * OWN == near(3e-6 + OWN / 4e9, 0.4)


def test_the_costs_of_a_mean_are_told_from_its_times():
    way = "ring"
    there = Machine(node=Link(2e9, 3e-6), ranks_per_node=8, collective=way, mean_s=2e-5, mean_factor=1.5)
    bytes_ = [float(each) for each in sizes(OWN)]
    cluster = Cluster(8, there)
    seconds = [cluster.wires.costs(each, range(8))[way].seconds for each in bytes_]
    found, curve = with_mean(Machine(node=there.node, ranks_per_node=8), Points(bytes_, seconds), 8, OWN)
    assert found.collective == way
    assert (found.mean_s, found.mean_factor) == near((2e-5, 1.5))
    assert curve == near(seconds)


def test_ranks_that_differ_are_named_and_the_histogram_is_that_of_the_others():
    random = np.random.default_rng(0)
    steps = [(0.01 * factor * random.lognormal(0, 0.1, 2000)).tolist() for factor in (1, 1, 1, 2)]
    gradient, slow = gradient_of(steps, "resnet8", 16, (28, 28, 1))
    assert [each.ranks for each in slow] == [(3,)]
    assert slow[0].factor == near(2, 0.03)
    assert 32 <= len(gradient.histogram) <= 64
    assert np.std(np.log(gradient.histogram)) == near(0.1, 0.1)
    assert gradient.seconds == near(0.01 * np.exp(0.005), 0.02)


@pytest.mark.parametrize(("size", "there"), [
    (4, Machine(ranks_per_node=2, node=Link(4e9, 1e-6), card=Link(1e9, 2e-5), gradient=Gradient(0.01),
                collective="ring", mean_s=1e-5, mean_factor=1.25)),
    (2, Machine(ranks_per_node=2, node=Link(4e9, 1e-6), gradient=Gradient(0.01, jitter=0.1), collective="ring",
                one_sided_s=3e-6, read_factor=2.0, add_factor=3.0, own_factor=1.5)),
    (2, Machine(card=Link(1e8, 5e-5), gradient=Gradient(0.01), collective="ring", enters_mpi_s=4e-3)),
], ids=["two nodes of two", "one node", "two nodes"])
def test_a_simulated_cluster_is_found_again(size, there):
    parts = prepare(Config(batch=2, quiet=True, kernels="onednn"), size)
    parts.network = Model(parts.graph, 2, parts.kernels)

    def measure(host):
        return calibrate.measured(parts, host, calibrate.places(host), 0.5)
    found, fits = Cluster(size, there).run(measure)[0]
    assert found.ranks_per_node == there.ranks_per_node
    for key in ("mean_s", "mean_factor", "one_sided_s", "read_factor", "add_factor", "own_factor"):
        assert getattr(found, key) == pytest.approx(getattr(there, key), rel=0.05, abs=2e-6), key
    for key in (["node"] if there.ranks_per_node > 1 else []) + (["card"] if size > there.ranks_per_node else []):
        assert vars(getattr(found, key)) == {name: near(value, 0.05) for name, value in
                                             vars(getattr(there, key)).items()}, key
    assert found.enters_mpi_s == pytest.approx(there.enters_mpi_s, rel=0.5)
    assert np.mean(found.gradient.histogram) == near(0.01, 0.05)
    assert max(fit.error for fit in fits) < 0.05


def test_nodes_with_unequal_ranks_are_refused_in_one_line():
    class Host:
        rank, size = 0, 3

        def place(self):
            return {}

        def allgather(self, item):
            return [{"host": name} for name in ("a", "a", "b")]
    with pytest.raises(UsageError, match="2 on a, 1 on b; start them so: mpirun -ppn 1"):
        calibrate.places(Host())


@pytest.mark.parametrize("out", ["my.txt", "none/my.toml"])
def test_what_cannot_be_written_is_said_before_anything_is_measured(out, tmp_path):
    with pytest.raises(UsageError, match=r"--out"):
        calibrate.check_out(tmp_path / out)


def test_what_is_written_is_read_as_it_was(tmp_path):
    there = Machine(name="x", node=Link(2e9, 3e-6), gradient=gradient_of([[0.01, 0.02]], "resnet8", 16, (28, 28, 1))[0])
    calibrate.write(tmp_path / "my.toml", there, partial(calibrate.draw, there, []))
    assert read(tmp_path / "my.toml") == there
    assert (tmp_path / "my.png").stat().st_size > 1000
    assert Groups(3, 8, 4).within() == 2
    assert Groups(3, 8, 4).between() == 7
    assert Groups(2, 3, 3).within() is None
