"""The laws that every algorithm keeps, on a simulated cluster and, under mpirun, on MPI's ranks."""

import copy
import dataclasses
import math
import time
from functools import reduce
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsgd_mpi import algorithms
from dsgd_mpi.algorithms.adpsgd import AsynchronousDecentralised
from dsgd_mpi.algorithms.allreduce import Allreduce
from dsgd_mpi.algorithms.async_local import AsynchronousLocal
from dsgd_mpi.algorithms.backup import Backup
from dsgd_mpi.algorithms.choco import Choco
from dsgd_mpi.algorithms.diloco import DiLoCo
from dsgd_mpi.algorithms.dpsgd import Decentralised
from dsgd_mpi.algorithms.easgd import Elastic
from dsgd_mpi.algorithms.epidemic import Epidemic
from dsgd_mpi.algorithms.gosgd import GossipPush
from dsgd_mpi.algorithms.gossip import Gossip
from dsgd_mpi.algorithms.gradient_tracking import GradientTracking
from dsgd_mpi.algorithms.hierarchical import Hierarchical
from dsgd_mpi.algorithms.local_sgd import Local
from dsgd_mpi.algorithms.noloco import NoLoCo
from dsgd_mpi.algorithms.parameter_server import ParameterServer
from dsgd_mpi.algorithms.qgm import QuasiGlobalMomentum
from dsgd_mpi.algorithms.relay import Relay
from dsgd_mpi.algorithms.sgp import StochasticGradientPush
from dsgd_mpi.algorithms.sparta import Sparta
from dsgd_mpi.algorithms.topk import TopK
from dsgd_mpi.algorithms.wagma import WaitAvoiding
from dsgd_mpi.arrays.flat import to_numpy
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.api import Done
from dsgd_mpi.net.base_graph import base_graph, factors
from dsgd_mpi.net.compression.half import Compressed
from dsgd_mpi.net.fragments import Fragments
from dsgd_mpi.net.simulated.cluster import Cluster, Deadlock
from dsgd_mpi.net.simulated.machine import star
from dsgd_mpi.net.topology import (
    NAMES,
    Tree,
    audiences,
    behind,
    exponential_peer,
    matching,
    mixing_weights,
    neighbours,
    partition,
    random_peer,
)
from tests.laws.test_fidelity import edges_between
from tests.support.quadratic import Quadratic, go_on, on, optimizer_for, sgd_for, train

ALL = [pytest.param(name, options, id=f"{name}-{options or 'default'}")
       for name in algorithms.names() for options in algorithms.find(name).variants]
every_algorithm = pytest.mark.parametrize(("name", "options"), ALL)


def make(name, options):
    return algorithms.find(name)(**options)


def rate(algorithm):
    """Smaller where updates add up or are delayed, and for optimizers whose steps have a size of their own."""
    small = algorithm.updates_add_up or algorithm.gentle or algorithm.default_optimizer != "sgd"
    return 0.01 if small else 0.05


def pause(algorithm, world):
    """Seconds between steps of real ranks that wait for nobody, so that they take turns as where gradients take time.

    Otherwise one takes many steps in a row, each on models long gone by, and what it sends is as old.
    """
    return 0.0 if world.simulated or not algorithm.independent else 1e-3


def left_over(algorithm, world):
    """The part of the first loss that may be left: more where real ranks, on busy processors, may be out of step."""
    return 0.1 if world.simulated or not algorithm.independent else 0.3


def plain_sgd(gradients, steps, lr=0.05):
    """One rank that sees the mean of the given gradient functions."""
    x = Quadratic().start()
    sgd = sgd_for(x)
    for _ in range(steps):
        sgd.update(x, sum(gradient(x) for gradient in gradients) / len(gradients), lr)
    return x


@every_algorithm
def test_one_rank_alone_does_plain_sgd(name, options, world):
    if world.size > 1 or not make(name, options).alone_is_sgd:
        return                              # pulled to a centre, carried on, late on purpose
    x, = world.run(lambda host: train(host, make(name, options), Quadratic(), 20)[0])
    assert np.allclose(x, plain_sgd([Quadratic().gradient], 20), rtol=0, atol=1e-13)


@every_algorithm
def test_all_ranks_come_to_the_minimum_and_agree_on_the_answer(name, options, world):
    def main(host):
        algorithm, task = make(name, options), Quadratic(host.rank)
        x, _ = train(host, algorithm, task, 150, rate(algorithm), pause_s=pause(algorithm, world))
        algorithm.rest(x)
        before = x.copy()
        answer = algorithm.answer(x)
        assert np.array_equal(x, before), "the answer is a copy: training goes on from x"
        return answer.copy()
    answers = world.run(main)
    task = Quadratic()
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    assert task.loss(answers[0]) < left_over(make(name, options), world) * task.loss(task.start())


@every_algorithm
def test_replicated_algorithms_hold_the_same_model_everywhere_to_the_bit(name, options, world):
    algorithm = make(name, options)
    models = world.run(lambda host: train(host, make(name, options), Quadratic(host.rank), 30)[0])
    assert not algorithm.one_model or all(np.array_equal(x, models[0]) for x in models)
    assert algorithm.one_model or not algorithm.replicated


@every_algorithm
def test_nothing_is_in_flight_after_a_rest(name, options, world):
    def main(host):
        algorithm = make(name, options)
        x, _ = train(host, algorithm, Quadratic(host.rank), 7)
        algorithm.rest(x)
        before = x.copy()
        algorithm.rest(x)
        return np.array_equal(x, before) and not list(host.collect())
    assert all(world.run(main))


