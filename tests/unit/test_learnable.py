"""What cannot be as asked is said before the first step: a network that could not learn, a warm-up that is too long."""

import logging

import numpy as np
import pytest

from dsgd_mpi.config import Config
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.nn import models, resnet
from dsgd_mpi.training.build import assemble, prepare
from dsgd_mpi.training.job import ramp
from tests.support.data_samples import dataset_file


@pytest.mark.parametrize(("name", "image", "batch", "count"), [
    ("resnet8", (28, 28, 1), 1, 0), ("resnet8", (4, 4, 1), 1, 2), ("resnet8", (4, 4, 1), 2, 0),
    ("resnet18", (16, 16, 3), 1, 10), ("resnet18", (16, 16, 3), 2, 0), ("resnet18", (33, 16, 3), 1, 0)])
def test_layers_that_see_one_value_a_channel_are_found_from_shapes(name, image, batch, count):
    assert len(models.graph(name, 4, image).lone(batch)) == count


def test_what_is_before_such_a_layer_has_no_gradient_and_otherwise_all_has():
    """So that refusing it loses nothing."""
    draw = np.random.default_rng(0)
    for batch, without in ((1, 61), (2, 0)):
        model = resnet("resnet18", 4, (16, 16, 3), batch, "reference", "float64")
        model.loss_and_gradient(draw.standard_normal((batch, 16, 16, 3)).astype("float32"), np.arange(batch))
        trained = [model.gradient[name] for name in model.graph.trained]
        assert sum(not gradient.any() for gradient in trained) == without


def test_a_network_that_could_not_learn_is_refused_with_a_way_out_that_works(tmp_path):
    asked = {"data": str(dataset_file(tmp_path, side=16)), "model": "resnet18", "kernels": "reference"}
    with pytest.raises(UsageError, match=r"--batch 1: resnet18 could not learn, since in 10 layers, such as "
                                         r"layer4.1.bn2, batch norm would see one value a channel.*use --batch 2 or"):
        prepare(Config(batch=1, **asked), 1)
    prepare(Config(batch=2, **asked), 1)


@pytest.mark.parametrize(("steps", "warmup", "done", "said"), [
    (10, 1.0, 5, True), (1, 1.0, 0, True), (10, 1e300, 5, True), (10, 1.7e308, 5, True), (4, 0.5, 2, False),
    (100, 1.0, 6, False), (10, 0.0, 0, False)])
def test_a_warm_up_is_at_most_half_of_the_run_and_one_asked_for_is_told_so(tmp_path, steps, warmup, done, said, caplog):
    config = Config(data=str(dataset_file(tmp_path, side=16)), kernels="reference", steps=steps, warmup=warmup,
                    eval_every=1e308, batch=10)
    with caplog.at_level(logging.WARNING):
        run = Cluster(1).run(lambda host: assemble(prepare(config, 1), host, tmp_path))[0]
    assert run.schedule.warmup == done
    assert ("longer than half of the run: shortened" in caplog.text) == said
    assert ramp(warmup, run) == f"{done} steps{', half of the run' * (done < 6 * warmup)}"
    assert all(np.isfinite(run.schedule(step)) and 0 <= run.schedule(step) <= config.lr for step in range(steps))
    assert run.eval_every == steps
