"""What every optimizer found promises, whatever it is: the files are found by their names, and so are their options."""

import dataclasses
import doctest
import json
import typing
from pathlib import Path

import h5py
import numpy as np
import pytest

from dsgd_mpi import optim
from dsgd_mpi.arrays.flat import Layout, fill, to_numpy
from dsgd_mpi.config import build
from dsgd_mpi.kernels.api import STATISTICS_RATE
from dsgd_mpi.kernels.load import load
from dsgd_mpi.kernels.reference import Reference
from dsgd_mpi.optim import api
from tests.support.jobs import run
from tests.support.kernel_cases import loaded
from tests.support.numpy_device import NumpyDevice

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


def label(optimizer):
    """Its name, and what is not as by default."""
    default = type(optimizer)().options()
    return "-".join([optimizer.name, *(f"{key}={value}" for key, value in optimizer.options().items()
                                       if value != default[key])])


OPTIMIZERS = [way for name in optim.names() for way in ways(optim.find(name))]
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=label)


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


@every_optimizer
def test_on_a_device_the_bits_are_those_on_the_host(optimizer):
    """Nothing mixes arrays of the two, and nothing is read before it is there."""
    device = NumpyDevice()
    for name, values in taken(optimizer, LAYOUT, put=device.array).items():
        np.testing.assert_array_equal(values, taken(optimizer, LAYOUT)[name])


@every_optimizer
@pytest.mark.parametrize("kernels", ["none", "emulated"])
def test_stopped_and_resumed_equals_never_stopped_to_the_bit(optimizer, kernels):
    k = None if kernels == "none" else loaded(kernels, "float32")
    (x, gradients), rates = drawn(LAYOUT), [0.1, 0.05, 0.2, 0.1, 0.01, 0.3]
    gradients = [next(gradients) for _ in rates]
    never = fresh(optimizer, LAYOUT, x, k)
    for place, (g, rate) in enumerate(zip(gradients, rates, strict=True)):
        if place == 3:
            y, kept = x.copy(), {name: array.copy() for name, array in never.state.items()}
        never.update(x, g, rate)
    resumed = fresh(optimizer, LAYOUT, y, k)
    for name, array in resumed.state.items():
        fill(array, kept[name])
    for g, rate in zip(gradients[3:], rates[3:], strict=True):
        resumed.update(y, g, rate)
    np.testing.assert_array_equal(x, y)
    for name, array in never.state.items():
        np.testing.assert_array_equal(array, resumed.state[name])


@pytest.mark.parametrize("name", optim.names())
def test_it_trains_a_network_and_goes_on_as_if_never_stopped(name, tmp_path):
    def trained(*words):
        start = f"from dsgd_mpi import optim; optim.__path__[:] = {list(optim.__path__)}; "\
                "from dsgd_mpi.train import main; main()"
        status, output, errors = run("-c", start, "--threads", 1, *words, limit_s=120)
        assert (status, errors) == (0, ""), output + errors

    def end(folder):
        with h5py.File(max(folder.glob("checkpoint-*")) / "rank0.h5") as file:
            return {"x": file["x"][()], **{key: each[()] for key, each in file["optimizer"].items()}}
    words = ("--optimizer", name, "--batch", 8, "--schedule", "constant", "--warmup", 0, "--lr", 0.002,
             "--log-every", 1)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trained(*words, "--steps", 6, "--out", whole)
    trained(*words, "--steps", 3, "--out", parts)
    half = end(parts)
    trained("--resume", parts, "--steps", 6)
    expected, found = end(whole), end(parts)
    assert expected.keys() == found.keys() == {"x", *optim.find(name).vectors, *["t"] * optim.find(name).counts}
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values)
        assert (found[key] != half[key]).any()
    lines = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert np.isfinite([line["loss"] for line in lines]).all()
    summary = json.loads((parts / "summary.json").read_text())
    assert (summary["optimizer"], summary["optimizer_options"]) == (name, optim.find(name)().options())