@every_algorithm
def test_what_is_kept_is_all_that_a_later_run_needs(name, options, world):
    """Stopped after a rest and taken up by a fresh object equals never stopped, to the bit where nothing is random."""
    def main(host):
        algorithm, task = make(name, options), Quadratic(host.rank)
        x, optimizer = train(host, algorithm, task, 9)
        algorithm.rest(x)
        kept = {key: copy.deepcopy(getattr(algorithm, key)) for key in algorithm.keeps}
        y, task_y = x.copy(), copy.deepcopy(task)
        state = copy.deepcopy(optimizer.state)
        for _ in range(9):
            go_on(host, algorithm, task, x)
        algorithm.rest(x)
        fresh = make(name, options)
        its_optimizer = optimizer_for(fresh, y)
        for key, array in its_optimizer.state.items():
            array[:] = state[key]
        for key, value in kept.items():
            setattr(fresh, key, value)
        fresh.start(host, y, its_optimizer)
        for _ in range(9):
            go_on(host, fresh, task_y, y)
        fresh.rest(y)
        return np.abs(x - y).max()
    uneven = star(gradient_s=lambda rank, step: 0.1 + rank / 73)      # who comes first: no matter of microseconds
    if world.simulated or make(name, options).ordered:
        assert max(world.run(main, uneven)) == 0


def test_allreduce_equals_one_rank_with_the_whole_batch(world):
    models = world.run(lambda host: train(host, Allreduce(), Quadratic(host.rank), 25)[0])
    alone = plain_sgd([Quadratic(rank).gradient for rank in range(world.size)], 25)
    assert np.allclose(models[0], alone, rtol=0, atol=1e-12)


def test_topk_with_all_of_the_gradient_is_allreduce(world):
    def main(host):
        return [train(host, algorithm, Quadratic(host.rank), 25)[0] for algorithm in (TopK(share=1.0), Allreduce())]
    for sparse, dense in world.run(main):
        assert np.allclose(sparse, dense, rtol=0, atol=1e-12)


def test_what_topk_does_not_send_it_remembers(world):
    """Sent or remembered: without momentum x has moved by all steps, at the rates of their own time, but for those."""
    def main(host):
        task, algorithm = Quadratic(host.rank), TopK(share=0.1)
        seen = np.zeros(task.b.size)

        def gradient(x, hear=None, least=0):
            g = task.gradient(on(host, task.b))     # noise alone
            seen[:] += rate[0] * to_numpy(g)
            return g
        x, rate = on(host, task.start()), [0.0]
        algorithm.start(host, x, sgd_for(x, momentum=0))
        for step in range(9):
            rate[0] = 1 / (1 + step)
            algorithm.step(x, gradient, rate[0])
        algorithm.rest(x)
        assert np.count_nonzero(to_numpy(algorithm.error)) >= 32
        return x, seen + to_numpy(algorithm.error)
    found = world.run(main)
    moved = -np.mean([sent for _, sent in found], 0)
    for x, _ in found:
        assert np.allclose(x, moved, rtol=0, atol=1e-12)


@every_algorithm
def test_algorithms_work_with_16_bits_on_the_wire(name, options, world):
    if make(name, options).one_sided:
        with pytest.raises(Exception, match="shared memory is not compressed"):
            world.run(lambda host: train(Compressed(host, "bfloat16"), make(name, options), Quadratic(), 1))
        return
    if not make(name, options).may_round:
        return                              # which is refused before a run

    def main(host):
        net, algorithm, task = Compressed(host, "bfloat16"), make(name, options), Quadratic(host.rank)
        x = on(host, task.start())
        algorithm.start(net, x, optimizer_for(algorithm, x))
        for _ in range(150):
            go_on(host, algorithm, task, x, rate(algorithm))
            time.sleep(pause(algorithm, world))
        algorithm.rest(x)
        return algorithm.answer(x).copy()
    answers = world.run(main)
    task = Quadratic()
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    assert task.loss(answers[0]) < left_over(make(name, options), world) * task.loss(task.start())


def test_pull_gossip_keeps_the_mean_of_all_models(world):
    def main(host):
        gossip = Gossip()
        x = on(host, np.random.default_rng(host.rank).normal(size=12))
        before = x.copy()
        train(host, gossip, Quadratic(host.rank, size=12), 10, lr=0.0, x=x)
        return before, x
    befores, afters = zip(*world.run(main), strict=True)
    assert np.allclose(np.mean(befores, 0), np.mean(afters, 0), atol=1e-14)
    assert np.var(afters, 0).max() <= np.var(befores, 0).max()


def test_push_gossip_loses_nothing_that_was_sent(world):
    def main(host):
        merged = []
        gossip = Gossip(mode="push")
        collect = host.collect

        def counting():
            for letter in collect():
                merged.append(letter.source)
                yield letter
        host.collect = counting
        x, _ = train(host, gossip, Quadratic(host.rank), 30)
        gossip.rest(x)
        return merged
    sources = [source for merged in world.run(main) for source in merged]
    expected = 30 if world.size > 1 else 0
    assert all(sources.count(rank) == expected for rank in range(world.size))


@pytest.mark.parametrize("order", ["adapt-then-combine", "combine-then-adapt"])
def test_an_independent_pull_is_the_mean_with_what_any_rank_itself_included_last_published(order):
    size, drawn = 4, []
    published = [[Quadratic().start()] for _ in range(size)]

    class Noted(Gossip):
        def pull(self, x):
            known = [len(models) for models in published]
            published[self.net.rank].append(x.copy())
            met = super().pull(x).wait()
            drawn.append((self.net.rank, self.peer()))
            source = published[self.peer()]
            assert any(np.allclose(met, model, rtol=0, atol=1e-14) for model in source[known[self.peer()] - 1 :])
            assert self.peer() != self.net.rank or met is x
            return Done(met)

        def combine(self, x, met=None):
            mean = (x + met.wait()) / 2 if met else x
            super().combine(x, met)
            assert np.array_equal(x, mean)
    Cluster(size, delays(3)).run(lambda host: train(host, Noted(partner="independent", order=order, seed=3),
                                                    Quadratic(host.rank), 40))
    counts = np.array([[drawn.count((rank, peer)) for peer in range(size)] for rank in range(size)])
    assert (counts >= 3).all()
    assert counts.sum() == 40 * size


# equivalences

def test_local_sgd_with_a_mean_after_every_step_is_allreduce(world):
    local, allreduce = (world.run(lambda host, a=algorithm: train(host, copy.copy(a), Quadratic(host.rank), 25)[0])
                        for algorithm in (Local(period=1), Allreduce()))
    assert np.allclose(local, allreduce, rtol=0, atol=1e-12)


