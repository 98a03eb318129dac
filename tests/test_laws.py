"""The laws that every algorithm keeps, on a simulated cluster and, under mpirun, on MPI's ranks."""

import copy

import numpy as np
import pytest
from quadratic import Quadratic, go_on, sgd_for, train

from dsgd_mpi import algorithms
from dsgd_mpi.algorithms.allreduce import Allreduce
from dsgd_mpi.algorithms.gossip import Gossip
from dsgd_mpi.net.costs import Costs

# Options worth a run of their own; an algorithm that is not named runs with its defaults.
VARIANTS = {"allreduce": [{}, {"bucket_mb": 1e-4}], "gossip": [{}, {"mode": "push"}, {"period": 3}]}
ALL = [pytest.param(name, options, id=f"{name}-{options or 'default'}")
       for name in algorithms.names() for options in VARIANTS.get(name, [{}])]
every_algorithm = pytest.mark.parametrize(("name", "options"), ALL)


def make(name, options):
    return algorithms.find(name)(**options)


def plain_sgd(gradients, steps, lr=0.05):
    """One rank that sees the mean of the given gradient functions."""
    x = Quadratic().start()
    sgd = sgd_for(x)
    for _ in range(steps):
        sgd.update(x, sum(gradient(x) for gradient in gradients) / len(gradients), lr)
    return x


@every_algorithm
def test_one_rank_alone_does_plain_sgd(name, options, world):
    if world.size > 1:
        return                              # a law about one rank
    x, = world.run(lambda host: train(host, make(name, options), Quadratic(), 20)[0])
    assert np.array_equal(x, plain_sgd([Quadratic().gradient], 20))


@every_algorithm
def test_all_ranks_come_to_the_minimum_and_agree_on_the_answer(name, options, world):
    def main(host):
        algorithm, task = make(name, options), Quadratic(host.rank)
        x, _ = train(host, algorithm, task, 150)
        algorithm.rest(x)
        before = x.copy()
        answer = algorithm.answer(x)
        assert np.array_equal(x, before), "the answer is a copy: training goes on from x"
        return answer.copy()
    answers = world.run(main)
    task = Quadratic()
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    assert task.loss(answers[0]) < 0.1 * task.loss(task.start())


@every_algorithm
def test_replicated_algorithms_hold_the_same_model_everywhere_to_the_bit(name, options, world):
    algorithm = make(name, options)
    models = world.run(lambda host: train(host, make(name, options), Quadratic(host.rank), 30)[0])
    same = all(np.array_equal(x, models[0]) for x in models)
    assert same == (algorithm.replicated or world.size == 1)


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
        x, sgd = train(host, algorithm, task, 9)
        algorithm.rest(x)
        kept = {key: copy.deepcopy(getattr(algorithm, key)) for key in algorithm.keeps}
        y, task_y = x.copy(), copy.deepcopy(task)
        v = sgd.v.copy()
        for _ in range(9):
            go_on(host, algorithm, task, x)
        algorithm.rest(x)
        fresh, sgd_y = make(name, options), sgd_for(y)
        sgd_y.v[:] = v
        for key, value in kept.items():
            setattr(fresh, key, value)
        fresh.start(host, y, sgd_y)
        for _ in range(9):
            go_on(host, fresh, task_y, y)
        fresh.rest(y)
        return np.abs(x - y).max()
    if world.simulated or options.get("mode") != "push":    # over MPI, what has arrived when is chance
        assert max(world.run(main)) == 0


def test_allreduce_equals_one_rank_with_the_whole_batch(world):
    models = world.run(lambda host: train(host, Allreduce(), Quadratic(host.rank), 25)[0])
    alone = plain_sgd([Quadratic(rank).gradient for rank in range(world.size)], 25)
    assert np.allclose(models[0], alone, rtol=0, atol=1e-12)


def test_pull_gossip_keeps_the_mean_of_all_models(world):
    def main(host):
        gossip = Gossip()
        x = np.random.default_rng(host.rank).normal(size=12)
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


@pytest.mark.parametrize(("algorithm", "waits"), [(Allreduce(), True), (Gossip("pull"), True), (Gossip("push"), False)])
def test_only_push_gossip_does_not_wait_for_a_slow_rank(algorithm, waits, world):
    if not world.simulated or world.size == 1:
        return                              # real clocks are never this exact
    costs = Costs(gradient_s=lambda rank, step: 5.0 if rank == 0 else 1.0)

    def main(host):
        train(host, copy.copy(algorithm), Quadratic(host.rank), 40)
        return host.now(), host.traffic.wait_s
    (slow_s, _), *others = world.run(main, costs)
    assert slow_s == pytest.approx(200, abs=0.1)
    assert all(now > 160 and wait_s > 100 if waits else now < 40.1 and wait_s == 0 for now, wait_s in others)
