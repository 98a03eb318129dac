"""The reference kernels against what they are defined by: central differences, and formulas written another way."""

import logging
import subprocess
import sys

import numpy as np
import pytest

from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.api import Arrays, BatchNorm, Convolution, MaxPool, Mixed, Subsample, Tensor
from dsgd_mpi.kernels.load import load
from dsgd_mpi.kernels.reference import Reference
from tests.support.kernel_cases import SMALL, filled, flat_tensors, fresh, measured, output_of, poisoned, weights_of

K = Reference("float64")
STEP = 1e-7                                 # small: a step across a kink of ReLU or max-pool would spoil the difference


def slope(forward, outputs: Tensor, dy, x, direction) -> float:
    """Central difference of <dy, y> as x moves along `direction`."""
    loss = []
    for sign in (1, -1):
        x += sign * STEP * direction
        forward()
        x -= sign * STEP * direction
        loss.append((dy * outputs.value).sum())
    return (loss[0] - loss[1]) / (2 * STEP)


def assert_derivative(operation, inputs: list[Tensor], y: Tensor) -> None:
    """Each gradient, projected on a random direction, is the slope of the loss in that direction."""
    rng = fresh()
    operation.forward(True)
    dy = rng.standard_normal(y.value.shape)
    y.grad[...] = dy
    operation.backward()
    for x in inputs:
        direction = rng.standard_normal(x.value.shape)
        expected = slope(lambda: operation.forward(True), y, dy, x.value, direction)
        scale = np.sqrt((x.grad**2).sum()) + np.sqrt((dy**2).sum())
        assert (x.grad * direction).sum() == pytest.approx(expected, abs=1e-6 * scale)


@pytest.mark.parametrize(("operation", "shape", "add"), SMALL, ids=str)
def test_an_operation_has_its_derivative(operation, shape, add):
    rng = fresh()
    x = filled(K, 1 + 3 * rng.standard_normal(shape))
    weights = flat_tensors(K, weights_of(rng, operation, shape))
    added = [filled(K, rng.standard_normal(output_of(operation, shape)))] if add else []
    y = poisoned(K, output_of(operation, shape))
    about = operation.weights(shape[1:])
    trained = [tensor for name, tensor in weights.items() if about[name].trained]
    assert_derivative(K.bind(operation, Arrays(x, [*weights.values()], y, *added)), [x, *trained, *added], y)