def test_slow_momentum_of_nothing_is_plain_local_sgd(world):
    slow, plain = (world.run(lambda host, a=algorithm: train(host, copy.copy(a), Quadratic(host.rank), 24)[0])
                   for algorithm in (Local(slow_momentum=1e-30), Local()))
    assert np.allclose(slow, plain, rtol=0, atol=1e-12)


def with_sgd(algorithm):
    """The algorithm, its optimizer being SGD with momentum."""
    algorithm.default_optimizer = "sgd"
    return algorithm


def models_of(world, algorithm, steps=25):
    return world.run(lambda host: train(host, copy.copy(algorithm), Quadratic(host.rank), steps)[0])


def test_diloco_with_an_outer_step_as_long_as_the_way_is_local_sgd(world):
    """Whether the model meets as a whole or fragment by fragment."""
    outer = {"outer_lr": 1.0, "outer_momentum": 0.0}
    diloco = models_of(world, with_sgd(DiLoCo(period=4, **outer)))
    assert np.allclose(diloco, models_of(world, Local(period=4)), rtol=0, atol=1e-12)
    fragments = models_of(world, with_sgd(DiLoCo(period=1, fragments=3, **outer)))
    assert np.allclose(fragments, models_of(world, Allreduce()), rtol=0, atol=1e-12)


def test_a_fragment_of_diloco_is_a_diloco_of_its_own_that_meets_at_another_step(world):
    """The elements of a quadratic do not see each other: each fragment moves as if the whole model met at its steps."""
    steps, rule = 25, {"period": 6, "outer_momentum": 0.5, "delay": 2, "mix": 0.7}
    parts = models_of(world, with_sgd(DiLoCo(fragments=2, **rule)), steps)
    whole = models_of(world, with_sgd(DiLoCo(**rule)), steps)
    assert np.allclose(np.array(parts)[:, 20:], np.array(whole)[:, 20:], rtol=0, atol=1e-12)
    assert world.size == 1 or not np.allclose(np.array(parts)[:, :20], np.array(whole)[:, :20], rtol=0, atol=1e-3)


def test_all_ranks_hold_the_same_model_once_diloco_has_met(world):
    models = models_of(world, DiLoCo(period=4), 24)
    assert all(np.array_equal(x, models[0]) for x in models)


def test_fragments_divide_the_bytes_of_a_step(world):
    def main(host, fragments):
        algorithm, task, sent = DiLoCo(period=8, fragments=fragments), Quadratic(host.rank), []
        x = on(host, task.start())
        algorithm.start(host, x, optimizer_for(algorithm, x))
        for _ in range(16):
            before = host.traffic.bytes_sent
            go_on(host, algorithm, task, x)
            sent.append(host.traffic.bytes_sent - before)
        return max(sent), sum(sent)
    whole, quarters = (world.run(lambda host, f=fragments: main(host, f)) for fragments in (1, 4))
    np.testing.assert_allclose(quarters, [(most / 4, total) for most, total in whole], rtol=0, atol=8)   # a byte a mean


def test_a_fragment_that_was_under_way_when_ranks_died_never_arrives():
    pieces = Fragments(Cluster(1).hosts[0], np.zeros(4), count=2, period=6, delay=2, lost=6)
    assert [pieces.arrived(step) for step in range(1, 12)] == [[]] * 10 + [[slice(0, 2)]]


def test_nobody_waits_for_a_fragment_that_may_travel_longer_than_it_takes():
    def waited(**options):
        costs = star(latency_s=0.1, bytes_per_s=1e9, gradient_s=0.1)
        return max(Cluster(4, costs).run(lambda host: train(host, DiLoCo(period=8, fragments=2, **options),
                                                            Quadratic(host.rank), 40) and host.traffic.wait_s))
    assert waited() > 2
    assert waited(delay=5) < 1e-6


def test_noloco_of_two_ranks_is_slow_momentum_of_both(world):
    """At a constant rate; both keep the same x_0."""
    if world.size > 2:
        return                              # a law about one pair
    noloco, slow = (models_of(world, algorithm) for algorithm in (
        with_sgd(NoLoCo(period=4, outer_lr=0.7, outer_momentum=0.3)), Local(period=4, slow_momentum=0.3, slow_lr=0.7)))
    assert np.allclose(noloco, slow, rtol=0, atol=1e-12)


def test_noloco_without_gradients_draws_all_models_together_and_keeps_their_mean(world):
    def main(host):
        algorithm, x = with_sgd(NoLoCo(period=1, pull=0.7)), on(host, np.random.default_rng(host.rank).normal(size=5))
        before = x.copy()
        train(host, algorithm, Quadratic(host.rank, size=5), 120, lr=0.0, x=x)
        return before, x
    befores, afters = zip(*world.run(main), strict=True)
    assert np.allclose(afters, np.mean(befores, 0), rtol=0, atol=1e-3)
    assert np.allclose(np.mean(afters, 0), np.mean(befores, 0), rtol=0, atol=1e-12)


