"""A `world` for every law: simulated clusters of several sizes, or, under mpirun and --with-mpi, MPI's ranks.

Each also with all arrays on a device (of NumPy's) on every rank, whose host stages them.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from dsgd_mpi import algorithms
from dsgd_mpi.data import open_dataset
from dsgd_mpi.data.convert import subset
from dsgd_mpi.data.formats import write
from dsgd_mpi.net.gpu.direct import DirectHost
from dsgd_mpi.net.gpu.staged import StagedHost
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.net.simulated.machine import Machine
from tests.support.joined import join
from tests.support.numpy_device import NumpyDevice, on_host

LONGEST = ("test_short", "test_under_mpi", "test_laws", "test_runs", "test_bits", "test_stopped_runs", "test_fidelity",
           "test_failed_runs", "test_gpu_streams", "test_whole_models")         # files
SIZES = (1, 2, 4, 5)
WITH_DEVICES = (2, 5)
MANY_DEVICES = f"device-{WITH_DEVICES[-1]}"


class SimulatedWorld:
    def __init__(self, size):
        self.size, self.simulated = size, True

    def run(self, main, costs=None, per_node=2):
        """`main(host)` on every rank; the results in rank order. Without `costs` so many ranks are a node; 0: all."""
        return Cluster(self.size, costs or Machine(ranks_per_node=per_node or self.size)).run(main)


class MpiWorld:
    def __init__(self):
        from mpi4py import MPI
        self.comm, self.size, self.simulated = MPI.COMM_WORLD, MPI.COMM_WORLD.size, False

    def run(self, main, costs=None, per_node=2):
        """The same, every rank getting all results; an error on one rank is raised on all."""
        from dsgd_mpi.net.mpi.host import MpiHost
        host = MpiHost(self.comm)
        host.ranks_per_node = per_node
        try:
            outcome = main(host), None
        except Exception as error:
            outcome = None, error
        outcomes = self.comm.allgather(outcome)
        for _, error in outcomes:
            if error is not None:
                raise error
        host.close()
        return [result for result, _ in outcomes]


class DeviceWorld:
    """Another world, each of its ranks with a device; `over` is the class of host that uses it."""

    def __init__(self, world, over):
        self.world, self.size, self.simulated, self.over = world, world.size, False, over

    def run(self, main, costs=None, per_node=2):
        return self.world.run(lambda host: on_host(main(self.over(host, NumpyDevice()))), costs, per_node)


def pytest_addoption(parser):
    parser.addoption("--also", type=Path, help="A folder whose files join the package: algorithms/NAME.py, "
                     "optim/NAME.py, nn/models/NAME.py. The laws run on them too.")


def pytest_configure(config):
    if config.getoption("--also"):
        join(config.getoption("--also"))
    if "EMULATION_COMPILED" not in os.environ:          # one for all workers, which inherit its name
        folder = TemporaryDirectory(prefix="dsgd-emulation-")
        os.environ["EMULATION_COMPILED"] = folder.name
        config.add_cleanup(folder.cleanup)


def pytest_generate_tests(metafunc):
    if "world" in metafunc.fixturenames:
        mpi = metafunc.config.getoption("--with-mpi")
        simulated = [*(f"simulated-{size}" for size in SIZES), *(f"device-{size}" for size in WITH_DEVICES)]
        worlds = ["mpi", "staged", "direct"] if mpi else simulated
        metafunc.parametrize("world", worlds, indirect=True)


def costly(config):
    """Of the worlds, all but simulated ranks, two with devices, and two and four over MPI."""
    if not config.getoption("--with-mpi"):
        return (MANY_DEVICES,)
    from mpi4py import MPI
    return ("staged", "direct") if MPI.COMM_WORLD.size in (2, 4) else ("mpi", "staged", "direct")


@pytest.hookimpl(tryfirst=True)             # before those are left out that are marked so
def pytest_collection_modifyitems(config, items):
    """Under mpirun only what is about a world: the rest has been run serially.

    Else the longest files first, so that of those that run side by side none is left alone at the end. In costly
    worlds an algorithm's further variants are for `make soak`, and so are all where five ranks have devices.
    """
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if params.get("world") in costly(config) and "options" in params and (params["world"] == MANY_DEVICES or (
                params["options"] != algorithms.find(params["name"]).variants[0])):
            item.add_marker(pytest.mark.soak)
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    if config.getoption("--with-mpi"):
        items[:] = [item for item in items if "world" in item.fixturenames]


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Options of `train`: on 400 + 40 of the built-in images, which are checked and evaluated in a moment."""
    path = tmp_path_factory.mktemp("data") / "small.h5"
    with open_dataset("fashion-mnist-12k") as dataset:
        write(path, subset(dataset, 400, 40))
    return ("--data", path)


@pytest.fixture
def world(request):
    kind, _, size = request.param.partition("-")
    if kind in ("simulated", "device"):
        world = SimulatedWorld(int(size))
        return world if kind == "simulated" else DeviceWorld(world, StagedHost)
    return MpiWorld() if kind == "mpi" else DeviceWorld(MpiWorld(), {"staged": StagedHost, "direct": DirectHost}[kind])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Under mpirun a test that fails on one rank ends the job: the other ranks may wait for this one for ever."""
    outcome = yield
    report = outcome.get_result()
    if item.config.getoption("--with-mpi") and report.failed:
        from mpi4py import MPI
        sys.__stdout__.write(f"rank {MPI.COMM_WORLD.rank}: {item.nodeid} failed\n{report.longreprtext}\n")
        sys.__stdout__.flush()
        MPI.COMM_WORLD.Abort(1)
