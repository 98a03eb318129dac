"""One table of laws for all fast kernels: each agrees with the reference in float64, forward and backward."""

import numpy as np
import pytest

from dsgd_mpi.arrays.flat import fill, to_numpy
from dsgd_mpi.kernels.api import Tensor
from dsgd_mpi.kernels.reference import Reference
from tests.support.kernel_cases import filled, flat_tensors, fresh, measured, poisoned, unscaled

ORACLE = Reference("float64")
TOLERANCE = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 2e-2}        # largest error over largest value
KINK = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 0.1}      # so close to zero, rounding decides what ReLU does
HERE = [("onednn", "float32"), ("onednn", "bfloat16"), *(("emulated", dtype) for dtype in TOLERANCE)]


@pytest.fixture(scope="module", params=[
    *(pytest.param(each, id="-".join(each)) for each in HERE),
    *(pytest.param(("cudnn", dtype), id=f"cudnn-{dtype}", marks=pytest.mark.gpu) for dtype in TOLERANCE)])
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


def assert_close(fast, found, expected) -> None:
    found = to_numpy(found) if found.dtype == np.float32 else fast.get(found)
    assert np.isfinite(found).all()
    # A sum over all pixels may cancel: it is measured against its terms, which are of order one.
    scale = max(np.abs(expected).max(), 1.0 if expected.ndim == 1 else 0.0)
    assert np.abs(found - expected).max() <= TOLERANCE[fast.dtype] * scale


def assert_alike(fast, operation, operation_, inputs, inputs_, y, y_, rng, safe=1.0) -> None:
    """Inference, training, gradient. `safe` is zero where the gradient depends on how a number was rounded."""
    for training in (False, True):
        operation.forward(training)
        operation_.forward(training)
        assert_close(fast, y.value, y_.value)
    give(fast, y, y_, rng.standard_normal(y_.value.shape) * safe)
    operation.backward()
    operation_.backward()
    for x, x_ in zip(inputs, inputs_, strict=True):
        assert_close(fast, x.grad, x_.grad)


def out(size, window, stride, pad):
    return (size + 2 * pad - window) // stride + 1


@pytest.mark.parametrize(("n", "h", "w", "c", "o", "window", "stride", "pad"), [
    (2, 8, 8, 16, 16, 3, 1, 1), (4, 14, 14, 32, 64, 3, 2, 1), (2, 7, 9, 17, 33, 3, 2, 1), (3, 28, 28, 1, 16, 3, 1, 1),
    (2, 32, 32, 3, 16, 3, 1, 1), (1, 15, 13, 3, 5, 7, 2, 3), (2, 64, 64, 3, 64, 7, 2, 3), (2, 8, 8, 16, 32, 1, 2, 0),
    (2, 7, 7, 64, 256, 1, 1, 0), (1, 1, 1, 8, 8, 1, 1, 0), (1, 5, 5, 1, 1, 3, 1, 1), (1, 9, 7, 13, 4, 1, 2, 0),
    (2, 9, 7, 64, 72, 3, 2, 1), (3, 6, 6, 68, 33, 3, 1, 1), (3, 5, 7, 13, 9, 1, 1, 0)])
def test_convolution(fast, n, h, w, c, o, window, stride, pad):
    rng = fresh()
    x, x_ = pair(fast, rng.standard_normal((n, h, w, c)))
    p, p_ = parameters(fast, w=rng.standard_normal((o, c, window, window)))
    y, y_ = outputs(fast, (n, out(h, window, stride, pad), out(w, window, stride, pad), o))
    assert_alike(fast, fast.convolution(x, p["w"], y, stride, pad), ORACLE.convolution(x_, p_["w"], y_, stride, pad),
                 [x, p["w"]], [x_, p_["w"]], y, y_, rng)


def test_convolution_of_images_asks_no_gradient_of_them(fast):
    rng = fresh()
    x, x_ = pair(fast, rng.standard_normal((2, 8, 8, 3)))
    p, p_ = parameters(fast, w=rng.standard_normal((4, 3, 3, 3)))
    y, y_ = outputs(fast, (2, 8, 8, 4))
    images, images_ = Tensor(x.value), Tensor(x_.value)
    assert_alike(fast, fast.convolution(images, p["w"], y, 1, 1), ORACLE.convolution(images_, p_["w"], y_, 1, 1),
                 [p["w"]], [p_["w"]], y, y_, rng)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(("n", "h", "w", "c", "o", "window", "stride", "pad"), [
    (2, 8, 8, 16, 16, 3, 1, 1), (2, 7, 9, 17, 33, 3, 2, 1), (1, 15, 13, 3, 5, 7, 2, 3), (2, 7, 7, 64, 256, 1, 1, 0),
    (3, 9, 7, 1, 4, 1, 2, 0)])
