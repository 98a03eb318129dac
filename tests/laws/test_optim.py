"""What every optimizer found promises, whatever it is: the files are found by their names, and so are their options."""

import dataclasses
import doctest
import typing

import numpy as np
import pytest

from dsgd_mpi import optim
from dsgd_mpi.arrays.flat import Layout, fill, to_numpy
from dsgd_mpi.kernels.api import STATISTICS_RATE
from dsgd_mpi.kernels.load import load
from dsgd_mpi.kernels.reference import Reference
from dsgd_mpi.optim import api
from tests.support.kernel_cases import loaded

LAYOUT = Layout({"conv": (30, 20, 3, 3), "scale": (30,), "shift": (30,), "linear": (10, 500), "bias": (10,)},
                {"mean": (30,), "var": (30,)})
LARGE = Layout({"a": (1200, 1000), "b": (401_003,)}, {"r": (501,)})     # worth several threads


def ways(found):
    """The optimizer with its defaults, and with each other choice that its options have."""
    yield found()
    for item in dataclasses.fields(found):
        hint = typing.get_type_hints(found)[item.name]
        choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else (True, False)
        if hint is bool or typing.get_origin(hint) is typing.Literal:
            yield from (found(**{item.name: choice}) for choice in choices if choice != item.default)


OPTIMIZERS = [way for name in optim.names() for way in ways(optim.find(name))]
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)


def fresh(optimizer, *args):
    return dataclasses.replace(optimizer).start(*args)


def drawn(layout, dtype="float32", seed=0):
    """A model, some of whose weights are zero, and gradients, one after the other."""
    draw = np.random.default_rng(seed)
    x = draw.standard_normal(layout.size).astype(dtype)
    x[layout.slices[layout.trained[-1]]] = 0
    return x, (draw.standard_normal(layout.size).astype(dtype) for _ in range(100))


def taken(optimizer, layout, kernels=None, steps=5, dtype="float32", put=lambda values: values):
    """Where some steps lead to: x and the state, on the host."""
    x, gradients = drawn(layout, dtype)
    x = put(x)
    started = fresh(optimizer, layout, x, kernels)
    for step, g in zip(range(steps), gradients, strict=False):
        started.update(x, put(g), 0.1 / (1 + step))
    return {"x": to_numpy(x), **{name: to_numpy(array) for name, array in started.state.items()}}


def test_modules_that_define_no_optimizer_are_none():
    assert {"sgd", "adamw", "lars", "lamb"} <= set(optim.names())
    assert not {"api", "schedule"} & set(optim.names())


def test_the_example_in_the_docstring_runs():
    assert doctest.testmod(api).attempted > 3
    assert not doctest.testmod(api).failed


@every_optimizer
@pytest.mark.parametrize("kernels", ["onednn", "emulated", pytest.param("cudnn", marks=pytest.mark.gpu)])
def test_all_kernels_do_what_the_rule_does_in_float64(optimizer, kernels):
    k = loaded(kernels, "float32")
    exact = taken(optimizer, LAYOUT, Reference("float64"), dtype="float64")
    found = taken(optimizer, LAYOUT, k, put=lambda values: on(k, values))
    for name, expected in exact.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=3e-6)


def on(kernels, values):
    """A flat vector of the kernels' own, of those values."""
    vector = kernels.zeros(values.size)
    fill(vector, values)
    return vector


@every_optimizer
def test_the_gradient_is_left_alone_and_statistics_move_at_their_own_rate(optimizer):
    x, gradients = drawn(LAYOUT, "float64")
    g = next(gradients)
    before, as_given = x.copy(), g.copy()
    fresh(optimizer, LAYOUT, x).update(x, g, 0.1)
    tail = slice(LAYOUT.parameters, None)
    np.testing.assert_array_equal(g, as_given)
    np.testing.assert_allclose(x[tail], before[tail] - STATISTICS_RATE * g[tail], rtol=1e-6)
    assert (x[: LAYOUT.parameters] != before[: LAYOUT.parameters]).all()


@every_optimizer
def test_what_changed_is_asked_for_in_one_place(optimizer):
    (x, gradients), (y, _) = drawn(LAYOUT), drawn(LAYOUT)
    one, other = fresh(optimizer, LAYOUT, x), fresh(optimizer, LAYOUT, y)
    for _, g in zip(range(3), gradients, strict=False):
        before = x.copy()
        change = one.change(x, g, 0.1)
        other.update(y, g, 0.1)
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(change, x - before)


class Cut(Reference):
    """Parts of an odd size, the last first."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def in_parts(self, count, work):
        for start in reversed(range(0, count, self.size)):
            work(slice(start, min(start + self.size, count)))


@every_optimizer
def test_bits_do_not_depend_on_how_the_vectors_are_cut(optimizer):
    whole = taken(optimizer, LAYOUT)
    for size in (1, 17, 1000, LAYOUT.size):
        for name, values in taken(optimizer, LAYOUT, Cut(size), steps=2 if size == 1 else 5).items():
            expected = whole if size > 1 else taken(optimizer, LAYOUT, steps=2)
            np.testing.assert_array_equal(values, expected[name])


@every_optimizer
def test_bits_do_not_depend_on_the_number_of_threads(optimizer):
    onednn = load("onednn")
    before, found = onednn.c.omp_get_max_threads(), []
    try:
        for threads in (1, 2, 3):
            onednn.set_threads(threads)
            found.append(taken(optimizer, LARGE, onednn, steps=2))
    finally:
        onednn.set_threads(before)
    for other in found[1:]:
        for name, values in found[0].items():
            np.testing.assert_array_equal(values, other[name])


@every_optimizer
def test_a_slice_of_a_vector_is_stepped_as_a_vector_is(optimizer):
    """Of no network: what is one-dimensional is neither adapted nor told apart."""
    n = 1000
    x, g = np.random.default_rng(0).standard_normal((2, 3 * n))
    part, plain = slice(n, 2 * n), Layout({"x": (n,)})
    before, alone = x.copy(), x[part].copy()
    one, other = fresh(optimizer, plain, x), fresh(optimizer, plain, alone)
    for _ in range(3):
        one.update(x[part], g[part], 0.1)
        other.update(alone, g[part], 0.1)
    np.testing.assert_array_equal(x[part], alone)
    np.testing.assert_array_equal(x[:n], before[:n])
    np.testing.assert_array_equal(x[2 * n :], before[2 * n :])
    assert (x[part] != before[part]).all()
