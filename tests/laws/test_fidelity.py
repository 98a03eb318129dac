"""What methods promise beyond coming to a minimum: the rate at which they move, their noise, staleness, options.

All on simulated clusters, where who comes first is a matter of the costs that are given.
"""

import itertools
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from dsgd_mpi import algorithms
from dsgd_mpi.algorithms.local_sgd import Local
from dsgd_mpi.algorithms.parameter_server import ParameterServer
from dsgd_mpi.arrays.flat import Layout
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.net.simulated.machine import star
from dsgd_mpi.net.topology import OneOf, neighbours
from dsgd_mpi.optim.sgd import Sgd
from tests.support.quadratic import Quadratic, in_one_piece

ALL = [pytest.param(name, options, id=f"{name}-{options or 'default'}")
       for name in algorithms.names() for options in algorithms.find(name).variants]
every_algorithm = pytest.mark.parametrize(("name", "options"), ALL)


def jitter(share, seconds=0.1):
    """Every gradient takes that long, give or take a share of it, drawn from (rank, step)."""
    return star(gradient_s=lambda rank, step: seconds * (1 + share * np.random.default_rng((rank, step)).normal()))


def run(size, costs, name, options, task, steps, lr=0.1, momentum=0.0, look=lambda x: None):
    """The ranks' models, their histograms of staleness, and the answer. `task(rank)`: x -> gradient, with .layout."""
    def main(host):
        algorithm, gradient = algorithms.find(name)(**options), task(host.rank)
        layout = gradient.layout
        x = gradient.start.copy()
        sgd = Sgd(momentum, weight_decay=0.0).start(layout, x)
        algorithm.start(host, x, sgd)
        for _ in range(steps):
            algorithm.step(x, in_one_piece(host, gradient), lr)
            look(x)
        algorithm.rest(x)
        return x.copy(), host.traffic.staleness, np.array(algorithm.answer(x))
    models, stale, answers = zip(*Cluster(size, costs).run(main), strict=True)
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    return np.array(models), stale, answers[0]


class Constant:
    """A gradient of 1 everywhere."""

    layout = Layout({"x": (3,)})
    start = np.zeros(3)

    def __init__(self, rank):
        pass

    def __call__(self, x):
        return np.ones(3)


class Noise:
    """A gradient of normal noise."""

    layout = Layout({"x": (4000,)})
    start = np.zeros(4000)

    def __init__(self, rank):
        self.draw = np.random.default_rng((5, rank))

    def __call__(self, x):
        return self.draw.normal(size=4000)


class Statistics:
    """Noise for the trained part, times `scale`; batches whose variances differ by orders of magnitude."""

    layout = Layout({"x": (2,)}, {"mean": (1,), "var": (2,)})
    start = np.array([0.0, 0.0, 1.0, 1.0, 50.0])
    scale = 1.0
    most = 400.0

    def __init__(self, rank):
        self.draw = np.random.default_rng((6, rank))

    def __call__(self, x):
        g = np.empty_like(x)
        g[:2] = self.scale * self.draw.normal(size=2)
        g[2:] = x[2:] - np.minimum(np.exp(2 * self.draw.normal(size=3)), self.most)
        return g


# batch norm's running statistics

@every_algorithm
def test_running_statistics_stay_within_the_range_of_the_batches_on_many_ranks(name, options):
    """They would not if a method moved them at n times their rate, or mixed them with a negative weight."""
    ranks = 64 if options == algorithms.find(name).variants[0] else 32
    def look(x):
        assert (x[2:] >= 0).all(), x
        assert (x[2:] <= Statistics.most).all(), x
    models, _, answer = run(ranks, jitter(0.1), name, options, Statistics, 15, look=look)
    for x in (*models, answer):
        look(x)


