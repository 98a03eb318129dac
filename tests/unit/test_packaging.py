"""The recipes for Apptainer, Spack, EasyBuild and ReFrame fit the package, as far as can be told without them."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dsgd_mpi import __version__
from tests.support import ROOT
from tests.support.jobs import run, train

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SPACK = ROOT / "packaging/spack/repo/packages/py_dsgd_mpi/package.py"
EASYBUILD = ROOT / "packaging/easybuild" / f"dsgd_mpi-{__version__}-foss-2025b.eb"


def needed():
    """name -> least version, of all that the package cannot do without."""
    return dict(re.match(r"([\w-]+)>=([\d.]+)", text).groups() for text in PROJECT["dependencies"])


# Apptainer

def sections():
    text = (ROOT / "containers/dsgd.def").read_text()
    header, *parts = re.split(r"^%(\w+)\n", text, flags=re.MULTILINE)
    return {"header": header, **dict(zip(parts[::2], parts[1::2], strict=True))}


def test_the_container_has_all_that_the_package_is_built_from():
    sources = [Path(line.split()[0]) for line in sections()["files"].splitlines() if line.strip()]
    assert all((ROOT / source).exists() for source in sources)
    wanted = {"pyproject.toml", "setup.py", "dsgd_mpi", PROJECT["readme"], *PROJECT["license-files"]}
    assert all(any(Path(name).is_relative_to(source) for source in sources) for name in wanted)


def test_the_container_uses_no_argument_without_a_default_and_no_extra_that_is_not_there():
    found = sections()
    defaults = dict(line.strip().split("=") for line in found["arguments"].splitlines() if line.strip())
    assert set(re.findall(r"{{ (\w+) }}", "".join(found.values()))) == set(defaults)
    arguments = re.findall(r"--build-arg (\w+)=(\S+)", found["header"])
    assert arguments
    for name, value in [*arguments, *defaults.items()]:
        assert name in defaults
        assert name == "PYTHON" or set(value.split(",")) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("section", ["post", "environment", "runscript", "test"])
def test_the_container_s_scripts_are_shell(section):
    assert subprocess.run(["sh", "-n"], input=sections()[section], text=True, timeout=10).returncode == 0


# Spack and EasyBuild

def test_spack_asks_for_what_the_package_needs():
    calls = [node for node in ast.walk(ast.parse(SPACK.read_text()))
             if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "depends_on"]
    asked = dict(re.match(r"(?:py-)?([\w-]+)(?:@([\d.]+):)?", call.args[0].value).groups() for call in calls)
    for name, least in needed().items():
        if name != "onednn-cpu-gomp":       # Spack has oneDNN itself
            assert asked.pop(name) == least, name
    least_python = PROJECT["requires-python"].removeprefix(">=")
    assert asked == {"python": least_python, "setuptools": "77", "mpi": None, "onednn": "3", "matplotlib": "3.8"}
    checkout = SPACK.parents[5]
    assert (checkout / "pyproject.toml").exists()


def test_easybuild_brings_what_the_package_needs():
    recipe = {}
    exec(EASYBUILD.read_text(), recipe)
    assert (recipe["name"], recipe["version"]) == (PROJECT["name"], PROJECT["version"])
    modules = {name for name, *_ in recipe["dependencies"]}
    extensions = {name for name, *_ in recipe["exts_list"]}
    inside = {"numpy": "SciPy-bundle", "click": "Python-bundle-PyPI", "rich": "Python-bundle-PyPI",
              "tomli-w": "Python-bundle-PyPI", "tomli": "Python"}       # Python 3.13 reads TOML itself
    assert {inside.get(name, name) for name in needed()} <= modules | extensions


# ReFrame

def reframe_lines():
    spec = importlib.util.spec_from_file_location("lines", ROOT / "packaging/reframe/lines.py")
    lines = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lines)
    return lines


def test_the_lines_that_reframe_looks_for_are_printed(tmp_path):
    lines = reframe_lines()
    output = run("-m", "dsgd_mpi", "doctor", "--seconds", 0.2, ranks=2)[1]
    assert re.search(lines.WELL, output, re.MULTILINE), output
    for verb in ("mean", "exchange", "window add", "window read"):
        found = re.search(lines.BANDWIDTH.format(verb=verb), output, re.MULTILINE)
        assert float(found[1]) > 0
    output = train("--steps", 20, "--out", tmp_path / "run", ranks=2)[1]
    assert re.search(lines.FINISHED, output, re.MULTILINE), output
    assert re.search(lines.RANKS, output, re.MULTILINE)[1] == "2"
    assert 0 < float(re.search(lines.ACCURACY, output, re.MULTILINE)[1]) < 100
    assert float(re.search(lines.RATE, output, re.MULTILINE)[1].replace(",", "")) > 0
