"""The examples of CONTRIBUTING.rst are whole: what can be run is run."""

import ast
import re
import textwrap

import pytest

from tests.support import ROOT
from tests.support.jobs import run

TEXT = (ROOT / "CONTRIBUTING.rst").read_text()
BLOCKS = re.findall(r"(?:(.+):\n\n)?\.\. code-block:: python\n\n((?:    .*\n|\n)+)", TEXT)
EXAMPLES = [(name, textwrap.dedent(code)) for name, code in BLOCKS]
FILES = {name.strip("`"): code for name, code in EXAMPLES if re.fullmatch(r"``dsgd_mpi/\S+\.py``", name)}
DATA = EXAMPLES[-1][1]


def test_there_is_a_whole_file_for_each_kind_that_needs_one():
    assert list(FILES) == ["dsgd_mpi/algorithms/hypercube.py", "dsgd_mpi/optim/lion.py", "dsgd_mpi/nn/models/thin.py"]
    assert len(EXAMPLES) == 7


@pytest.mark.parametrize("code", [code for _, code in EXAMPLES], ids=range(len(EXAMPLES)))
def test_an_example_is_python(code):
    ast.parse(code)


def test_the_data_set_of_the_example_can_be_verified_and_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (["-c", DATA], ["-m", "dsgd_mpi", "data", "verify", "digits.h5"],
                  ["-m", "dsgd_mpi.train", "--data", "./digits.h5", "--epochs", 2, "--out", "run"]):
        status, output, errors = run(*words)
        assert status == 0, output + errors
    assert (tmp_path / "run" / "summary.json").exists()
