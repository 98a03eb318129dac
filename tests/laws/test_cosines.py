"""Sums of cosines: an orthonormal transform by blocks; of a momentum the large ones are sent, the others stay."""

import numpy as np
import pytest

from dsgd_mpi.algorithms.demo import DecoupledMomentum
from dsgd_mpi.arrays.flat import Layout, beside, to_numpy
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.cosines import Cosines, cosines
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.net.sparse import Sparse
from dsgd_mpi.optim.adamw import AdamW
from dsgd_mpi.optim.sgd import Sgd
from tests.support.quadratic import Quadratic, in_one_piece, on, train

LAYOUT = Layout({"conv": (16, 3, 3, 3), "w": (10, 33), "b": (37,)}, {"mean": (2,)})
SHAPES = [LAYOUT.shapes[name] for name in LAYOUT.trained]


def noise(*seed):
    return np.random.default_rng(seed).normal(size=LAYOUT.size)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_transform_is_that_of_the_definition_and_comes_back(dtype):
    """Of the convolution: a 16 x 27 matrix in blocks of 4 x 3, of which one is taken by the formula."""
    u = noise(1)[: LAYOUT.parameters].astype(dtype)
    found = Cosines(SHAPES, 4, u)
    coefficients = found.of(u)
    assert coefficients.dtype == found.back(coefficients).dtype == dtype
    assert np.allclose(found.back(coefficients), u, rtol=0, atol=1e-5 if dtype == "float32" else 1e-13)
    assert np.linalg.norm(coefficients) == pytest.approx(np.linalg.norm(u), rel=1e-5)
    block = u[: 16 * 27].reshape(16, 27)[4:8, 6:9]
    there = coefficients[12 * (9 + 2) : 12 * (9 + 3)].reshape(4, 3)     # nine blocks in a row: the third of the second
    for k, scale in enumerate([0.5**0.5, 1, 1, 1]):
        for m, other in enumerate([0.5**0.5, 1, 1]):
            total = sum(block[i, j] * np.cos(np.pi * k * (i + 0.5) / 4) * np.cos(np.pi * m * (j + 0.5) / 3)
                        for i in range(4) for j in range(3))
            assert there[k, m] == pytest.approx(scale * other * (2 / 4 * 2 / 3) ** 0.5 * total, abs=1e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_the_cosines_are_orthonormal(n):
    assert np.allclose(cosines(n) @ cosines(n).T, np.eye(n), rtol=0, atol=1e-12)


def test_the_largest_of_each_block_are_found():
    u = noise(2)[: LAYOUT.parameters]
    found = Cosines(SHAPES, 4, u)
    assert {high * wide for _, (_, high, _, wide) in found.cuts} == {12, 6, 1}      # 37 has no divisor but 1
    places = found.largest(u, 5)
    assert len(set(places)) == len(places) == 36 * 5 + 55 * 5 + 37
    for begin, end, size in ((0, 432, 12), (432, 762, 6), (762, 799, 1)):
        for block in range(begin, end, size):
            inside = [place - block for place in places if block <= place < block + size]
            assert {*inside} == {*np.argsort(abs(u[block : block + size]))[-5:]}


def test_a_mean_of_senders_is_over_those_that_have_sent(world):
    def main(host):
        u, places = on(host, np.full(6, 1.0 + host.rank)), on(host, np.array([0, 1 + host.rank % 2]))
        Sparse(host).mean(u, places, of_senders=True)
        host.settle()
        return u
    ranks = 1.0 + np.arange(world.size)
    expected = [ranks.mean(), ranks[::2].mean(), ranks[1::2].mean() if world.size > 1 else 0.0, 0, 0, 0]
    assert np.allclose(world.run(main), expected, rtol=0, atol=1e-14)


def test_with_all_coefficients_a_step_is_the_sign_of_the_mean_gradient(world):
    """And no momentum is left; weight decay shrinks the model by itself."""
    def main(host):
        algorithm, rates = DecoupledMomentum(largest=10**6), 0.1 / (1 + np.arange(5))
        x = on(host, np.ones(LAYOUT.size))
        sgd = Sgd(weight_decay=0.5).start(LAYOUT, x)
        algorithm.start(host, x, sgd)
        for step, rate in enumerate(rates):
            algorithm.step(x, in_one_piece(host, lambda x, step=step: beside(x, noise(step, host.rank))), rate)
        algorithm.rest(x)
        assert np.abs(to_numpy(sgd.state["v"])).max() == 0
        return x
    x = np.ones(LAYOUT.parameters)
    for step, rate in enumerate(0.1 / (1 + np.arange(5))):
        g = np.mean([noise(step, rank) for rank in range(world.size)], 0)[: LAYOUT.parameters]
        x -= rate * (np.sign(g) + 0.5 * x)
    for found in world.run(main):
        assert np.allclose(found[: LAYOUT.parameters], x, rtol=0, atol=1e-12)


def test_what_is_sent_is_taken_out_of_the_momentum_and_what_stays_grows(world):
    """By the rule, of one rank after the other, with k = 3 of at most 12."""
    steps = 4

    def main(host):
        algorithm = DecoupledMomentum(largest=3, chunk=4, decay=0.9)
        x = on(host, np.zeros(LAYOUT.size))
        sgd = Sgd(weight_decay=0.0).start(LAYOUT, x)
        algorithm.start(host, x, sgd)
        for step in range(steps):
            algorithm.step(x, in_one_piece(host, lambda x, step=step: beside(x, noise(step, host.rank))), 0.5**step)
        algorithm.rest(x)
        return x, sgd.state["v"]
    x, ms, found = np.zeros(LAYOUT.parameters), np.zeros((world.size, LAYOUT.parameters)), Cosines(SHAPES, 4, noise(0))
    for step in range(steps):
        total, senders = np.zeros((2, LAYOUT.parameters))
        for rank, m in enumerate(ms):
            m *= 0.9
            m += noise(step, rank)[: LAYOUT.parameters]
            q, sent = found.of(m), np.zeros(LAYOUT.parameters)
            places = found.largest(q, 3)
            sent[places] = q[places]
            total += sent
            senders[places] += 1
            m -= found.back(sent)
        x -= 0.5**step * np.sign(found.back(total / np.maximum(senders, 1)))
    for (model, m), expected in zip(world.run(main), ms, strict=True):
        assert np.allclose(model[: LAYOUT.parameters], x, rtol=0, atol=1e-12)
        assert np.allclose(m, expected, rtol=0, atol=1e-12)


def test_another_optimizer_is_refused():
    x = np.zeros(LAYOUT.size)
    with pytest.raises(UsageError, match="demo replaces the momentum of sgd, found --optimizer adamw; use sgd, or dgc"):
        DecoupledMomentum().start(Cluster(1).hosts[0], x, AdamW().start(LAYOUT, x))


def test_decoupled_momentum_learns_from_few_coefficients():
    """A fifth of them, of 40 elements in blocks of 10."""
    task, demo = Quadratic(), {"largest": 2, "chunk": 10}
    x, _ = Cluster(2).run(lambda host: train(host, DecoupledMomentum(**demo), Quadratic(host.rank), 400, 0.005)[0])
    assert task.loss(x) < 0.05 * task.loss(task.start())
