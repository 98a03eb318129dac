"""What BlueFog's tests ask of neighbour averages, one-peer graphs, push-sum and windows, in our words.

Bluefog-Lib/bluefog (Ying et al. 2021, arXiv:2111.04287): test/torch_ops_test.py, torch_win_ops_test.py,
torch_optimizer_test.py, bluefog/common/topology_util.py. Elsewhere in this folder are what it asks of broadcasts, means
and their fusion, of additions to windows and of their versions (`test_nets`: staleness), of averages over machines
(`test_laws`: two levels) and of training with a graph that changes (`test_laws`, `test_recorded`).

What does not apply: averages over directed static graphs, since W is symmetric here (its exponential graph is
directed, and so is that of `sgp`, which push-sum makes right); weights that sender and receiver choose apart;
neighbour_allgather, which no method here asks for; one-peer graphs within and between machines in turn, for which there
is `hierarchical`; a check that both ends agree on who sends, since both compute it from (step, size, seed); windows
with names, freed at any time, or put to some ranks only; half-precision tensors of any shape, since a model is one
vector; PyTorch's hooks.
"""

from functools import reduce

import numpy as np
import pytest

from dsgd_mpi import algorithms
from dsgd_mpi.arrays.flat import Layout
from dsgd_mpi.net.mixing import Mixing
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.net.simulated.machine import star
from dsgd_mpi.net.topology import NAMES, exponential_peer, exponential_sender, mixing_weights
from dsgd_mpi.optim.sgd import Sgd
from tests.support.quadratic import on


def expected(graph, size, rank):
    """Of ranks' own numbers: by hand, as there."""
    if graph == "complete" or (graph, rank) == ("star", 0):
        return (size - 1) / 2
    if graph == "star":
        return rank * (1 - 1 / size)
    if graph == "ring":
        return np.mean(list({rank, (rank - 1) % size, (rank + 1) % size}))
    return np.mean([rank, rank ^ 1 if rank ^ 1 < size else rank])       # one-peer, at first


@pytest.mark.parametrize("graph", ["complete", "star", "ring", "one-peer"])
def test_neighbours_of_a_rank_are_averaged_with_it(world, graph):
    def main(host):
        x = on(host, np.full(23, float(host.rank)))
        return Mixing(host, x, mixing_weights(graph, host.size, 0, 0, host.rank)).wait()
    for rank, x in enumerate(world.run(main)):
        assert np.allclose(x, expected(graph, world.size, rank), rtol=0, atol=1e-12)


def test_averages_on_every_graph_keep_the_mean_and_equal_numbers(world):
    """Step after step; and 2**-256, which halves do not round, as it is."""
    def main(host):
        x = on(host, np.array([host.rank, 3.0, 2.0**-256]))
        for graph in (*NAMES, "base-2", "base-3"):
            for step in range(3):
                Mixing(host, x, mixing_weights(graph, host.size, step, 1, host.rank)).wait()
        tiny = on(host, np.full(5, (1 + host.rank) * 2.0**-256))
        Mixing(host, tiny, mixing_weights("one-peer", host.size, 0, 0, host.rank)).wait()
        return x, tiny[0] * 2.0**256
    x, tiny = zip(*world.run(main), strict=True)
    assert np.allclose(np.mean(x, 0), [(world.size - 1) / 2, 3, 2.0**-256], rtol=1e-12, atol=0)
    assert np.allclose(np.array(x)[:, 1:], [3, 2.0**-256], rtol=1e-12, atol=0)
    assert list(tiny) == [1 + expected("one-peer", world.size, rank) for rank in range(world.size)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 8, 13, 16, 32])
def test_on_the_directed_one_peer_graph_both_ends_know_of_each_other_and_all_hear_from_all(size):
    """In turn each rank sends to all its neighbours on the exponential graph, and to nobody else."""
    rounds = (size - 1).bit_length()
    for step in range(2 * rounds):
        assert all(exponential_sender(step, exponential_peer(step, rank, size), size) == rank for rank in range(size))
    for rank in range(size):
        assert [exponential_peer(step, rank, size) for step in range(rounds)] == [
            (rank + 2**step) % size for step in range(rounds)]
    halves = [(np.eye(size) + np.eye(size)[[exponential_sender(step, rank, size) for rank in range(size)]]) / 2
              for step in range(rounds)]
    heard = reduce(np.matmul, halves, np.eye(size))
    assert (heard > 0).all()
    assert size & size - 1 or np.array_equal(heard, np.full((size, size), 1 / size))    # powers of 2: the exact mean


@pytest.mark.parametrize(("name", "options"), [("sgp", {"overlap": 0}), ("sgp", {"overlap": 2}), ("gosgd", {}),
                                               ("gosgd", {"probability": 0.5})], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_weight_goes_wherever_its_model_goes(name, options, seed):
    """Where all models are 1, they stay so to the bit, whatever is delayed or under way; and no weight is lost."""
    def main(host):
        algorithm, x = algorithms.find(name)(**options), np.ones(3)
        algorithm.start(host, x, Sgd(0.0, weight_decay=0.0).start(Layout({"x": (3,)}), x))
        for _ in range(20):
            algorithm.step(x, lambda x, hear=None, least=0: host.compute(np.zeros_like, x), 0.1)
            assert (x == 1).all()
            assert algorithm.w > 0
        algorithm.rest(x)
        return x, algorithm.w

    def gradient_s(rank, step):
        return np.random.default_rng((seed, rank, step)).exponential(0.1)
    models, weights = zip(*Cluster(5, star(latency_s=0.05, gradient_s=gradient_s)).run(main), strict=True)
    assert (np.array(models) == 1).all()
    assert sum(weights) == pytest.approx(5, abs=1e-12)


def test_a_window_holds_a_copy_and_gives_copies(world):
    def main(host):
        x = on(host, np.full(5, float(host.rank)))
        window = host.share(x)
        x += 100
        host.settle()
        for _ in range(2):                  # reading changes nothing
            window.read((host.rank + 1) % host.size)[:] = -1
        host.settle()
        return window.read(host.rank)
    assert [list(own) for own in world.run(main)] == [[rank] * 5 for rank in range(world.size)]


def test_what_was_collected_is_not_collected_again(world):
    def main(host):
        found = []
        for turn in range(2):
            host.post(on(host, np.full(3, float(turn))), (host.rank + 1) % host.size)
            host.settle()
            found += [[float(letter.array[0]) for letter in host.collect()] for _ in range(2)]
            host.settle()                   # nobody posts again before all have collected
        return found
    assert world.run(main) == [[[0.0], [], [1.0], []]] * world.size


def test_a_lock_made_of_a_counter_lets_one_in_at_a_time(world):
    """So that what is read may be changed and written back, which additions alone do not allow."""
    def main(host):
        window, lock = host.share(on(host, np.ones(1))), host.counters(1)
        for _ in range(5):
            while lock.add(0) != 0:
                lock.add(0, -1)
                host.idle()
            window.add(0, window.read(0))   # doubled
            lock.add(0, -1)
            host.compute(lambda: None)
        host.settle()
        return float(window.read(0)[0])
    assert world.run(main) == [2.0 ** (5 * world.size)] * world.size
