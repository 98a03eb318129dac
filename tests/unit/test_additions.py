"""What is added from outside the package: a layer, a back end, and a model in a file of its own."""

import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.api import Arrays, AveragePool, BatchNorm, Convolution, Linear, Operation, Weight, constant
from dsgd_mpi.kernels.reference import Reference
from dsgd_mpi.nn import Model, models, resnet
from dsgd_mpi.nn.layers import Graph
from dsgd_mpi.optim.sgd import Sgd
from dsgd_mpi.train import command
from dsgd_mpi.training.build import prepare
from tests.support.kernel_cases import filled, flat_tensors, fresh, poisoned


@dataclass(frozen=True)
class Prelu(Operation):
    """y = x where x > 0, else slope x; the slope of each channel is trained (He et al. 2015, arXiv:1502.01852)."""

    start: float | None = 0.25

    def weights(self, x):
        return {"slope": Weight(x[-1:], None if self.start is None else constant(self.start))}

    def macs(self, x):
        return int(np.prod(x))


class BoundPrelu:
    def __init__(self, k, operation, arrays):
        self.x, (self.slope,), self.y = arrays.x, arrays.weights, arrays.y

    def forward(self, training):
        x = self.x.value
        self.y.value[...] = np.where(x > 0, x, self.slope.value * x)

    def backward(self):
        x, dy = self.x.value, self.y.grad
        self.slope.grad[...] = np.where(x > 0, 0, dy * x).sum((0, 1, 2))
        self.x.grad[...] = np.where(x > 0, dy, self.slope.value * dy)


class WithoutBranches:
    """The same for the other back end."""

    def __init__(self, k, operation, arrays):
        self.x, (self.slope,), self.y = arrays.x, arrays.weights, arrays.y

    def forward(self, training):
        x = self.x.value
        self.y.value[...] = np.maximum(x, 0) + self.slope.value * np.minimum(x, 0)

    def backward(self):
        x, dy = self.x.value, self.y.grad
        self.slope.grad[...] = np.einsum("nhwc,nhwc->c", dy, np.minimum(x, 0))
        self.x.grad[...] = dy * ((x > 0) + self.slope.value * (x <= 0))


class LinearByEinsum:
    def __init__(self, k, operation, arrays):
        self.x, (self.w, self.b), self.y = arrays.x, arrays.weights, arrays.y
        k.made.append(operation)

    def forward(self, training):
        self.y.value[...] = np.einsum("nf,cf->nc", self.x.value, self.w.value) + self.b.value

    def backward(self):
        self.w.grad[...] = np.einsum("nc,nf->cf", self.y.grad, self.x.value)
        self.b.grad[...] = np.einsum("nc->c", self.y.grad)
        self.x.grad[...] = np.einsum("nc,cf->nf", self.y.grad, self.w.value)


class Extended(Reference):
    """The reference, and a layer more."""

    operations: ClassVar = {**Reference.operations, Prelu: BoundPrelu}


class Outside(Reference):
    """A back end that computes two layers in its own way and the others as the reference."""

    name = "outside"
    operations: ClassVar = {**Reference.operations, Prelu: WithoutBranches, Linear: LinearByEinsum}

    def __init__(self, dtype):
        super().__init__(dtype)
        self.made = []


def small(start=0.25):
    graph = Graph((6, 6, 2))
    x = graph.add("norm", BatchNorm(relu=False), graph.add("conv", Convolution(8, window=3, pad=1), "images"))
    x = graph.add("act", Prelu(start), x)
    graph.add("fc", Linear(3), graph.add("pool", AveragePool(), x))
    return graph


def batch():
    rng = np.random.default_rng(0)
    labels = np.arange(12) % 3
    return (rng.standard_normal((12, 6, 6, 2)) + labels[:, None, None, None]).astype("float32"), labels


def test_a_layer_from_outside_trains_on_two_back_ends_alike():
    images, labels = batch()
    losses, found = [], []
    for kernels in (Extended("float64"), Outside("float64")):
        model = Model(small(), 12, kernels)
        assert set(model.state["act.slope"]) == {0.25}
        losses.append([])
        sgd = Sgd(weight_decay=0.0).start(model.layout, model.flat, kernels)
        for _ in range(20):
            losses[-1].append(model.loss_and_gradient(images, labels))
            sgd.update(model.flat, model.flat_gradient, 0.1)
        assert (model.state["act.slope"] != 0.25).all()
        found.append(model.predict(images))
    np.testing.assert_allclose(*losses, rtol=1e-9)
    np.testing.assert_allclose(*found, rtol=1e-7, atol=1e-9)
    assert losses[0][-1] < losses[0][0] / 4
    assert kernels.made == [Linear(3)] * 2              # in training and in inference


