"""From a configuration to an optimizer: whose options count, which runs are the same, where float16 can be had."""

import pytest

from dsgd_mpi.algorithms.allreduce import Allreduce
from dsgd_mpi.config import Config
from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.gpu.cudnn import CuDNN
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.optim.lars import Lars
from dsgd_mpi.optim.sgd import Sgd
from dsgd_mpi.training import build
from dsgd_mpi.training.build import assemble, optimizer_of, paced, prepare
from dsgd_mpi.training.folder import same_run
from tests.support.emulation.emulated import Emulated


def test_options_are_the_optimizer_s_own_unless_given():
    assert optimizer_of(Config(), Allreduce()) == Sgd(0.9, True, 1e-4, "all")
    assert optimizer_of(Config(momentum=0.5, set_optimizer=("nesterov=false",)), Allreduce()) == Sgd(0.5, False)
    assert optimizer_of(Config(optimizer="lars", weight_decay=0.0), Allreduce()) == Lars(weight_decay=0.0)


@pytest.mark.parametrize(("options", "warned"), [
    ({"algorithm": "diloco"}, True), ({"optimizer": "adamw"}, True), ({"optimizer": "adamw", "lr": 0.01}, False),
    ({}, False), ({"algorithm": "diloco", "optimizer": "sgd"}, False)])
def test_a_rate_that_is_sgds_is_remarked_upon_where_the_optimizer_is_another(options, warned, caplog, tmp_path):
    """An algorithm may choose its optimizer by default; the default rate is SGD's."""
    parts = prepare(Config(batch=2, kernels="reference", **options), 2)
    Cluster(2).run(lambda host: assemble(parts, host, tmp_path) and None)
    told = [record.message for record in caplog.records]
    assert told == ["--lr 0.2 is far above what suits adamw, about 0.001; give --lr 0.001, or --optimizer sgd"] * warned


@pytest.mark.parametrize(("options", "warned"), [({}, True), ({"lr": 0.003}, False), ({"optimizer": "adamw"}, True)])
def test_a_rate_is_remarked_upon_where_an_algorithm_s_steps_have_a_size_of_their_own(options, warned, caplog):
    parts = prepare(Config("demo", batch=2, kernels="reference", **options), 1)
    paced(parts, Cluster(1).hosts[0])
    told = [record.message for record in caplog.records]
    assert told == ["--lr 0.2 is far above what suits demo, about 0.001; give --lr 0.001"] * warned


@pytest.mark.parametrize(("there", "same"), [
    ("momentum = 0.9\nweight_decay = 1e-4", True), ("[set_optimizer]\nnesterov = true", True), ("", True),
    ("momentum = 0.8", False), ('optimizer = "lars"', False), ("milestones = '1'\nschedule = 'step'", False)])
def test_runs_are_the_same_where_their_optimizers_are(tmp_path, there, same):
    (tmp_path / "config.toml").write_text(there + "\n")
    assert same_run(Config(), tmp_path) is same


def test_float16_needs_a_kernel_that_leaves_out_steps(monkeypatch):
    monkeypatch.setattr(build, "load", lambda name, dtype, device: CuDNN(dtype, device=Emulated))
    assert prepare(Config(dtype="float16", optimizer="adamw"), 1).optimizer.name == "adamw"
    message = r"skips a step that overflows \(adamw, sgd\), found lamb; use one of them, or"
    with pytest.raises(UsageError, match=message):
        prepare(Config(dtype="float16", optimizer="lamb"), 1)
    assert prepare(Config(dtype="bfloat16", optimizer="lamb"), 1).optimizer.name == "lamb"