# what others say of single ones

RECORDED = json.loads((Path(__file__).parent / "torch_updates.json").read_text())
PATHS = [(name, options) for name, paths in RECORDED["paths"].items() for options in paths]


@pytest.mark.parametrize(("name", "options"), PATHS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_pytorch_s_optimizers_lead_to_the_same_places(name, options, dtype):
    optimizer = build(optim.find(name), dict(pair.split("=") for pair in options.split()), name)
    x = np.array(RECORDED["x"], dtype)
    optimizer.start(Layout({"x": x.shape}), x)
    steps = list(zip(RECORDED["gradients"], RECORDED["lr"], RECORDED["paths"][name][options], strict=True))
    assert len(steps) == 20
    for g, lr, expected in steps:
        optimizer.update(x, np.array(g, dtype), lr)
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-12 if dtype == "float64" else 1e-6)


def paper(step, options, layout=LAYOUT, steps=5):
    """Where `step(w, g, state, eta, decay, adapted)` leads to, layer by layer, in float64."""
    x, gradients = drawn(layout, "float64")
    states = {name: {"m": 0.0, "v": 0.0, "t": 0} for name in layout.trained}
    for place, g in zip(range(steps), gradients, strict=False):
        w, dw = layout.views(x), layout.views(g)
        for name, state in states.items():
            adapted = w[name].ndim > 1 or options["adapt"] == "all"
            decays = adapted if options["decay"] == "adapted" else w[name].ndim > 1 or options["decay"] == "all"
            w[name][...] = step(w[name], dw[name], state, 0.1 / (1 + place),
                                options["weight_decay"] if decays else 0, adapted)
    return x[: layout.parameters]


def lars(options):
    """Algorithm 1 of arXiv:1708.03888."""
    def step(w, g, state, gamma, beta, adapted):
        local = 1.0
        size, slope = np.sqrt(np.sum(w**2)), np.sqrt(np.sum(g**2))
        if adapted and size > 0:
            local = options["trust"] * size / (slope + beta * size)
        state["v"] = options["momentum"] * state["v"] + gamma * local * (g + beta * w)
        return w - state["v"]
    return step


def lamb(options):
    """Algorithm 2 of arXiv:1904.00962."""
    def step(w, g, state, eta, decay, adapted):
        beta1, beta2 = options["beta1"], options["beta2"]
        state["t"] += 1
        state["m"] = beta1 * state["m"] + (1 - beta1) * g
        state["v"] = beta2 * state["v"] + (1 - beta2) * g**2
        m, v = state["m"] / (1 - beta1 ** state["t"]), state["v"] / (1 - beta2 ** state["t"])
        r = m / (np.sqrt(v) + options["epsilon"]) + decay * w
        size, length = np.sqrt(np.sum(w**2)), np.sqrt(np.sum(r**2))
        return w - eta * (size / length if adapted and size > 0 else 1) * r
    return step


@pytest.mark.parametrize("optimizer", [each for each in OPTIMIZERS if each.name in ("lars", "lamb")], ids=label)
def test_lars_and_lamb_are_their_papers(optimizer):
    options = optimizer.options()
    expected = paper({"lars": lars, "lamb": lamb}[optimizer.name](options), options)
    found = taken(optimizer, LAYOUT, dtype="float64")["x"][: LAYOUT.parameters]
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_what_is_no_weight_need_not_decay(name):
    """Where the gradient is zero, decay is all that moves."""
    x, _ = drawn(LAYOUT)
    x[: LAYOUT.parameters] += 10
    before, layers = LAYOUT.views(x.copy()), LAYOUT.views(x)
    optimizer = optim.find(name)(weight_decay=0.1, decay="weights").start(LAYOUT, x)
    optimizer.update(x, np.zeros_like(x), 0.1)
    for key in LAYOUT.trained:
        assert (layers[key] != before[key]).all() if layers[key].ndim > 1 else (layers[key] == before[key]).all(), key
