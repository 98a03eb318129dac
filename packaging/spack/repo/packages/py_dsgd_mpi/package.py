"""Spack 1.0 or newer: spack repo add packaging/spack/repo && spack install py-dsgd-mpi"""

from pathlib import Path

from spack.package import EnvironmentModifications, depends_on, find_libraries, license, variant, version
from spack_repo.builtin.build_systems.python import PythonPackage


class PyDsgdMpi(PythonPackage):
    """Trains residual networks over MPI, one training loop per rank, and lets you change how the ranks cooperate and
    nothing else: all-reduce, local SGD, parameter server, elastic averaging, push-sum and gossip."""

    homepage = "https://arxiv.org/abs/1611.04581"
    git = f"file://{Path(__file__).resolve().parents[5]}"       # the checkout that contains this file

    license("BSD-3-Clause")

    version("main", branch="main")

    variant("plot", default=True, description="Curves and scaling reports")

    depends_on("python@3.10:", type=("build", "run"))
    depends_on("py-setuptools@77:", type="build")
    depends_on("mpi", type=("link", "run"))
    depends_on("py-numpy@1.26:", type=("build", "run"))
    depends_on("py-mpi4py@4.1:", type=("build", "run"))
    depends_on("py-greenlet@3:", type=("build", "run"))
    depends_on("py-h5py@3.9:", type=("build", "run"))
    depends_on("py-click@8.1:", type=("build", "run"))
    depends_on("py-rich@13:", type=("build", "run"))
    depends_on("py-cffi@1.15:", type=("build", "run"))
    depends_on("py-tomli@2:", type=("build", "run"), when="^python@:3.10")
    depends_on("py-tomli-w@1:", type=("build", "run"))
    depends_on("onednn@3: cpu_runtime=omp", type=("link", "run"))
    depends_on("py-matplotlib@3.8:", type=("build", "run"), when="+plot")

    def setup_run_environment(self, env: EnvironmentModifications) -> None:
        env.set("DSGD_ONEDNN", find_libraries("libdnnl", self.spec["onednn"].prefix, recursive=True)[0])
