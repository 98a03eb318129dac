"""What a stranger adds is one file each, and all laws run on it without being told.

Three additions are written into a folder of the test's own: an algorithm that wants an optimizer of its own choice, an
optimizer, and a model. Each is found by its file, keeps the laws of its kind, over MPI too, and trains from the command
line. They are written for this test and are no part of the package.
"""

import json
import textwrap

import pytest

from tests.support import ROOT
from tests.support.jobs import run

BMUF = '''
    """Blockwise model-update filtering (Chen and Huo 2016, doi:10.1109/ICASSP.2016.7472805): means with a momentum.

        every H steps:  u <- mu u + 1/n sum_j x_j - x_0;   x_0, x_i <- x_0 + u
    """

    from __future__ import annotations

    from dataclasses import dataclass
    from typing import Annotated

    import numpy as np

    from dsgd_mpi.algorithms import Algorithm, Gradient
    from dsgd_mpi.arrays.flat import Array
    from dsgd_mpi.net.api import Net
    from dsgd_mpi.optim.api import Optimizer


    @dataclass
    class Bmuf(Algorithm):
        period: Annotated[int, 1] = 5           # H
        momentum: Annotated[float, 0] = 0.5     # mu

        default_optimizer = "adamw"
        keeps = "t", "u", "x0"
        alone_is_sgd = False
        traffic = "one mean of the model over all every `period` steps"
        variants = {}, {"period": 3}
        u = x0 = np.zeros(0)

        def start(self, net: Net, x: Array, optimizer: Optimizer) -> None:
            super().start(net, x, optimizer)
            if not len(self.x0):
                self.x0, self.u = x[optimizer.trained].copy(), 0 * x[optimizer.trained]

        def step(self, x: Array, gradient: Gradient, lr: float) -> None:
            self.optimizer.update(x, gradient(x), lr)
            self.t += 1
            if self.t % self.period == 0:
                self.net.mean(x).wait()
                self.u *= self.momentum
                self.u += x[self.optimizer.trained] - self.x0
                self.x0 += self.u
                x[self.optimizer.trained] = self.x0
'''
LION = '''
    """Lion (Chen et al. 2023, arXiv:2302.06675): steps by the sign of a momentum.

        u = sign(beta1 m + (1 - beta1) g);   m <- beta2 m + (1 - beta2) g;   x <- x - eta (u + lambda x)
    """

    from __future__ import annotations

    from dataclasses import dataclass
    from typing import Annotated, ClassVar

    import numpy as np

    from dsgd_mpi.arrays.flat import Array
    from dsgd_mpi.optim.api import Optimizer


    @dataclass
    class Lion(Optimizer):
        beta1: Annotated[float, 0] = 0.9
        beta2: Annotated[float, 0] = 0.99
        weight_decay: Annotated[float, 0] = 0.01    # lambda

        vectors: ClassVar[tuple[str, ...]] = ("m",)

        def rule(self, part: slice, x: Array, g: Array, lr: float) -> None:
            x, g, m = x[part], g[part], self.state["m"][part]
            u = np.sign(self.beta1 * m + (1 - self.beta1) * g)
            m *= self.beta2
            m += (1 - self.beta2) * g
            x -= lr * (u + self.weight_decay * x)
'''
THIN = '''
    """A ResNet with one block a stage: resnet18's layers (He et al. 2015, arXiv:1512.03385), half as many of them."""

    from dsgd_mpi.arrays.flat import Shape
    from dsgd_mpi.kernels.api import AveragePool, Linear
    from dsgd_mpi.nn.layers import Graph
    from dsgd_mpi.nn.models.resnet import large

    NAMES = ("resnet10",)


    def graph(name: str, classes: int, image: Shape) -> Graph:
        graph = Graph(image)
        x = large(graph, (1, 1, 1, 1), bottleneck=False)
        graph.add("fc", Linear(classes), graph.add("avgpool", AveragePool(), x))
        return graph
'''
FILES = {"algorithms/bmuf.py": BMUF, "optim/lion.py": LION, "nn/models/thin.py": THIN}
TRAIN = "import sys; from pathlib import Path; from tests.support.joined import join; join(Path(sys.argv.pop(1))); "\
        "from dsgd_mpi.train import main; main()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stranger")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text).lstrip(), encoding="utf-8")
    return folder


def laws(folder, *words, ranks=None):
    status, output, errors = run("-m", "pytest", "-p", "no:cacheprovider", "--also", folder, *words, ranks=ranks,
                                 limit_s=240, env={"PYTHONPATH": str(ROOT)})
    assert status == 0, output + errors
    return output


def trained(folder, place, *options, ranks=2):
    status, output, errors = run("-c", TRAIN, folder, "--batch", 8, "--log-every", 4, "--out", place, *options,
                                 ranks=ranks, limit_s=120, env={"PYTHONPATH": str(ROOT)})
    assert (status, errors) == (0, ""), output + errors
    return json.loads((place / "summary.json").read_text())


def test_all_laws_run_on_a_stranger_s_algorithm(folder):
    output = laws(folder, "tests/laws/test_laws.py", "-k", "bmuf", "-vv")
    for law in ("all_ranks_come_to_the_minimum", "nothing_is_in_flight",
                "what_is_kept_is_all", "with_16_bits", "do_need_each_other"):
        assert law in output
    assert "bmuf-{'period': 3}" in output


def test_the_laws_run_on_it_over_mpi_too(folder):
    laws(folder, "--with-mpi", "tests/laws/test_laws.py", "-k", "bmuf and mpi", ranks=2)


def test_it_trains_with_the_optimizer_that_it_wants_and_goes_on_from_its_checkpoint(folder, tmp_path):
    summary = trained(folder, tmp_path / "run", "--algorithm", "bmuf", "--lr", 0.001, "--steps", 16)
    assert (summary["algorithm"], summary["optimizer"]) == ("bmuf", "adamw")
    status, _, errors = run("-c", TRAIN, folder, "--resume", tmp_path / "run", "--steps", 24, ranks=2, limit_s=120,
                            env={"PYTHONPATH": str(ROOT)})
    assert (status, errors) == (0, "")


def test_all_laws_run_on_a_stranger_s_optimizer(folder):
    output = laws(folder, "tests/laws/test_optim.py", "-k", "lion", "-vv")
    for law in ("do_what_the_rule_does", "how_the_vectors_are_cut", "number_of_threads", "a_slice_of_a_vector",
                "on_a_device", "stopped_and_resumed", "trains_a_network"):
        assert any(law in line and "lion" in line and "PASSED" in line for line in output.splitlines()), law


def test_a_stranger_s_optimizer_trains(folder, tmp_path):
    summary = trained(folder, tmp_path / "run", "--optimizer", "lion", "--set-optimizer", "beta1=0.8", "--lr", 0.001,
                      "--algorithm", "local_sgd", "--steps", 8)
    assert summary["optimizer"] == "lion"


def test_all_laws_run_on_a_stranger_s_model(folder):
    output = laws(folder, "tests/laws/test_models.py", "-k", "resnet10 and not resnet101", "-vv")
    assert output.count("[resnet10] PASSED") == 3


def test_a_stranger_s_model_trains(folder, tmp_path):
    assert trained(folder, tmp_path / "run", "--model", "resnet10", "--steps", 4)["model"] == "resnet10"