def test_the_mean_of_nolocos_models_moves_as_if_all_met(world):
    """Exactly so for a quadratic; an odd one out meets itself."""
    noloco, slow = (models_of(world, algorithm) for algorithm in (
        with_sgd(NoLoCo(period=4, outer_lr=0.7, outer_momentum=0.3)), Local(period=4, slow_momentum=0.3, slow_lr=0.7)))
    assert np.allclose(np.mean(noloco, 0), np.mean(slow, 0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("between", ["dpsgd", "local_sgd:period=3", "gossip:mode=push", "easgd:beta=0"])
def test_on_one_node_two_levels_are_allreduce(world, between):
    models = world.run(lambda host: at_rest(host, Hierarchical(between)), per_node=world.size)
    assert np.allclose(models, models_of(world, Allreduce()), rtol=0, atol=1e-12)
    assert all(np.array_equal(x, models[0]) for x in models)


@pytest.mark.parametrize("between", ["dpsgd", "sgp:overlap=0", "diloco:period=3", "easgd"])
def test_with_one_rank_a_node_two_levels_are_the_method_between_nodes(world, between):
    names = Hierarchical(between), algorithms.parsed(between, "")
    if not names[0].ordered and not world.simulated:
        return                              # who comes first is a matter of chance
    nodes, alone = (world.run(lambda host, a=algorithm: at_rest(host, copy.copy(a)), per_node=1) for algorithm in names)
    assert np.array_equal(nodes, alone)


def test_nodes_of_equal_size_that_average_gradients_are_allreduce(world):
    if world.size % 2:
        return                              # each node counts as one, and one of them would be smaller
    models = world.run(lambda host: at_rest(host, Hierarchical("allreduce")), per_node=2)
    assert np.allclose(models, models_of(world, Allreduce()), rtol=0, atol=1e-12)


def test_wagma_that_averages_all_at_each_step_is_allreduce(world):
    assert np.allclose(models_of(world, WaitAvoiding(period=1)), models_of(world, Allreduce()), rtol=0, atol=1e-12)


def test_wagma_draws_models_together_in_groups_and_makes_them_one_with_all(world):
    def main(host, steps):
        x = on(host, np.random.default_rng(host.rank).normal(size=12))
        before = x.copy()
        algorithm = WaitAvoiding(period=6, group=2)
        train(host, algorithm, Quadratic(host.rank, size=12), steps, lr=0.0, x=x)
        host.settle()                       # nobody reads any more
        return before, x
    befores, afters = zip(*world.run(lambda host: main(host, 5)), strict=True)
    assert world.size == 1 or np.std(afters, 0).max() < np.std(befores, 0).max()
    _, afters = zip(*world.run(lambda host: main(host, 6)), strict=True)
    assert all(np.array_equal(x, afters[0]) for x in afters)


def test_sparta_of_the_whole_model_is_allreduce(world):
    assert np.allclose(models_of(world, Sparta(share=1.0)), models_of(world, Allreduce()), rtol=0, atol=1e-12)


def test_sparta_sends_its_share_of_the_bytes_and_averages_just_these(world):
    def main(host):
        algorithm, x = Sparta(share=0.1), on(host, np.random.default_rng(host.rank).normal(size=1000))
        before, sent = x.copy(), host.traffic.bytes_sent
        train(host, algorithm, Quadratic(host.rank, size=1000), 1, lr=0.0, x=x)
        return host.traffic.bytes_sent - sent, before, x, algorithm.places(1000)
    sent, befores, afters, places = zip(*world.run(main), strict=True)
    count = places[0].size
    assert abs(count - 100) < 30
    assert set(sent) == {2 * (world.size - 1) * 8 * count // world.size}
    changed = np.not_equal(befores, afters).any(0)
    assert world.size == 1 or np.array_equal(np.flatnonzero(changed), places[0])
    assert np.allclose(np.array(afters)[:, changed], np.mean(befores, 0)[changed], rtol=0, atol=1e-14)


def test_sparta_draws_each_element_as_often_as_it_is_told():
    algorithm, counts = Sparta(share=0.2), np.zeros(50)
    for algorithm.t in range(2000):
        counts[algorithm.places(50)] += 1
    assert np.allclose(counts, 400, rtol=0, atol=5 * (2000 * 0.2 * 0.8) ** 0.5)


def test_epidemic_learning_that_sends_to_all_is_allreduce(world):
    assert np.allclose(models_of(world, Epidemic(peers=99)), models_of(world, Allreduce()), rtol=0, atol=1e-12)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_epidemic_learning_by_one_letter_that_nobody_waits_for_is_push_gossip(size, seed):
    epidemic, gossip = ([*Cluster(size, delays(seed)).run(lambda host, a=algorithm: at_rest(host, copy.copy(a)))]
                        for algorithm in (Epidemic(peers=1, wait=False, seed=seed), Gossip("push", seed=seed)))
    assert np.array_equal(epidemic, gossip)


@pytest.mark.parametrize("sample", ["local", "oracle"])
def test_epidemic_learning_keeps_the_mean_by_an_oracle_and_else_in_expectation(sample):
    """A step of 4 ranks without gradients, over again with new draws: n times what the mean moves by."""
    starts = np.random.default_rng(2).normal(size=(4, 12))
    moved = np.array([sum(Cluster(4).run(lambda host, seed=seed: train(
        host, Epidemic(sample=sample, seed=seed), Quadratic(host.rank, size=12), 1, lr=0.0, x=starts[host.rank].copy()
    )[0] - starts[host.rank])) for seed in range(100)])
    assert np.abs(moved.mean(0)).max() < 4 * 0.1 * max(1e-12, moved.std(0).max())
    assert (moved.std(0).max() < 1e-12) == (sample == "oracle")


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 50), st.booleans())
def test_an_audience_is_of_others_and_as_many_as_are_asked_for(size, count, step, regular):
    found = audiences(step, size, 3, count, regular)
    for rank, audience in enumerate(found):
        assert len(set(audience)) == len(audience) == min(count, size - 1)
        assert set(audience) <= {*range(size)} - {rank}
        assert not regular or sum(rank in other for other in found) == len(audience)
        assert regular or count > 1 or audience == [random_peer(step, rank, size, 3)][: size - 1]


@pytest.mark.parametrize("regular", [False, True])
def test_every_set_of_ranks_is_as_often_an_audience(regular):
    drawn = [tuple(sorted(audiences(step, 5, 0, 2, regular)[3])) for step in range(1200)]
    counts = [drawn.count(pair) for pair in {*drawn}]
    assert len(counts) == 6
    assert np.allclose(counts, 200, rtol=0, atol=5 * (1200 / 6 * 5 / 6) ** 0.5)


def test_asynchronous_local_sgd_of_one_rank_is_diloco(world):
    if world.size > 1:
        return                              # who comes when matters to more
    rule = {"period": 4, "outer_momentum": 0.6}
    alone, diloco = (models_of(world, algorithm) for algorithm in (AsynchronousLocal(**rule), DiLoCo(**rule)))
    assert np.allclose(alone, diloco, rtol=0, atol=1e-12)


def test_momentum_is_applied_once_for_as_many_ways_as_there_are_ranks(world):
    """Whoever comes when: the centre has moved by all ways, and by the momentum of what has come before it."""
    def main(host):
        algorithm, x, turns = AsynchronousLocal(period=1, outer_lr=0.5, outer_momentum=0.5), on(host, np.zeros(3)), []
        apply = algorithm.apply_momentum
        algorithm.apply_momentum = lambda: turns.append(apply())
        algorithm.start(host, x, sgd_for(x, momentum=0))
        for _ in range(4):
            algorithm.step(x, lambda x, hear=None, least=0: host.compute(np.ones_like, x), 1.0)
        algorithm.rest(x)
        return len(turns), algorithm.come, to_numpy(algorithm.u)[3:].copy(), algorithm.answer(x).copy()
    turns, come, u, answers = zip(*world.run(main), strict=True)
    assert (sum(turns), set(come)) == (4, {4 * world.size})
    if world.simulated:                     # else two may meet, or a way come between the count and the momentum
        assert np.allclose(u, 1 + 1 / 2 + 1 / 4 + 1 / 8)
        assert np.allclose(answers, -0.5 * (4 + 0.5 * (1 + 1.5 + 1.75 + 1.875)))


def at_rest(host, algorithm):
    x, _ = train(host, algorithm, Quadratic(host.rank), 25)
    algorithm.rest(x)
    return x


def test_one_model_a_node_travels_between_the_nodes_of_a_cluster():
    """Two nodes of four ranks: what passes their cards is what two ranks of the method would send."""
    def carried(size, algorithm, **machine):
        cluster = Cluster(size, dataclasses.replace(star(), **machine))
        before = []

        def main(host):
            own, x = copy.copy(algorithm), Quadratic().start()
            own.start(host, x, sgd_for(x))
            host.settle()
            before.append(cluster.wires.flows.carried[cluster.wires.out].sum())
            for _ in range(20):
                go_on(host, own, Quadratic(host.rank), x)
        cluster.run(main)
        return cluster.wires.flows.carried[cluster.wires.out].sum() - max(before)
    of_nodes = carried(8, Hierarchical("gossip"), ranks_per_node=4)
    assert of_nodes == carried(2, Gossip()) == 20 * 2 * 320


@pytest.mark.parametrize(("between", "told"), [
    ("hierarchical", "expected an algorithm of one level whose ranks all work, such as local_sgd or gossip:mode=push, "
     "found 'hierarchical'"), ("backup", "whose ranks all work"), ("easgd:servers=1", "whose ranks all work"),
    ("gossip:push", "expected an algorithm such as gossip:mode=push,period=2, found 'gossip:push'"),
    ("gosip", "unknown algorithm 'gosip'"), ("gossip:mode=pul", "gossip: mode: expected one of pull, push")])
def test_what_cannot_be_between_nodes_is_told(between, told):
    with pytest.raises(UsageError) as error:
        algorithms.build("hierarchical", {"between": between})
    assert told in error.value.message


def test_on_the_complete_graph_the_mean_model_is_that_of_allreduce(world):
    """Exactly so for a quadratic, whose gradient at the mean is the mean of the gradients."""
    models = world.run(lambda host: train(host, Decentralised("complete"), Quadratic(host.rank), 25)[0])
    allreduce = world.run(lambda host: train(host, Allreduce(), Quadratic(host.rank), 25)[0])
    assert np.allclose(np.mean(models, 0), allreduce[0], rtol=0, atol=1e-12)


def test_choco_that_sends_all_is_dpsgd(world):
    def main(host):
        return [train(host, algorithm, Quadratic(host.rank), 25)[0]
                for algorithm in (Choco(share=1.0, gamma=1.0), Decentralised())]
    for sparse, dense in world.run(main):
        assert np.allclose(sparse, dense, rtol=0, atol=1e-12)


def test_neighbours_know_of_a_model_what_its_rank_thinks_they_know(world):
    def main(host):
        algorithm = Choco(graph="exponential")
        x, _ = train(host, algorithm, Quadratic(host.rank), 9)
        algorithm.rest(x)
        assert world.size == 1 or np.count_nonzero(to_numpy(x - algorithm.own)) >= 32
        return algorithm.own, algorithm.others, algorithm.weights
    known, mixed, weights = zip(*world.run(main), strict=True)
    for others, row in zip(mixed, weights, strict=True):
        assert np.allclose(others, sum(weight * known[peer] for peer, weight in row.items()), rtol=0, atol=1e-12)


def test_no_compensation_is_plain_downpour():
    """Simulated: the order in which updates arrive must be the same."""
    runs = [Cluster(3).run(lambda host, o=options: train(host, ParameterServer(**o), Quadratic(host.rank), 20, 0.01)[0])
            for options in ({}, {"staleness": "compensate", "compensation": 0.0})]
    assert np.allclose(*runs, rtol=0, atol=1e-12)


def test_one_worker_of_a_parameter_server_does_plain_sgd(world):
    if world.size == 1:
        return                              # which the law of the rank that is alone says
    servers = world.size - 1
    models = world.run(lambda host: train(host, ParameterServer(servers=servers), Quadratic(host.rank), 20)[0])
    assert np.allclose(models[-1], plain_sgd([Quadratic(servers).gradient], 20), rtol=0, atol=1e-13)


def test_gossip_meets_as_often_as_it_is_told(world):
    def main(host):
        gossip = Gossip("push", probability=0.25, seed=3)
        posted = []
        host.post = lambda x, peer, note=0.0: posted.append(peer)
        train(host, gossip, Quadratic(host.rank), 200)
        return len(posted)
    assert world.size == 1 or all(25 < posted < 75 for posted in world.run(main))


def test_backup_without_backups_is_allreduce_over_the_workers(world):
    if world.size == 1:
        return                              # a law about a server and its workers
    models = world.run(lambda host: train(host, Backup(backups=0), Quadratic(host.rank), 20)[0])
    alone = plain_sgd([Quadratic(rank).gradient for rank in range(1, world.size)], 20)
    assert np.allclose(models, alone, rtol=0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(get_args(Tree)), st.integers(1, 9), st.integers(0, 10_000))
def test_a_relay_counts_each_rank_once_as_old_as_it_is_far(tree, size, seed):
    """By the distances on the tree; x at the start for what has not come yet."""
    found = Cluster(size, delays(seed)).run(lambda host: train(host, Relay(tree), Quadratic(host.rank), 12)[0])
    tasks, away = [Quadratic(rank) for rank in range(size)], edges_between(tree, size)
    x = np.array([task.start() for task in tasks])
    optimisers, stepped = [sgd_for(row) for row in x], [x.copy() for _ in range(size)]
    for _ in range(12):
        for row, task, sgd in zip(x, tasks, optimisers, strict=True):
            sgd.update(row, task.gradient(row), 0.05)
        stepped.insert(0, x.copy())         # the latest first
        for rank in range(size):
            x[rank] = np.mean([stepped[max(0, int(away[rank, other]) - 1)][other] for other in range(size)], 0)
    assert np.allclose(found, x, rtol=0, atol=1e-12)


@given(st.sampled_from(get_args(Tree)), st.integers(1, 40))
def test_on_a_tree_all_others_are_behind_one_neighbour_or_another(tree, size):
    assert [sum(sides.values()) for sides in behind(tree, size)] == [size - 1] * size
    assert all(behind(tree, size)[peer][rank] == size - ranks
               for rank, sides in enumerate(behind(tree, size)) for peer, ranks in sides.items())


# mass: what averaging must keep, whatever is delayed

def delays(draw_seed):
    draw = np.random.default_rng(draw_seed)
    return star(latency_s=0.05, bytes_per_s=1e4, gradient_s=lambda rank, step: draw.exponential(0.1))


def masses(world, algorithm, mass, steps, costs=None):
    """The sums over all ranks of `mass(algorithm, x)`, before the first step and after a rest, without gradients."""
    def main(host):
        own = copy.copy(algorithm)
        x = on(host, np.random.default_rng(host.rank).normal(size=12))
        task = Quadratic(host.rank, size=12)
        own.start(host, x, sgd_for(x))
        before = mass(own, x)
        host.settle()                       # nobody begins before all have looked
        for _ in range(steps):
            go_on(host, own, task, x, lr=0.0)
        own.rest(x)
        return before, mass(own, x)
    befores, afters = zip(*world.run(main, costs), strict=True)
    return np.sum(befores, 0), np.sum(afters, 0)


def whole_model(algorithm, x):
    return x.copy()


def weighted_model(algorithm, x):
    return np.append(x * algorithm.w, algorithm.w)


def model_and_centre(algorithm, x):
    part = algorithm.centre.shared.read(algorithm.net.rank).sum()
    return np.append(x.sum() + part, 0)


def model_and_correction(algorithm, x):
    return np.append(x, algorithm.c)


KEEPS = {
    "gossip": (Gossip(), whole_model),
    "gossip now and then": (Gossip(probability=0.4), whole_model),
    "dpsgd ring": (Decentralised("ring"), whole_model),
    "dpsgd random": (Decentralised("random"), whole_model),
    "gradient_tracking": (GradientTracking(), model_and_correction),
    "gradient_tracking d2": (GradientTracking("d2", "random"), model_and_correction),
    "qgm": (QuasiGlobalMomentum(graph="torus"), whole_model),
    "choco": (Choco(), whole_model),
    "adpsgd": (AsynchronousDecentralised(), whole_model),
    "sgp": (StochasticGradientPush(), weighted_model),
    "gosgd": (GossipPush(probability=0.7), weighted_model),
    "easgd": (Elastic(period=1), model_and_centre),
    "local_sgd": (Local(period=3), whole_model),
    "sparta": (Sparta(share=0.3), whole_model),
    "epidemic oracle": (Epidemic(sample="oracle"), whole_model),
}


@pytest.mark.parametrize("name", KEEPS)
def test_mass_is_kept(name, world):
    before, after = masses(world, *KEEPS[name], steps=500 if world.size == 8 else 15)
    assert np.allclose(before, after, rtol=0, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(KEEPS)), st.integers(1, 9), st.integers(0, 10_000))
