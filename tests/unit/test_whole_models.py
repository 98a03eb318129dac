"""The laws of whole networks: fast kernels differentiate and train as the reference does in float64.

The seeds are fixed, and such that no activation comes so near to the kink of a ReLU that rounding decides on which side
it lies: where one does, losses part by 1e-4 to 1e-3 in ten steps, however good the kernels.
"""

import numpy as np
import pytest

from dsgd_mpi.arrays.flat import to_numpy
from dsgd_mpi.kernels.load import load
from dsgd_mpi.nn import resnet
from dsgd_mpi.optim.sgd import Sgd
from tests.support.kernel_cases import is_emulated, loaded

NETWORKS = pytest.mark.parametrize(("name", "image", "batch", "seed"), [
    ("resnet8", (12, 12, 1), 8, 1), ("resnet20", (12, 12, 3), 8, 6),
    pytest.param("resnet18", (33, 33, 3), 4, 1, marks=pytest.mark.soak)])
EXACT = load("reference", "float64")


@pytest.fixture(params=["onednn", "emulated", pytest.param("cudnn", marks=pytest.mark.gpu)])
def fast(request):
    k = loaded(request.param, "float32")
    if request.param != "onednn":
        yield k
        return
    before = k.c.omp_get_max_threads()
    k.set_threads(1)                        # small images: a second thread would only wait
    yield k
    k.c.omp_set_num_threads(before)


def models(fast, name, image, batch, seed):
    """The same network on the kernels under test and on the oracle, and a batch."""
    rng = np.random.default_rng(seed)
    images, labels = rng.standard_normal((batch, *image)).astype("float32"), rng.integers(0, 10, batch)
    return [resnet(name, 10, image, batch, k, seed=seed) for k in (fast, EXACT)], images, labels


def skip_what_is_slow(fast, name):
    if name == "resnet18" and is_emulated(fast):
        pytest.skip("minutes on an emulated GPU; resnet18's gradients are tested, and the others' training")


@NETWORKS
def test_every_gradient_agrees(fast, name, image, batch, seed):
    (model, exact), images, labels = models(fast, name, image, batch, seed)
    assert model.loss_and_gradient(images, labels) == pytest.approx(exact.loss_and_gradient(images, labels), rel=1e-5)
    for key, expected in exact.gradient.items():
        error = np.abs(to_numpy(model.gradient[key]) - expected).max()
        assert error <= 5e-5 * np.abs(expected).max(), key


@pytest.mark.parametrize(("fast", "name", "image", "batch", "seed"), [
    pytest.param(kernels, *network, marks=pytest.mark.gpu if kernels == "cudnn" else pytest.mark.soak if
                 network[0] == "resnet18" or (kernels, network[0]) == ("emulated", "resnet20") else ())
    for kernels in ("onednn", "emulated", "cudnn")
    for network in (("resnet8", (12, 12, 1), 8, 1), ("resnet20", (12, 12, 3), 8, 6), ("resnet18", (33, 33, 3), 4, 1))],
    indirect=["fast"])
def test_ten_steps_of_training_give_the_same_losses(fast, name, image, batch, seed):
    skip_what_is_slow(fast, name)
    both, images, labels = models(fast, name, image, batch, seed)
    losses = []
    for model in both:
        sgd = Sgd().start(model.layout, model.flat, model.kernels)
        losses.append([])
        for _ in range(10):
            losses[-1].append(model.loss_and_gradient(images, labels))
            sgd.update(model.flat, model.flat_gradient, lr=0.01)
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-4)
    assert losses[0][-1] < losses[0][0] / 2


@NETWORKS
def test_predictions_agree_before_and_after_a_step(fast, name, image, batch, seed):
    skip_what_is_slow(fast, name)
    both, images, labels = models(fast, name, image, batch, seed)
    for _ in range(2):
        found, expected = (model.predict(images) for model in both)
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
        for model in both:
            model.loss_and_gradient(images, labels)
            model.flat -= 0.1 * model.flat_gradient


def test_inference_is_the_network_with_its_running_statistics_in_a_fraction_of_the_memory():
    model = resnet("resnet18", 10, (33, 33, 3), 2, EXACT)
    images = np.random.default_rng(0).standard_normal((2, 33, 33, 3)).astype("float32")
    folded = model.predict(images)
    small = model.activation_bytes
    model.loss_and_gradient(images, np.array([0, 1]))
    plan = model.plans[2]
    model.kernels.put(images, plan.images)
    for step in plan.steps:
        step.operation.forward(training=False)
    np.testing.assert_allclose(folded, plan.logits.value, rtol=1e-9, atol=1e-9)
    assert model.activation_bytes > 8 * small
