"""The laws of the networks: parameter counts, names, and gradients that are derivatives."""

from itertools import pairwise

import numpy as np
import pytest

from dsgd_mpi.arrays.flat import Buckets
from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.api import Convolution
from dsgd_mpi.kernels.reference import Reference
from dsgd_mpi.nn import models, resnet
from dsgd_mpi.nn.layers import Graph

PARAMETERS = {  # counted by torchvision and, for the small ones, by He et al. 2015, table 6
    "resnet20": 269_722, "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032,
    "resnet101": 44_549_160, "resnet152": 60_192_808,
}
GMACS = {"resnet18": 1.81, "resnet34": 3.66, "resnet50": 4.09}


def batch(model_image, n, classes, seed=0):
    draw = np.random.default_rng(seed)
    return draw.standard_normal((n, *model_image)).astype("float32"), draw.integers(0, classes, n)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name):
    small = name == "resnet20"
    graph = models.graph(name, 10 if small else 1000, (32, 32, 3) if small else (224, 224, 3))
    assert sum(int(np.prod(shape)) for shape in graph.trained.values()) == PARAMETERS[name]


@pytest.mark.parametrize("name", GMACS)
def test_multiplications_are_the_published_ones(name):
    assert round(models.graph(name, 1000, (224, 224, 3)).macs / 1e9, 2) == GMACS[name]


def test_names_and_shapes_are_torchvisions():
    graph = models.graph("resnet50", 1000, (224, 224, 3))
    assert graph.trained["conv1.weight"] == (64, 3, 7, 7)
    assert graph.trained["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert graph.trained["layer2.0.conv2.weight"] == (128, 128, 3, 3)
    assert graph.statistics["layer4.2.bn3.running_var"] == (2048,)
    assert graph.trained["fc.weight"] == (1000, 2048)


@pytest.mark.parametrize(("name", "side"), [
    ("resnet8", 16), pytest.param("resnet18", 32, marks=pytest.mark.soak),
    pytest.param("resnet50", 64, marks=pytest.mark.soak)])
def test_gradient_is_the_derivative_of_the_loss(name, side):
    """Against central differences along random directions, in float64."""
    model = resnet(name, 5, (side, side, 3), batch=4, kernels=Reference("float64"), smoothing=0.1)
    images, labels = batch((side, side, 3), 4, 5)
    draw = np.random.default_rng(1)
    x = model.flat.copy()
    model.loss_and_gradient(images, labels)
    g = model.flat_gradient[: model.parameters].copy()
    for _ in range(3):
        direction = draw.standard_normal(model.parameters)
        direction /= np.linalg.norm(direction)
        losses = []
        for h in (1e-7, -1e-7):
            model.flat[:] = x
            model.flat[: model.parameters] += h * direction
            losses.append(model.loss_and_gradient(images, labels))
        slope = (losses[0] - losses[1]) / 2e-7
        assert slope == pytest.approx(g @ direction, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", ["resnet14", "resnet18"])
def test_finished_stretches_cover_the_gradient_from_back_to_front_and_are_final(name):
    model = resnet(name, 10, (20, 20, 1), batch=2, kernels="reference")
    images, labels = batch((20, 20, 1), 2, 10)
    seen, calls = [], []
    ready = Buckets(0, lambda part: seen.append((part, model.flat_gradient[part].copy())))
    model.loss_and_gradient(images, labels, ready, between=lambda: calls.append(None))
    assert seen[0][0].stop == model.layout.size
    assert seen[-1][0].start == 0
    assert all(later.stop == earlier.start for (earlier, _), (later, _) in pairwise(seen))
    assert all(np.array_equal(model.flat_gradient[part], then) for part, then in seen)
    assert len(calls) == 2 * len(model.graph.layers)


def test_running_statistics_follow_the_batch_through_their_gradient():
    model = resnet("resnet8", 10, (12, 12, 1), batch=8, kernels="reference")
    images, labels = batch((12, 12, 1), 8, 10)
    for _ in range(200):
        model.loss_and_gradient(images, labels)
        model.flat[model.parameters:] -= 0.1 * model.flat_gradient[model.parameters:]
    stem = model.graph.layers[0]
    before = model.plans[8].activations.values[stem.y]
    assert np.allclose(model.state["bn1.running_mean"], before.mean((0, 1, 2)), atol=1e-5)
    assert np.allclose(model.state["bn1.running_var"], before.var((0, 1, 2), ddof=1), atol=1e-5)


def test_predictions_do_not_depend_on_how_images_are_batched():
    model = resnet("resnet8", 10, (12, 12, 1), batch=4, kernels="reference")
    images, _ = batch((12, 12, 1), 7, 10)
    whole = model.predict(images)
    assert whole.shape == (7, 10)
    assert np.allclose(whole, np.concatenate([model.predict(images[i : i + 1]) for i in range(7)]), atol=1e-5)


def test_the_same_seed_gives_the_same_network_and_state_can_be_moved():
    one, same, other = (resnet("resnet8", 10, (12, 12, 1), 2, "reference", seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.flat, same.flat)
    assert not np.array_equal(one.flat, other.flat)
    other.load_state({**one.state, "bn1.num_batches_tracked": np.array(3)})
    assert np.array_equal(one.flat, other.flat)


def test_bad_names_and_states_are_told_in_one_line():
    model = resnet("resnet8", 10, (12, 12, 1), 2, "reference")
    with pytest.raises(UsageError, match=r"unknown model 'resnet9'; the choices are resnet8, resnet14"):
        models.graph("resnet9", 10, (32, 32, 3))
    with pytest.raises(UsageError, match=r"fc\.weight: expected shape \(10, 64\), found \(9, 64\)"):
        model.load_state({**model.state, "fc.weight": np.zeros((9, 64))})
    with pytest.raises(UsageError, match=r"1 names .* 'fc\.bias', is not in the given state"):
        model.load_state({name: view for name, view in model.state.items() if name != "fc.bias"})


def test_images_too_small_for_a_layer_are_refused():
    graph = Graph((6, 6, 1))
    with pytest.raises(UsageError, match="conv: images of 6x6x1 are too small for this layer; use larger images"):
        graph.add("conv", Convolution(4, window=7), "images")


def test_every_network_can_be_described():
    for name in models.names():
        graph = models.graph(name, 10, (32, 32, 3))
        assert graph.shapes["fc"] == (10,)
        assert all(min(shape) >= 1 for shape in graph.shapes.values())
