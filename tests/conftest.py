"""A `world` for every law: simulated clusters of several sizes, or, under mpirun and --with-mpi, MPI's ranks."""

import sys

import pytest

from dsgd_mpi.net.simulated import Cluster

SIZES = (1, 2, 4, 5)


class SimulatedWorld:
    def __init__(self, size):
        self.size, self.simulated = size, True

    def run(self, main, costs=None):
        """`main(host)` on every rank; the results in rank order."""
        return Cluster(self.size, costs).run(main)


class MpiWorld:
    def __init__(self):
        from mpi4py import MPI
        self.comm, self.size, self.simulated = MPI.COMM_WORLD, MPI.COMM_WORLD.size, False

    def run(self, main, costs=None):
        """The same, every rank getting all results; an error on one rank is raised on all."""
        from dsgd_mpi.net.mpi import MpiHost
        host = MpiHost(self.comm)
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


def pytest_generate_tests(metafunc):
    if "world" in metafunc.fixturenames:
        mpi = metafunc.config.getoption("--with-mpi")
        worlds = ["mpi"] if mpi else [f"simulated-{size}" for size in SIZES]
        metafunc.parametrize("world", worlds, indirect=True)


def pytest_collection_modifyitems(config, items):
    """Under mpirun only what is about a world: the rest has been run serially."""
    if config.getoption("--with-mpi"):
        items[:] = [item for item in items if "world" in item.fixturenames]


@pytest.fixture
def world(request):
    return MpiWorld() if request.param == "mpi" else SimulatedWorld(int(request.param.split("-")[1]))


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