def test_folded_convolution_is_batch_norm_of_a_convolution(fast, n, h, w, c, o, window, stride, pad, relu, add):
    rng = fresh()
    x, x_ = pair(fast, rng.standard_normal((n, h, w, c)))
    shape = (n, out(h, window, stride, pad), out(w, window, stride, pad), o)
    other, other_ = pair(fast, rng.standard_normal(shape))
    p, p_ = parameters(fast, w=rng.standard_normal((o, c, window, window)), gamma=rng.uniform(0.5, 2, o),
                       beta=rng.standard_normal(o), mean=rng.standard_normal(o), var=rng.uniform(0.5, 2, o))
    y, y_ = outputs(fast, shape)
    between = poisoned(ORACLE, shape)
    operation = fast.folded_convolution(x, *p.values(), y, stride, pad, relu, other if add else None)
    for _ in range(2):                      # the weights and statistics of the moment of folding
        operation.fold()
        ORACLE.convolution(x_, p_["w"], between, stride, pad).forward(False)
        norm = [p_[name] for name in ("gamma", "beta", "mean", "var")]
        ORACLE.batch_norm(between, *norm, y_, relu, other_ if add else None).forward(False)
        for name in p:
            fill(p[name].value, to_numpy(p[name].value) + 0.5)
        operation.forward(False)
        assert_close(fast, y.value, y_.value)
        for name in p:
            p_[name].value[...] = to_numpy(p[name].value)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("shape", [(4, 14, 14, 16), (2, 7, 5, 33), (1, 8, 8, 64), (3, 4, 4, 1), (16, 1, 1, 8)])
def test_batch_norm(fast, shape, relu, add):
    rng = fresh()
    names = ("gamma", "beta", "mean", "var")
    c = shape[-1]
    p, p_ = parameters(fast, gamma=rng.uniform(0.5, 2, c), beta=rng.standard_normal(c), mean=rng.standard_normal(c),
                       var=rng.uniform(0.5, 2, c))
    x, x_ = pair(fast, rng.standard_normal(shape) + 1)
    other, other_ = pair(fast, rng.standard_normal(shape))
    y, y_ = outputs(fast, shape)
    rest = [p[name] for name in names[:2]] + add * [other], [p_[name] for name in names[:2]] + add * [other_]
    ORACLE.batch_norm(x_, *p_.values(), y_, False, other_ if add else None).forward(True)
    safe = np.abs(y_.value) > KINK[fast.dtype] if relu else 1.0
    assert_alike(fast, fast.batch_norm(x, *p.values(), y, relu, other if add else None),
                 ORACLE.batch_norm(x_, *p_.values(), y_, relu, other_ if add else None),
                 [x, *rest[0]], [x_, *rest[1]], y, y_, rng, safe)
    for name in names[2:]:
        assert_close(fast, p[name].grad, p_[name].grad)


@pytest.mark.parametrize(("shape", "window", "stride", "pad"), [
    ((2, 16, 16, 64), 3, 2, 1), ((1, 9, 7, 5), 3, 2, 1), ((2, 8, 8, 16), 2, 2, 0)])
def test_max_pool(fast, shape, window, stride, pad):
    rng = fresh()
    x, x_ = pair(fast, np.maximum(rng.standard_normal(shape), 0))       # many ties, as after a ReLU
    n, h, w, c = shape
    y, y_ = outputs(fast, (n, out(h, window, stride, pad), out(w, window, stride, pad), c))
    assert_alike(fast, fast.max_pool(x, y, window, stride, pad), ORACLE.max_pool(x_, y_, window, stride, pad),
                 [x], [x_], y, y_, rng)


@pytest.mark.parametrize("shape", [(4, 7, 7, 64), (1, 8, 5, 3), (2, 1, 1, 16)])
def test_average_pool(fast, shape):
    rng = fresh()
    (x, x_), (y, y_) = pair(fast, rng.standard_normal(shape)), outputs(fast, (shape[0], shape[3]))
    assert_alike(fast, fast.average_pool(x, y), ORACLE.average_pool(x_, y_), [x], [x_], y, y_, rng)


@pytest.mark.parametrize(("shape", "channels"), [((2, 8, 8, 16), 32), ((1, 7, 5, 3), 6)])
def test_subsample(fast, shape, channels):
    rng = fresh()
    n, h, w, _ = shape
    (x, x_), (y, y_) = pair(fast, rng.standard_normal(shape)), outputs(fast, (n, (h + 1) // 2, (w + 1) // 2, channels))
    assert_alike(fast, fast.subsample(x, y), ORACLE.subsample(x_, y_), [x], [x_], y, y_, rng)


@pytest.mark.parametrize(("batch", "features", "classes"), [(32, 64, 10), (1, 512, 1000), (5, 7, 3), (128, 64, 100)])
def test_linear(fast, batch, features, classes):
    rng = fresh()
    x, x_ = pair(fast, rng.standard_normal((batch, features)))
    p, p_ = parameters(fast, w=rng.standard_normal((classes, features)), b=rng.standard_normal(classes))
    y, y_ = outputs(fast, (batch, classes))
    assert_alike(fast, fast.linear(x, p["w"], p["b"], y), ORACLE.linear(x_, p_["w"], p_["b"], y_),
                 [x, *p.values()], [x_, *p_.values()], y, y_, rng)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(fast, smoothing):
    rng = fresh()
    (z, z_), labels = pair(fast, 3 * rng.standard_normal((7, 10))), rng.integers(0, 10, 7)
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
        return (fast, fast.convolution(x, p["w"], y, 1, 1), ORACLE.convolution(x_, p_["w"], y_, 1, 1),
                [x, p["w"]], [x_, p_["w"]], y, y_, rng)

    for case in [make(4, 4), make(16, 128)]:
        assert_alike(*case)


def test_what_is_put_comes_back(fast):
    values = np.float32([[0, 1, -2.5], [1 / 3, 1e-20 if fast.dtype != "float16" else 1e-4, 3e4]])
    x = fast.empty(values.shape)
    fast.put(values, x)
    rounding = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}
    np.testing.assert_allclose(fast.get(x), values, rtol=rounding[fast.dtype])
