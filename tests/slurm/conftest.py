"""A private SLURM for all tests of a module, with as many nodes as its NODES says."""

import signal
import sys

import pytest

from tests.support.checkout import RunFolder, Site
from tests.support.cluster import Cluster, install
from tests.support.debian import Unavailable


@pytest.fixture(scope="module")
def site(request, tmp_path_factory):
    if "openmpi" in sys.prefix:
        pytest.skip("this SLURM starts ranks by PMI-2, which Open MPI does not speak")
    try:
        install()
    except Unavailable as reason:
        pytest.skip(str(reason))
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated"))     # so that the cluster ends, too
    with Cluster(request.module.NODES) as cluster:
        yield Site(cluster, tmp_path_factory.mktemp("site"))


@pytest.fixture
def run_folder(site, request):
    """Makes the folder of a run: run_folder("whole")."""
    return lambda name: RunFolder(site.folder / "runs" / f"{request.node.name}-{name}")