def test_mass_is_kept_under_any_delays(name, size, seed):
    class World:
        run = staticmethod(lambda main, costs: Cluster(size, costs).run(main))
    before, after = masses(World, *KEEPS[name], steps=8, costs=delays(seed))
    assert np.allclose(before, after, rtol=0, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ALL), st.integers(1, 9), st.integers(0, 10_000))
def test_every_algorithm_ends_whatever_is_delayed(parameter, size, seed):
    name, options = parameter.values

    def main(host):
        algorithm = make(name, options)
        x, _ = train(host, algorithm, Quadratic(host.rank), 12, 0.01)
        algorithm.rest(x)
        return algorithm.answer(x).copy()
    answers = Cluster(size, delays(seed)).run(main)
    assert all(np.array_equal(answer, answers[0]) and np.isfinite(answer).all() for answer in answers)


def test_sgp_without_gradients_comes_to_the_mean_of_all_models(world):
    def main(host):
        x = on(host, np.random.default_rng(host.rank).normal(size=5))
        before = x.copy()
        train(host, StochasticGradientPush(), Quadratic(host.rank, size=5), 120, lr=0.0, x=x)
        return before, x
    befores, afters = zip(*world.run(main), strict=True)
    assert np.allclose(afters, np.mean(befores, 0), rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10_000))