@every_algorithm
def test_running_statistics_know_nothing_of_gradients_nor_of_the_rate(name, options):
    """Rules about gradients and rates, staleness, compensation, momentum, clipping, are for the trained part alone."""
    class Steeper(Statistics):
        scale = 30.0
    found = [run(8, jitter(0.1), name, options, task, 12, lr=lr, momentum=0.5)
             for task, lr in ((Statistics, 0.1), (Steeper, 0.001))]
    for (models, _, answer), (others, _, other) in [found]:
        assert np.array_equal(models[:, 2:], others[:, 2:])
        assert np.array_equal(answer[2:], other[2:])
        assert not np.array_equal(answer[:2], other[:2])


# the rate

def answer_after(steps, size, costs, name, options, task=Constant):
    return run(size, costs, name, options, task, steps)[2]


def drift(name, options, size, costs):
    """How fast the answer moves under a constant gradient, in units of all-reduce's rate, once it is under way."""
    early, late = (answer_after(steps, size, costs, name, options) for steps in (24, 48))
    return float((early - late).mean()) / (0.1 * 24)


def outer_drift(algorithm):
    """Of DiLoCo by its rule, each of the three elements of `Constant` for itself."""
    fragments, delay, mix = (getattr(algorithm, *each) for each in (("fragments", 1), ("delay", 0), ("mix", 1.0)))

    def moved(element, steps):
        turn = next(each for each in range(1, fragments + 1) if element < 3 * each // fragments)
        x = x0 = u = 0.0
        sent = {}
        for t in range(1, steps + 1):
            x -= 1
            if (t - turn * algorithm.period // fragments) % algorithm.period == 0:
                sent[t] = x0 - x
            if t - delay in sent:
                d = sent[t - delay]
                u = algorithm.outer_momentum * u + d
                x0 -= algorithm.outer_lr * (d + algorithm.outer_momentum * u)
                x = (1 - mix) * x + mix * x0
        return x
    return sum(moved(element, 24) - moved(element, 48) for element in range(3)) / 3 / 24


def edges_between(tree, size):
    """Of every two ranks, (size, size)."""
    within, found = np.eye(size), np.zeros((size, size))
    one = within + [[peer in row for peer in range(size)] for row in neighbours(tree, size, 0, 0)]
    for _ in range(size):
        found += within == 0
        within = np.minimum(within @ one, 1)
    return found


def expected_drift(name, options, size, jittered):
    """The least and the most; 1 unless the docstring of the algorithm says why not."""
    workers = size - options.get("servers", 0)
    if "max_delay" in options:              # of the updates that read the same model so many are applied
        return 0.9 * min(workers, options["max_delay"]), min(workers, options["max_delay"])
    if name == "parameter_server":
        if options.get("staleness") == "scale":         # in step the ages are 0, 1, ... n - 1
            return (1, 1.3) if jittered else (1 + sum(1 / age for age in range(1, size)),) * 2
        return (0.85 * workers if options.get("staleness") == "compensate" else workers), workers
    if name == "easgd":
        return 0.95 * workers / (workers + 1), workers / (workers + 1)
    if name in ("diloco", "async_local"):
        return (outer_drift(algorithms.find(name)(**options)),) * 2
    if name == "noloco":                    # after three meetings the momentum is mu^3 of its way from the end
        algorithm = algorithms.find(name)(**options)
        speed = algorithm.outer_lr / (1 - algorithm.outer_momentum)
        return speed * (1 - algorithm.outer_momentum**4 / (1 - algorithm.outer_momentum) / 3), speed
    if name == "wagma":
        return 0.75, 1
    if name == "relay":
        ages = np.maximum(edges_between(options.get("tree", "tree"), size) - 1, 0)
        return (1 / (1 + ages.mean()),) * 2
    if name == "gosgd":
        p = options.get("probability", 1.0)
        return 1 - p / 2, 1 - p / 4
    if options.get("mode") == "push":
        return (1, 1.3) if options.get("order") == "combine-then-adapt" else (0.7, 0.87)
    if options.get("wait") is False:        # of two peers: who hears from k is pulled back by k / (k + 1) of a step
        return 0.6, 0.8
    if options.get("partner") == "independent":         # a model that was published, on average, half a step ago
        return 0.82, 0.85
    if name == "hierarchical" and "slow_momentum" in options.get("between", ""):
        return (1 / (1 - 0.3),) * 2
    if "slow_momentum" in options:
        return (1 / (1 - options["slow_momentum"]),) * 2
    if "clip" in options:
        return (options["clip"] / size**0.5 / 3**0.5,) * 2      # of a gradient whose norm is the root of 3
    return 1, 1


@pytest.mark.parametrize("jittered", [False, True], ids=["in step", "10 % jitter"])
@every_algorithm
def test_the_answer_moves_at_the_rate_that_is_told(name, options, jittered):
    for size in (8, 16) if options == algorithms.find(name).variants[0] else (8,):
        if "clip" in options:
            options = {**options, "clip": 0.5}
        least, most = expected_drift(name, options, size, jittered)
        found = drift(name, options, size, jitter(0.1 if jittered else 0.0))
        assert 0.95 * least <= found <= 1.05 * most, (size, found)
        assert algorithms.find(name).drift != "1" or least == most == 1 or "clip" in options


def noise(name, options, size, costs):
    """The variance of the answer under pure noise, in units of that of the mean of all ranks' gradients."""
    return float(answer_after(30, size, costs, name, options, Noise).var()) / (0.1**2 * 30 / size)


@pytest.mark.parametrize(("name", "options", "expected"), [
    ("allreduce", {}, 1),
    ("local_sgd", {"period": 4}, 1),
    ("gossip", {}, 1),                      # a mean that is kept (doubly stochastic mixing) has the noise of the mean
    ("gossip", {"order": "combine-then-adapt"}, 1),
    ("dpsgd", {}, 1),
    ("adpsgd", {}, 1),
    ("sgp", {}, 1),
    ("topk", {"share": 1.0}, 1),
    ("backup", {}, 8 / 6),                  # six of eight ranks: one serves, one is late
    ("parameter_server", {}, 64)])          # n times the rate of one rank each
def test_the_answer_has_the_noise_of_the_mean_of_all_ranks(name, options, expected):
    """4,000 independent elements: a variance is known within 2.2 %."""
    assert noise(name, options, 8, jitter(0.1)) == pytest.approx(expected, rel=0.1)


# staleness

UNEVEN = star(latency_s=1e-6, bytes_per_s=1e12, gradient_s=lambda rank, step: (1.0, 1.9, 2.45)[rank])


@pytest.mark.parametrize(("pull_every", "expected"), [
    # rank 0 adds at 1, 2 ... 6 s, rank 1 at 1.9, 3.8, 5.7, ... and rank 2 at 2.45, 4.9, ...; each reads at once
    (1, [[0, 1, 1, 1, 1, 1], [1, 3, 3], [3, 3]]),
    # and reads every second time only: its own additions are in its model, so they do not count
    (2, [[0, 1, 1, 2, 1, 2], [1, 4, 3], [3, 6]])])
def test_staleness_is_how_many_updates_by_others_came_between_reading_and_adding(pull_every, expected):
    """Counted by hand; and an update is divided by the age at which it is applied."""
    def main(host):
        algorithm = ParameterServer(servers=0, pull_every=pull_every, staleness="scale")
        x, ages = np.zeros(3), []
        algorithm.start(host, x, Sgd(0.0, weight_decay=0.0).start(Layout({"x": (3,)}), x))
        added = algorithm.model.shared._added

        def noted(*args):
            ages.append(added(*args))
            return ages[-1]
        algorithm.model.shared._added = noted
        for _ in expected[host.rank]:
            algorithm.step(x, lambda x, hear=None, least=0: host.compute(lambda: np.ones(3)), 0.1)
        algorithm.rest(x)
        return ages, algorithm.answer(x).copy()
    found, answers = zip(*Cluster(3, UNEVEN).run(main), strict=True)
    assert list(found) == expected
    moved = 0.1 * sum(1 / max(1, age) for ages in expected for age in ages)
    assert -answers[0][0] == pytest.approx(moved)


def test_no_more_than_two_models_are_averaged_at_a_time():
    """Three at once would leave one with a negative weight, and the models would leave the range that they began in."""
    slow = star(latency_s=0.3, gradient_s=0.1)         # everybody averages while others do

    class Apart(Constant):
        def __init__(self, rank):
            self.start = np.full(3, float(rank % 2))

        def __call__(self, x):
            assert (x >= 0).all(), x
            assert (x <= 1).all(), x
            return np.zeros(3)
    models, _, _ = run(16, slow, "adpsgd", {}, Apart, 25)
    assert np.ptp(models) < 0.5             # and they do come together


# options

def pairs(name):
    """The algorithm's options with every pair of two that are not at their defaults."""
    found, hints = algorithms.find(name), get_type_hints(algorithms.find(name), include_extras=True)
    default = found().options()
    values = {key: {variant[key] for variant in found.variants if key in variant} for key in default}
    for key, hint in hints.items():
        if key in default and get_origin(hint) is Literal:
            values[key] |= set(get_args(hint))
        elif key in default and get_origin(hint) is Annotated and isinstance(get_args(hint)[1], OneOf):
            values[key] |= {*get_args(hint)[1].names, *(["base-2"] if get_args(hint)[1].base else [])}
        elif key in default and hint is bool:
            values[key] = {True, False}
    for one, other in itertools.combinations(default, 2):
        for a, b in itertools.product(sorted(values[one] - {default[one]}), sorted(values[other] - {default[other]})):
            yield {one: a, other: b}


@pytest.mark.parametrize(("name", "options"), [pytest.param(name, options, id=f"{name}-{options}")
                                               for name in algorithms.names() for options in pairs(name)])
def test_every_two_options_come_to_the_minimum_together_and_never_leave_it_again(name, options):
    def main(host):
        algorithm, task = algorithms.find(name)(**options), Quadratic(host.rank)
        x = task.start()
        losses, rate = [], 0.01 if algorithm.updates_add_up or "slow_momentum" in str(options) else 0.03
        momentum = 0.0 if hasattr(algorithm, "outer_momentum") else 0.9     # the outer one is enough
        algorithm.start(host, x, Sgd(momentum, weight_decay=0.0).start(Layout({"x": x.shape}), x))
        for _ in range(150):
            algorithm.step(x, lambda x, hear=None, least=0: host.compute(task.gradient, x, hear, least), rate)
            losses.append(task.loss(x))
        algorithm.rest(x)
        return np.array(losses) / task.loss(task.start()), task.loss(algorithm.answer(x)) / task.loss(task.start())
    losses, answers = zip(*Cluster(4, jitter(0.1)).run(main), strict=True)
    assert answers[0] < 0.1
    for own in losses:
        learned = own < 0.1
        assert not learned.any() or own[learned.argmax():].max() < 0.25


def test_slow_momentum_begins_where_the_local_steps_do():
    """The phase of all-reduce is none of its gradients: the model does not jump at the first mean after it."""
    def main(host):
        task, losses = Quadratic(host.rank, noise=0.05), []
        x = task.start()
        algorithm = Local(period=4, post_local=40, slow_momentum=0.5)
        algorithm.start(host, x, Sgd(0.9, weight_decay=0.0).start(Layout({"x": x.shape}), x))
        for _ in range(60):
            algorithm.step(x, task.gradient, 0.05)
            losses.append(task.loss(x))
        return losses
    losses = Cluster(4).run(main)[0]
    assert max(losses[40:]) < 2 * losses[39]


# a whole cluster

if __name__ == "__main__":                  # the figures of the documentation
    for parameter in ALL:
        name, options = parameter.values
        print(f"{name:18} {options or ''!s:50}", *(f"{drift(name, options, 8, jitter(share)):6.3f}"
                                                     for share in (0.0, 0.1)), flush=True)
