"""One table of laws for all fast kernels: each agrees with the reference in float64, forward and backward."""

from dataclasses import replace

import numpy as np
import pytest

from dsgd_mpi.arrays.flat import fill, to_numpy
from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.api import Arrays, BatchNorm, Convolution, FoldedConvolution, MaxPool, Mixed, Operation, Tensor
from dsgd_mpi.kernels.cpu.onednn import OneDNN
from dsgd_mpi.kernels.gpu.cudnn import CuDNN
from dsgd_mpi.kernels.gpu.tools import FORMATS, ROW_BUILDS
from dsgd_mpi.kernels.reference import Reference
from tests.support.kernel_cases import (
    CASES,
    SMALL,
    filled,
    flat_tensors,
    fresh,
    measured,
    output_of,
    poisoned,
    unscaled,
    weights_of,
)

ORACLE = Reference("float64")
TOLERANCE = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 2e-2}        # largest error over largest value
KINK = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 0.1}      # so close to zero, rounding decides what ReLU does
ON_CPU = [pytest.param(("onednn", dtype), id=f"onednn-{dtype}") for dtype in ("float32", "bfloat16")]
ON_GPU = [*(pytest.param(("emulated", dtype), id=f"emulated-{dtype}") for dtype in TOLERANCE),
          *(pytest.param(("cudnn", dtype), id=f"cudnn-{dtype}", marks=pytest.mark.gpu) for dtype in TOLERANCE)]


@pytest.fixture(scope="module", params=[*ON_CPU, *ON_GPU])
def fast(request):
    return unscaled(*request.param)


def pair(fast, values):
    """The same activations for the kernels under test and for the oracle, after rounding to their dtype."""
    x = filled(fast, values.astype("float32"))
    return x, filled(ORACLE, fast.get(x.value).astype("float64"))


def parameters(fast, **values):
    """The same parameters, out of flat vectors that start at an odd offset, in float32 and float64."""
    narrow = flat_tensors(fast, {name: array.astype("float32") for name, array in values.items()}, 3)
    wide = flat_tensors(ORACLE, {name: to_numpy(t.value) for name, t in narrow.items()})
    return narrow, wide


def outputs(fast, shape):
    return poisoned(fast, shape), poisoned(ORACLE, shape)


def give(fast, y: Tensor, y_: Tensor, dy) -> None:
    """The same gradient for both outputs, after rounding."""
    fast.put(dy.astype("float32"), y.grad)
    y_.grad[...] = fast.get(y.grad)


def assert_close(fast, found, expected, terms=1.0) -> None:
    found = to_numpy(found) if found.dtype == np.float32 else fast.get(found)
    assert np.isfinite(found).all()
    # A sum over all pixels may cancel, and the roundings of its terms add up like the root of their number.
    scale = max(np.abs(expected).max(), terms if expected.ndim == 1 else 0.0)
    assert np.abs(found - expected).max() <= TOLERANCE[fast.dtype] * scale


def assert_alike(fast, operation, operation_, inputs, inputs_, y, y_, rng, safe=1.0, term_=None) -> None:
    """Inference, training, gradient. `safe` is zero where the gradient depends on how a number was rounded.

    `term_`: what the operation under test adds to y's gradient.
    """
    for training in (False, True):
        operation.forward(training)
        operation_.forward(training)
        assert_close(fast, y.value, y_.value)
    give(fast, y, y_, rng.standard_normal(y_.value.shape) * safe)
    if term_:
        y_.grad += term_.value
    operation.backward()
    operation_.backward()
    for x, x_ in zip(inputs, inputs_, strict=True):
        assert_close(fast, x.grad, x_.grad, np.sqrt(y_.value[..., 0].size * (2 if term_ else 1)))


def test_every_back_end_computes_every_operation_and_the_table_has_them_all():
    assert Reference.operations.keys() == OneDNN.operations.keys() == CuDNN.operations.keys()
    for cases in (CASES, SMALL):
        assert {type(operation) for operation, *_ in cases} == Reference.operations.keys() - {FoldedConvolution}


def test_an_operation_that_a_back_end_does_not_compute_is_named_with_the_way_out():
    with pytest.raises(UsageError, match=r"reference kernels do not support Operation; .* Reference\.operations"):
        ORACLE.bind(Operation(), Arrays(Tensor(None), [], Tensor(None)))


@pytest.mark.parametrize(("operation", "shape", "add"), CASES, ids=str)
def test_an_operation_and_its_gradients_agree_with_the_reference(fast, operation, shape, add):
    check(fast, operation, shape, add, with_term=False)


@pytest.mark.parametrize("fast", ON_GPU, indirect=True)
@pytest.mark.parametrize(("operation", "shape", "add"), [
    case for case in CASES if type(case[0]) in CuDNN.takes_term], ids=str)
def test_an_operation_that_takes_a_term_adds_it_to_the_gradient_of_its_result(fast, operation, shape, add):
    check(fast, operation, shape, add, with_term=True)


@pytest.mark.parametrize(("dtype", "vec"), [(dtype, vec) for dtype in ("float32", "bfloat16")
                                            for vec in ROW_BUILDS[FORMATS[dtype].bits][1:]])
def test_each_build_of_batch_norm_that_may_be_chosen_agrees_with_the_reference(dtype, vec, monkeypatch):
    fast = unscaled("emulated", dtype)
    monkeypatch.setattr(fast, "chosen", lambda key, builds, prepare: builds[builds.index(vec)])
    for shape in ((4, 14, 14, 16), (1, 8, 8, 64), (16, 1, 1, 8)):
        for add in (False, True):
            check(fast, BatchNorm(relu=True), shape, add, with_term=add)