def test_sgp_without_overlap_is_its_matrix_whatever_is_delayed(size, seed):
    """y <- P y with the column-stochastic P of each step, the gradients of a quadratic between."""
    def main(host):
        return train(host, StochasticGradientPush(overlap=0), Quadratic(host.rank), 12)[0]
    found = Cluster(size, delays(seed)).run(main)
    tasks = [Quadratic(rank) for rank in range(size)]
    z, w = np.array([task.start() for task in tasks]), np.ones(size)
    optimisers = [sgd_for(x) for x in z]
    for t in range(12):
        for x, task, sgd in zip(z, tasks, optimisers, strict=True):
            sgd.update(x, task.gradient(x), 0.05)
        p = np.eye(size) / 2
        for rank in range(size):
            p[exponential_peer(t, rank, size), rank] += 0.5
        z, w = p @ (w[:, None] * z) / (p @ w)[:, None], p @ w
    assert np.allclose(found, z, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(0, 3), st.integers(0, 10_000))
def test_sgp_adds_in_time_and_in_order(size, overlap, seed):
    """No letter of a step to come is added, and none of the last `overlap` steps alone is missing."""
    def main(host):
        algorithm, task, x = StochasticGradientPush(overlap=overlap), Quadratic(host.rank), Quadratic().start()
        algorithm.start(host, x, sgd_for(x))
        for t in range(1, 13):
            go_on(host, algorithm, task, x)
            assert t - overlap <= algorithm.received <= t
        algorithm.rest(x)
        assert algorithm.received == 12
        assert not algorithm.letters
    Cluster(size, delays(seed)).run(main)


