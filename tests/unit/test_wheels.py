"""What is carried to a machine with a GPU: it is all that pyproject.toml asks for, and there are wheels of it."""

import importlib.util
import re
import socket

import pytest
from click.testing import CliRunner

from tests.support import ROOT
from tests.unit.test_packaging import PROJECT

spec = importlib.util.spec_from_file_location("wheels", ROOT / "packaging" / "wheels.py")
wheels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wheels)
EXTRAS = PROJECT["optional-dependencies"]
WHEEL = r"-(cp312|py3|py2\.py3|cp3\d+)-\S*(none-any|manylinux\S*x86_64)\.whl$"


@pytest.mark.parametrize("cuda", ["12", "13"])
def test_all_that_the_package_and_its_tests_need_is_asked_for_and_one_cupy(cuda):
    asked = wheels.requirements(cuda, cudnn=True)
    assert {*PROJECT["dependencies"], *EXTRAS[f"cuda{cuda}"], *EXTRAS["mpich"]} < set(asked)
    assert set(wheels.TESTS) <= {*map(wheels.name_of, asked)} & {*map(wheels.name_of, EXTRAS["test"])}
    assert [each for each in asked if "cupy" in each] == [f"cupy-cuda{cuda}x>=14"]
    assert not [each for each in asked if wheels.name_of(each) in ("torch", "ruff", "mypy")]
    assert set(asked) - set(wheels.requirements(cuda, cudnn=False)) == {f"nvidia-cudnn-cu{cuda}>=9"}


def test_the_machine_s_library_may_be_older_than_a_wheel_s():
    words = wheels.target("3.12", "2.31")
    assert {"--only-binary=:all:", "--python-version=3.12", "--platform=manylinux_2_31_x86_64",
            "--platform=manylinux_2_17_x86_64", "--platform=manylinux2014_x86_64"} < set(words)
    assert "--platform=manylinux_2_32_x86_64" not in words


@pytest.mark.soak
def test_everything_is_resolved_for_python_3_12_without_what_nothing_needs():
    """About 15 s, of which half is the network's."""
    try:
        socket.create_connection(("pypi.org", 443), timeout=5).close()
    except OSError as reason:
        pytest.skip(f"pypi.org cannot be reached: {reason}")
    found = wheels.resolved(wheels.requirements("13", cudnn=True), wheels.target("3.12", "2.35"))
    files = {each["metadata"]["name"].lower().replace("_", "-"): each["download_info"]["url"].rsplit("/", 1)[-1]
             for each in found}
    assert {"numpy", "mpi4py", "h5py", "mpich", "cupy-cuda13x", "nvidia-cudnn-cu13", "nvidia-cudnn-frontend",
            "nvidia-cublas", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cuda-sanitizer-api", "setuptools",
            "pytest", "onednn-cpu-gomp"} <= files.keys()
    assert not files.keys() & {"torch", "nvidia-cutlass-dsl", "cupy-cuda12x"}
    for name, file in files.items():
        assert re.search(WHEEL, file), (name, file)


def test_two_versions_of_one_package_are_not_put_into_one_folder(tmp_path):
    (tmp_path / "old.whl").touch()
    done = CliRunner().invoke(wheels.main, ["--to", str(tmp_path)])
    assert done.exit_code == 1
    assert done.output == (f"Error: {tmp_path} has files already, and two versions of one package cannot be installed; "
                           "remove it, or name another folder by --to\n")