def check(fast, operation, shape, add, with_term) -> None:
    """An operation and its gradients agree with the reference."""
    rng = fresh()
    x = rng.standard_normal(shape)
    if isinstance(operation, MaxPool):
        x = np.maximum(x, 0)                # many ties, as after a ReLU
    if isinstance(operation, BatchNorm):
        x += 1
    x, x_ = pair(fast, x)
    p, p_ = parameters(fast, **weights_of(rng, operation, shape))
    other, other_ = pair(fast, rng.standard_normal(output_of(operation, shape))) if add else (None, None)
    y, y_ = outputs(fast, output_of(operation, shape))
    arrays_, safe = Arrays(x_, [*p_.values()], y_, other_), 1.0
    if getattr(operation, "relu", False):
        ORACLE.bind(replace(operation, relu=False), arrays_).forward(True)
        safe = np.abs(y_.value) > KINK[fast.dtype]
    term, term_ = pair(fast, rng.standard_normal(y_.value.shape) * safe) if with_term else (Tensor(None), None)
    arrays = Arrays(x, [*p.values()], y, other, term.value)
    assert_alike(fast, fast.bind(operation, arrays), ORACLE.bind(operation, arrays_),
                 [x, *p.values(), *add * [other]], [x_, *p_.values(), *add * [other_]], y, y_, rng, safe, term_)


def test_convolution_of_images_asks_no_gradient_of_them(fast):
    rng, operation = fresh(), Convolution(4, window=3, pad=1)
    x, x_ = pair(fast, rng.standard_normal((2, 8, 8, 3)))
    p, p_ = parameters(fast, w=rng.standard_normal((4, 3, 3, 3)))
    y, y_ = outputs(fast, (2, 8, 8, 4))
    assert_alike(fast, fast.bind(operation, Arrays(Tensor(x.value), [p["w"]], y)),
                 ORACLE.bind(operation, Arrays(Tensor(x_.value), [p_["w"]], y_)), [p["w"]], [p_["w"]], y, y_, rng)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(("convolution", "shape"), [
    (Convolution(16, 3, 1, 1), (2, 8, 8, 16)), (Convolution(33, 3, 2, 1), (2, 7, 9, 17)),
    (Convolution(5, 7, 2, 3), (1, 15, 13, 3)), (Convolution(256, 1, 1, 0), (2, 7, 7, 64)),
    (Convolution(4, 1, 2, 0), (3, 9, 7, 1))], ids=str)
def test_folded_convolution_is_batch_norm_of_a_convolution(fast, convolution, shape, relu, add):
    rng, operation = fresh(), FoldedConvolution(convolution, BatchNorm(relu))
    x, x_ = pair(fast, rng.standard_normal(shape))
    other, other_ = pair(fast, rng.standard_normal(output_of(operation, shape))) if add else (None, None)
    p, p_ = parameters(fast, **weights_of(rng, operation, shape))
    y, y_ = outputs(fast, output_of(operation, shape))
    between = poisoned(ORACLE, y_.value.shape)
    weight, *norm = p_.values()
    folded = fast.bind(operation, Arrays(x, [*p.values()], y, other))
    for _ in range(2):                      # the weights and statistics of the moment of folding
        folded.fold()
        ORACLE.bind(convolution, Arrays(x_, [weight], between)).forward(False)
        ORACLE.bind(operation.norm, Arrays(between, norm, y_, other_)).forward(False)
        for name in p:
            fill(p[name].value, to_numpy(p[name].value) + 0.5)
        folded.forward(False)
        assert_close(fast, y.value, y_.value)
        for name in p:
            p_[name].value[...] = to_numpy(p[name].value)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(fast, smoothing, mixed):
    rng = fresh()
    (z, z_), labels = pair(fast, 3 * rng.standard_normal((7, 10))), rng.integers(0, 10, 7)
    if mixed:                               # some with themselves
        labels = Mixed(labels, np.where(labels < 5, labels, 9 - labels), rng.random(7).astype(np.float32))
    loss, loss_ = (measured(k.cross_entropy(logits, smoothing), labels) for k, logits in ((fast, z), (ORACLE, z_)))
    assert loss == pytest.approx(loss_, rel=TOLERANCE[fast.dtype])
    assert_close(fast, z.grad, z_.grad)


def test_accumulate_adds_in_place(fast):
    rng = fresh()
    for shape in [(2, 3, 3, 5), (2, 5, 3, 3), (1, 7)]:                  # two of one size
        (total, total_), (term, term_) = pair(fast, rng.standard_normal(shape)), pair(fast, rng.standard_normal(shape))
        fast.accumulate(total.value, term.value)
        assert_close(fast, total.value, total_.value + term_.value)


def test_operations_made_early_work_after_the_shared_buffers_have_grown(fast):
    rng = fresh()

    def make(size, channels):
        x, x_ = pair(fast, rng.standard_normal((1, size, size, channels)))
        p, p_ = parameters(fast, w=rng.standard_normal((channels, channels, 3, 3)))
        y, y_ = outputs(fast, (1, size, size, channels))
        operation = Convolution(channels, window=3, pad=1)
        return (fast, fast.bind(operation, Arrays(x, [p["w"]], y)), ORACLE.bind(operation, Arrays(x_, [p_["w"]], y_)),
                [x, p["w"]], [x_, p_["w"]], y, y_, rng)

    for case in [make(4, 4), make(16, 128)]:
        assert_alike(*case)


def test_what_is_put_comes_back(fast):
    values = np.float32([[0, 1, -2.5], [1 / 3, 1e-20 if fast.dtype != "float16" else 1e-4, 3e4]])
    x = fast.empty(values.shape)
    fast.put(values, x)
    rounding = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}
    np.testing.assert_allclose(fast.get(x), values, rtol=rounding[fast.dtype])