# waiting, and staleness

@pytest.mark.parametrize(("algorithm", "waits"), [
    (Allreduce(), True), (Gossip("pull"), True), (Local(), True), (Decentralised(), True),
    (StochasticGradientPush(), True), (ParameterServer(max_staleness=2), True),
    (Gossip("push"), False), (Gossip(partner="independent"), False), (GossipPush(), False),
    (ParameterServer(), False), (Elastic(), False), (AsynchronousDecentralised(), False),
    (WaitAvoiding(period=50), False), (AsynchronousLocal(), False), (Epidemic(), True),
    (Epidemic(wait=False), False)], ids=lambda value: str(value))
def test_only_the_asynchronous_do_not_wait_for_a_slow_rank(algorithm, waits, world):
    if not world.simulated or world.size == 1:
        return                              # real clocks are never this exact
    costs = star(gradient_s=lambda rank, step: 0.25 if rank == 0 else 0.05)

    def main(host):
        train(host, copy.copy(algorithm), Quadratic(host.rank), 40, 0.01)
        return host.now(), host.traffic.wait_s
    (slow_s, _), *others = world.run(main, costs)
    assert slow_s == pytest.approx(10, abs=0.01)
    assert all(now > 8 and wait_s > 5 if waits else now < 2.01 and wait_s < 0.01 for now, wait_s in others)


def test_a_slow_worker_does_not_slow_the_step_where_there_is_a_backup():
    costs = star(gradient_s=lambda rank, step: 5.0 if rank == 3 else 1.0)
    times = {}
    for backups in (0, 1):
        ends = Cluster(5, costs).run(lambda host, b=backups: train(host, Backup(b), Quadratic(host.rank), 30) and
                                     host.now())
        times[backups] = ends[0]
    assert times[0] == pytest.approx(150, abs=0.1)
    assert times[1] == pytest.approx(30, abs=0.1)


def test_staleness_is_measured_and_can_be_bounded():
    def largest(max_staleness):
        costs = star(gradient_s=lambda rank, step: 0.073 if rank == 0 else 0.01)
        seen = Cluster(3, costs).run(lambda host: train(host, ParameterServer(max_staleness=max_staleness),
                                                        Quadratic(host.rank), 40, 0.002) and host.traffic.staleness)
        assert all(counter.total() == 3 * 40 for counter in seen)      # of additions to the model, and of nothing else
        return max(max(counter) for counter in seen)
    free = largest(0)
    assert 12 <= free <= 16                 # while the slow one takes a step, two others take 7.3 each
    assert largest(1) < free / 2


def test_no_update_is_applied_before_which_too_many_came_by_others_since_its_model_was_read():
    """Counted when it is sent; what lands while a model is being read came afterwards."""
    ages, landed = [], []

    def main(host, most):
        algorithm, task, x, known = ParameterServer(max_delay=most), Quadratic(host.rank), Quadratic().start(), [0]
        algorithm.start(host, x, sgd_for(x))
        model, tickets = algorithm.model, []
        read, add, draw = model.shared.read_parts, model.add, model.flushed.add

        def reading(*args):
            known[0] = len(landed)
            return read(*args)

        def adding(*args):
            ages.append(tickets[-1] - known[0])
            add(*args)
            landed.append(host.rank)

        def drawing(which, amount=1):
            tickets.append(draw(which, amount))
            return tickets[-1]
        model.shared.read_parts, model.add, model.flushed.add = reading, adding, drawing
        for _ in range(40):
            go_on(host, algorithm, task, x, 0.01)
        return algorithm.applied
    for most in (1, 2, 4, 100):
        ages.clear()
        landed.clear()
        applied = Cluster(6, delays(1)).run(lambda host, most=most: main(host, most))
        assert sum(applied) == len(ages) == len(landed)
        assert max(ages) < most
        assert (len(ages) == 240) == (most == 100)
        assert most < 100 or max(ages) > 4


def test_a_bound_on_ages_that_none_reaches_changes_nothing():
    uneven = star(gradient_s=lambda rank, step: 0.1 + rank / 73)
    runs = [Cluster(3, uneven).run(lambda host, o=options: train(host, ParameterServer(**o), Quadratic(host.rank), 20,
                                                                 0.01)[0])
            for options in ({}, {"max_delay": 10**6})]
    assert np.allclose(*runs, rtol=0, atol=1e-12)


# servers that only serve, and ranks that do different numbers of steps

def test_a_server_computes_no_gradient_and_the_model_lies_with_servers(world):
    servers = world.size // 2
    if world.size == 1:
        return                              # alone, a rank does everything itself

    def main(host):
        task = Quadratic(host.rank)
        train(host, ParameterServer(servers=servers), task, 20, 0.01)
        return task.calls, sum(host.traffic.staleness.values())
    found = world.run(main)
    steps_and_additions = (20, 20 * servers)    # each to the part on each server, and to none elsewhere
    assert found == [(0, 0)] * servers + [steps_and_additions] * (world.size - servers)


