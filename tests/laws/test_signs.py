"""Signs with error feedback: what is sent and what is left add up, to no more than a few steps, in a bit a number."""

import numpy as np
import pytest

from dsgd_mpi.algorithms.ef_signsgd import ErrorFeedbackSigns
from dsgd_mpi.arrays.flat import Layout, beside, to_numpy
from dsgd_mpi.net.signs import add, pack
from dsgd_mpi.optim.sgd import Sgd
from tests.support.quadratic import in_one_piece, on

LAYOUT = Layout({"w": (30, 40), "b": (37,)}, {"mean": (2,)})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 7, 8, 33, 64, 65, 1000])
def test_signs_and_sizes_come_back(size, dtype):
    u = np.random.default_rng(size).normal(size=size).astype(dtype)
    parts = [slice(0, size // 2), slice(size // 2, size)] if size > 1 else [slice(0, 1)]
    packed = pack(u, parts)
    assert packed.nbytes <= size / 8 + (len(parts) + 1) * u.itemsize
    into = np.ones_like(u)
    add(packed, parts, into)
    for part in parts:
        assert np.allclose(into[part] - 1, np.sign(u[part]) * abs(u[part]).mean(), rtol=1e-5)


def test_what_signs_leave_out_is_remembered_and_stays_bounded(world):
    """Sent or remembered: without momentum x has moved by all steps, at the rates of their own time, but for those."""
    steps = 60

    def main(host):
        algorithm, draw = ErrorFeedbackSigns(), np.random.default_rng((8, host.rank))
        x, total, rates = on(host, np.zeros(LAYOUT.size)), np.zeros(LAYOUT.size), 1 / (10 + np.arange(steps))
        algorithm.start(host, x, Sgd(momentum=0, weight_decay=0.0).start(LAYOUT, x))
        for rate in rates:
            g = draw.normal(size=LAYOUT.size)
            total += rate * g
            algorithm.step(x, in_one_piece(host, lambda x, g=g: beside(x, g)), rate)
            largest = np.abs(to_numpy(algorithm.error)).max()
            assert largest < 12 * rates[0]
        algorithm.rest(x)
        return x, total[: LAYOUT.parameters] + to_numpy(algorithm.error), host.traffic.bytes_sent
    models, moved, sent = zip(*world.run(main), strict=True)
    for x in models:
        assert np.array_equal(x, models[0])
        assert np.allclose(x[: LAYOUT.parameters], -np.mean(moved, 0), rtol=0, atol=1e-12)
    if world.simulated:                     # of 64-bit numbers: two sizes, and 1237 bits; besides, the mean of two
        means = 2 * (world.size - 1) * 2 * 8 // world.size
        assert sent[0] == steps * ((world.size - 1) * 8 * (2 + 20) + means)