def test_convolution_is_the_sum_of_its_definition():
    rng = fresh()
    x, w = filled(K, rng.standard_normal((2, 5, 4, 3))), Tensor(rng.standard_normal((2, 3, 3, 3)))
    y = poisoned(K, (2, 3, 2, 2))
    K.bind(Convolution(2, 3, 2, 1), Arrays(x, [w], y)).forward(True)
    padded = np.pad(x.value, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for n, i, j, o in np.ndindex(y.value.shape):
        window = padded[n, 2 * i:2 * i + 3, 2 * j:2 * j + 3]
        assert y.value[n, i, j, o] == pytest.approx(np.einsum("klc,ckl->", window, w.value[o]))


def batch_norm_parameters(rng, channels):
    return flat_tensors(K, {"gamma": rng.uniform(0.5, 2, channels), "beta": rng.standard_normal(channels),
                         "mean": rng.standard_normal(channels), "var": rng.uniform(0.5, 2, channels)})


def test_a_step_along_the_statistics_is_the_moving_average():
    rng = fresh()
    x, y = filled(K, 1 + 3 * rng.standard_normal((3, 4, 5, 6))), poisoned(K, (3, 4, 5, 6))
    p = batch_norm_parameters(rng, 6)
    K.bind(BatchNorm(relu=False), Arrays(x, [*p.values()], y)).forward(True)
    pixels = x.value.reshape(-1, 6)
    for name, batch in (("mean", pixels.mean(0)), ("var", pixels.var(0, ddof=1))):
        np.testing.assert_allclose(p[name].value - 0.1 * p[name].grad, 0.9 * p[name].value + 0.1 * batch)


def test_one_pixel_has_no_variance_and_does_no_harm():
    x, y = filled(K, np.ones((1, 1, 1, 2))), poisoned(K, (1, 1, 1, 2))
    p = batch_norm_parameters(fresh(), 2)
    K.bind(BatchNorm(relu=False), Arrays(x, [*p.values()], y)).forward(True)
    np.testing.assert_allclose(p["var"].grad, p["var"].value)
    np.testing.assert_allclose(y.value[0, 0, 0], p["beta"].value)


@pytest.mark.parametrize("relu", [False, True])
def test_inference_normalises_by_the_running_statistics(relu):
    rng = fresh()
    x, y, other = (filled(K, rng.standard_normal((2, 3, 3, 4))) for _ in range(3))
    p = batch_norm_parameters(rng, 4)
    K.bind(BatchNorm(relu), Arrays(x, [*p.values()], y, other)).forward(False)
    gamma, beta, mean, var = (t.value for t in p.values())
    expected = gamma * (x.value - mean) / np.sqrt(var + 1e-5) + beta + other.value
    np.testing.assert_allclose(y.value, np.maximum(expected, 0) if relu else expected)
    assert np.isnan(p["mean"].grad).all()


def test_of_equal_maxima_the_first_gets_the_gradient():
    x, y = filled(K, np.zeros((1, 4, 4, 1))), poisoned(K, (1, 2, 2, 1))
    operation = K.bind(MaxPool(2, 2), Arrays(x, [], y))
    operation.forward(True)
    y.grad[...] = 1
    operation.backward()
    np.testing.assert_array_equal(x.grad[0, :, :, 0], np.tile([[1, 0], [0, 0]], (2, 2)))


def test_subsample_pads_channels_on_both_sides_alike():
    x, y = filled(K, np.ones((1, 2, 2, 2))), poisoned(K, (1, 1, 1, 4))
    K.bind(Subsample(4), Arrays(x, [], y)).forward(True)
    np.testing.assert_array_equal(y.value[0, 0, 0], [0, 1, 1, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_has_its_derivative(smoothing):
    rng = fresh()
    logits, labels = filled(K, rng.standard_normal((5, 4))), rng.integers(0, 4, 5)
    loss = K.cross_entropy(logits, smoothing)
    direction = rng.standard_normal((5, 4))
    values = []
    for sign in (1, -1):
        logits.value += sign * STEP * direction
        values.append(measured(loss, labels))
        logits.value -= sign * STEP * direction
    measured(loss, labels)
    assert (logits.grad * direction).sum() == pytest.approx((values[0] - values[1]) / (2 * STEP), abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_equal_logits_is_the_log_of_the_classes(smoothing):
    logits = filled(K, np.full((3, 10), 1e4))       # large: nothing overflows
    assert measured(K.cross_entropy(logits, smoothing), np.array([0, 5, 9])) == pytest.approx(np.log(10))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_mixed_labels_is_the_mixture_of_the_losses_and_so_is_its_gradient(smoothing):
    rng = fresh()
    logits, both, share = filled(K, rng.standard_normal((1, 4))), rng.integers(0, 4, (2, 1)), np.float32([0.3])
    loss = K.cross_entropy(logits, smoothing)
    (one, gradient), (other, gradient_), (mixed, found) = (
        (measured(loss, labels), logits.grad.copy()) for labels in (*both, Mixed(*both, share)))
    assert mixed == pytest.approx(0.3 * one + 0.7 * other, rel=1e-6)
    np.testing.assert_allclose(found, 0.3 * gradient + 0.7 * gradient_, atol=1e-7)
    assert measured(loss, both[0]) == measured(loss, Mixed(both[0], both[1], np.float32([1])))


def test_unknown_names_and_dtypes_are_named_with_the_way_out():
    with pytest.raises(UsageError, match="'mkl'; use one of reference, onednn, cudnn, auto"):
        load("mkl")
    with pytest.raises(UsageError, match="float16; use float32 or float64"):
        load("reference", "float16")
    with pytest.raises(UsageError, match="cudnn kernels do not run with --device cpu; use --kernels auto"):
        load("cudnn", device="cpu")
    assert load("reference", "float64").dtype == "float64"


def test_auto_falls_back_to_the_reference_with_one_warning(monkeypatch, caplog):
    monkeypatch.setenv("DSGD_ONEDNN", "/nowhere/libdnnl.so")
    with caplog.at_level(logging.WARNING, "dsgd_mpi"):
        assert load("auto", device="cpu").name == "reference"
    (record,) = caplog.records
    assert "slow" in record.message
    assert "/nowhere/libdnnl.so" in record.message


def test_the_reference_loads_no_library():
    program = """import sys; from dsgd_mpi.kernels.load import load; load("reference")
sys.exit("cffi" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