def test_a_server_leaves_its_core_to_others(world):
    if world.simulated or world.size != 2:
        return                              # about a real core

    def main(host):
        gradient, task = Quadratic(host.rank).gradient, Quadratic(host.rank)
        task.gradient = lambda x, hear=None, least=0: time.sleep(0.05) or gradient(x)
        host.settle()
        start, used = time.perf_counter(), time.process_time()
        train(host, ParameterServer(servers=1), task, 30, 0.01)
        return (time.process_time() - used) / (time.perf_counter() - start)
    assert world.run(main)[0] < 0.25


def test_more_servers_than_ranks_is_told():
    with pytest.raises(UsageError, match="3 servers leave no worker among 3 ranks; expected at most 2"):
        algorithms.serving(ParameterServer(servers=3), 3)


@every_algorithm
def test_the_independent_come_to_the_end_after_different_numbers_of_steps(name, options, world):
    """Nothing is lost, nobody is waited for: a rest and an answer are enough."""
    algorithm = make(name, options)
    if not algorithm.independent:
        return

    def main(host):
        own, task = make(name, options), Quadratic(host.rank)
        serves = host.rank < algorithms.serving(own, host.size)
        steps = 0 if serves else 60 + 17 * host.rank
        x, _ = train(host, own, task, steps, rate(own), pause_s=pause(own, world))
        own.rest(x)
        letters = list(host.collect())
        return own.answer(x).copy(), len(letters), getattr(own, "w", 1.0)
    answers, letters, weights = zip(*world.run(main), strict=True)
    task = Quadratic()
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    assert task.loss(answers[0]) < (0.3 if world.simulated else 0.6) * task.loss(task.start())
    assert not any(letters)
    assert sum(weights) == pytest.approx(world.size, abs=1e-12)


@every_algorithm
def test_the_others_do_need_each_other(name, options):
    """The law that the one above is about something: where ranks do different numbers of steps, these never end."""
    def main(host):
        algorithm = make(name, options)
        x, _ = train(host, algorithm, Quadratic(host.rank), 40 + 17 * host.rank)
        algorithm.rest(x)
        algorithm.answer(x)
    if not make(name, options).independent and not options.get("max_staleness"):     # whose clock would run for ever
        with pytest.raises((Deadlock, AssertionError, ValueError)):     # the last: of vectors of unequal lengths
            Cluster(3).run(main)


# topologies

GRAPHS = *NAMES, "base-2", "base-3", "base-5"


@given(st.sampled_from(GRAPHS), st.integers(1, 9), st.integers(0, 50))
def test_mixing_weights_are_symmetric_and_doubly_stochastic(graph, size, step):
    w = matrix(graph, size, step)
    assert all(rank not in mixing_weights(graph, size, step, 0, rank) for rank in range(size))
    assert all(list(mixing_weights(graph, size, step, 0, rank)) == each
               for rank, each in enumerate(neighbours(graph, size, step, 0)))
    assert np.allclose(w, w.T)
    assert np.allclose(w.sum(0), 1)
    assert (w >= -1e-15).all()
    assert graph != "complete" or np.allclose(w, 1 / size)


@given(st.integers(1, 40), st.integers(0, 1000), st.integers(0, 10), st.integers(1, 12))
def test_every_rank_is_in_one_group_of_nearly_equal_ones(size, step, seed, groups):
    sizes = np.bincount(partition(step, size, groups, seed), minlength=groups)
    assert (sizes.sum(), len(sizes)) == (size, groups)
    assert np.ptp(sizes) <= 1


def matrix(graph, size, step, seed=0):
    w = np.zeros((size, size))
    for rank in range(size):
        for peer, weight in mixing_weights(graph, size, step, seed, rank).items():
            w[rank, peer] = weight
    return w + np.diag(1 - w.sum(1))


@pytest.mark.parametrize("base", [2, 3, 4, 5, 7, 12])
def test_base_graphs_come_to_the_exact_mean_in_as_many_rounds_as_their_paper_says(base):
    """Its theorem, and its lemma for numbers without a large prime factor; whom a rank meets, itself included."""
    for size in [*range(1, 41), 48, 63, 64, 75, 100]:
        graph = [matrix(f"base-{base}", size, step) for step in range(len(base_graph(size, base)))]
        assert np.allclose(reduce(np.matmul, graph[::-1]), 1 / size, rtol=0, atol=1e-12)
        assert all((np.count_nonzero(w, axis=1) <= base).all() for w in graph)
        cubes = factors(size, base)
        assert len(graph) <= max(1, 2 * math.log(size, base) + 2 if cubes is None else 2 * math.log(size, base + 1))
        assert np.allclose(matrix(f"base-{base}", size, len(graph)), graph[0])      # and anew


@pytest.mark.parametrize(("size", "base", "rounds"), [(5, 2, 5), (6, 2, 4), (6, 3, 2), (25, 2, 9), (25, 5, 2)])
def test_base_graphs_are_as_long_as_those_of_their_authors(size, base, rounds):
    assert len(base_graph(size, base)) == rounds


@pytest.mark.parametrize("size", [1, 2, 8, 32])
def test_one_bit_at_a_time_powers_of_2_come_to_the_exact_mean(size):
    steps = [matrix("one-peer", size, step) for step in range(max(1, size.bit_length() - 1))]
    assert np.allclose(reduce(np.matmul, steps[::-1]), 1 / size, rtol=0, atol=1e-12)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 16])
def test_every_graph_joins_all_ranks_in_the_long_run(graph, size):
    spread = reduce(np.matmul, (matrix(graph, size, step, seed=size) for step in range(400)))
    assert np.allclose(spread, 1 / size, rtol=0, atol=1e-3)


@given(st.integers(1, 40), st.integers(0, 1000), st.integers(0, 10))
def test_everybody_meets_one_and_hears_from_one(size, step, seed):
    partner = matching(step, size, seed)
    assert np.array_equal(partner[partner], np.arange(size))
    assert sum(partner == np.arange(size)) == size % 2
    assert sorted(exponential_peer(step, rank, size) for rank in range(size)) == list(range(size))
    assert all(rank in neighbours("torus", size, 0, 0)[peer]
               for rank in range(size) for peer in neighbours("torus", size, 0, 0)[rank])
