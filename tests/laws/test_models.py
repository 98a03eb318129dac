"""The laws that every model keeps that is found in nn/models."""

import numpy as np
import pytest

from dsgd_mpi.arrays.flat import Layout
from dsgd_mpi.kernels.load import load
from dsgd_mpi.nn import Model, models
from dsgd_mpi.nn.init import initialise

IMAGE = (32, 32, 3)
GRAPHS = {name: models.graph(name, 7, IMAGE) for name in models.names()}
SMALL = [name for name, graph in GRAPHS.items() if graph.macs < 1e8]    # to be computed with in NumPy
LARGE = "resnet34", "resnet101", "resnet152"                                # to be made
DEEPER = "resnet32", "resnet34", "resnet44"     # whose blocks are those of resnet20 and resnet18
every_model = pytest.mark.parametrize("name", GRAPHS)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.soak if name in LARGE else ())
                                  for name in GRAPHS])
def test_every_weight_has_an_initial_value_that_is_the_same_for_a_seed(name):
    graph = GRAPHS[name]
    layout = Layout(graph.trained, graph.statistics)
    one, same, other = (np.full(layout.size, np.nan) for _ in range(3))
    for vector, seed in ((one, 3), (same, 3), (other, 4)):
        initialise(graph, layout.views(vector), seed)
    assert np.isfinite(one).all()
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert all((view == 1).all() for key, view in layout.views(one).items() if key.endswith("running_var"))


@every_model
def test_each_layer_reads_what_an_earlier_one_has_made_and_the_last_makes_the_logits(name):
    made = {"images"}
    for layer in GRAPHS[name].layers:
        assert {layer.x, *([layer.add] if layer.add else [])} <= made
        assert layer.y not in made
        made.add(layer.y)
    assert GRAPHS[name].shapes[GRAPHS[name].layers[-1].y] == (7,)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.soak if name in DEEPER else ())
                                  for name in SMALL])
def test_the_gradient_is_the_derivative_of_the_loss(name):
    """Against a central difference along the gradient itself, in float64."""
    model = Model(GRAPHS[name], 3, load("reference", "float64"), seed=1)
    draw = np.random.default_rng(2)
    images, labels = draw.standard_normal((3, *IMAGE)), draw.integers(0, 7, 3)
    x = model.flat.copy()
    trained = slice(0, model.parameters)
    model.loss_and_gradient(images, labels)
    g = model.flat_gradient[trained].copy()
    losses = []
    for change in (1e-6, -1e-6):            # of the loss
        model.flat[:] = x
        model.flat[trained] += change * g / (g @ g)
        losses.append(model.loss_and_gradient(images, labels))
    assert losses[0] - losses[1] == pytest.approx(2e-6, rel=1e-4)