def test_a_layer_from_outside_has_its_derivative_and_is_counted():
    model, (images, labels) = Model(small(), 12, Extended("float64")), batch()
    assert model.graph.macs == 6 * 6 * 8 * (2 * 9 + 1) + 3 * 8
    model.loss_and_gradient(images, labels)
    g, x = model.gradient["act.slope"].copy(), model.state["act.slope"]
    direction, values = fresh().standard_normal(8), []
    for h in (1e-6, -1e-6):
        x += h * direction
        values.append(model.loss_and_gradient(images, labels))
        x -= h * direction
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(g @ direction, abs=1e-7)


def test_two_back_ends_bind_one_operation_to_the_arrays_they_are_given():
    rng = fresh()
    values = rng.standard_normal((2, 3, 3, 4))
    outputs = []
    for kernels in (Extended("float64"), Outside("float64")):
        x, y = filled(kernels, values), poisoned(kernels, values.shape)
        slope = flat_tensors(kernels, {"slope": np.arange(4) / 4})["slope"]
        kernels.bind(Prelu(), Arrays(x, [slope], y)).forward(True)
        outputs.append(y.value)
    np.testing.assert_allclose(*outputs)
    np.testing.assert_allclose(outputs[0], np.where(values > 0, values, values * np.arange(4) / 4))


def test_a_back_end_without_the_layer_says_so():
    with pytest.raises(UsageError, match=r"the reference kernels do not support Prelu; .* to Reference\.operations"):
        Model(small(), 12, Reference("float64")).loss_and_gradient(*batch())


def test_a_weight_without_a_rule_for_its_first_value_is_refused():
    with pytest.raises(UsageError, match=r"act\.slope: expected initial values, .* give its Weight an `initial` in the "
                                         "operation"):
        Model(small(start=None), 12, Extended("float64"))


def test_only_an_operation_that_adds_can_be_given_what_to_add():
    graph = Graph((4, 4, 1))
    with pytest.raises(AssertionError, match=r"conv: Convolution\(.*\) does not add"):
        graph.add("conv", Convolution(1, window=1), "images", add="images")


MODEL = '''
from dsgd_mpi.kernels.api import AveragePool, BatchNorm, Convolution, Linear
from dsgd_mpi.nn.layers import Graph
from dsgd_mpi.optim.sgd import Sgd
from dsgd_mpi.optim.sgd import Sgd

NAMES = ("narrow", "wide")


def graph(name, classes, image):
    made = Graph(image)
    x = made.add("conv", Convolution(8 if name == "wide" else 4, window=3, stride=2, pad=1), "images")
    x = made.add("pool", AveragePool(), made.add("norm", BatchNorm(relu=True), x))
    made.add("fc", Linear(classes), x)
    return made
'''


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Where a file is found as one in nn/models."""
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    yield tmp_path / "added.py"
    sys.modules.pop("dsgd_mpi.nn.models.added", None)
    vars(models).pop("added", None)


def test_a_model_is_one_file(file):
    before = models.names()
    file.write_text(MODEL)
    assert models.names() == [*before, "narrow", "wide"]
    with pytest.raises(UsageError, match=r"unknown model 'wider'; the choices are resnet8, .*152, narrow, wide$"):
        models.graph("wider", 10, (28, 28, 1))
    config = command.main(["--model", "wide", "--kernels", "reference"], standalone_mode=False)
    assert prepare(config, 1).graph.trained["conv.weight"] == (8, 1, 3, 3)
    model = resnet("narrow", 3, (6, 6, 2), 12, "reference")
    first = model.loss_and_gradient(*batch())
    for _ in range(10):
        model.flat -= 0.1 * model.flat_gradient
        last = model.loss_and_gradient(*batch())
    assert last < first


def test_a_name_belongs_to_one_file(file):
    file.write_text(MODEL.replace('"narrow"', '"resnet8"'))
    with pytest.raises(AssertionError, match=r"added\.py builds resnet8, which another file builds already"):
        models.names()
