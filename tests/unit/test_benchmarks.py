"""What the benchmarks say: tables are made from results, and results name the code that was measured."""

import json
import subprocess

import pytest
from click.testing import CliRunner

from benchmarks import table
from benchmarks.cpu import layers as cpu_layers
from benchmarks.cpu import share, step, waiting
from benchmarks.gpu import feeding
from benchmarks.gpu import step as gpu_step
from benchmarks.learning import convergence
from benchmarks.net import straggler, wire
from benchmarks.shared import provenance
from tests.support import ROOT

BENCHMARKS = ROOT / "benchmarks"
RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))
PROGRAMS = (step, cpu_layers, share, waiting, gpu_step, feeding, straggler, wire, convergence)


def test_no_figure_of_the_tables_is_typed_by_hand():
    assert (BENCHMARKS / "results" / "README.rst").read_text() == table.page(), "run python -m benchmarks.table"


def test_the_prose_is_short_and_leaves_figures_to_the_tables():
    text = (BENCHMARKS / "README.rst").read_text()
    assert len(text.splitlines()) <= 200
    assert "list-table" not in text


def git(folder, *words):
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
    done = subprocess.run(["git", "-C", folder, *who, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("first\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "--quiet", "--message", "First")
    return tmp_path


def test_a_result_names_a_commit_that_exists():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    for path in RESULTS:
        git(ROOT, "cat-file", "-e", json.loads(path.read_text())["commit"].removesuffix("+changes") + "^{commit}")


def test_results_do_not_make_a_tree_dirty(repository):
    (repository / "benchmarks" / "results").mkdir(parents=True)
    (repository / "benchmarks" / "results" / "one.json").write_text("{}")
    assert provenance.commit(repository) == git(repository, "rev-parse", "--short", "HEAD")


def test_no_commit_vouches_for_a_tree_with_changes(repository):
    (repository / "code.py").write_text("second\n")
    (repository / "new.py").write_text("new\n")
    with pytest.raises(provenance.Unsaved) as refused:
        provenance.commit(repository)
    assert refused.value.message == (
        "a result names the commit that was measured; expected a working tree without changes, found 2 changed or new: "
        "code.py, new.py; commit first, or run with --no-save")


def test_no_commit_vouches_for_a_folder_without_git(tmp_path):
    with pytest.raises(provenance.Unsaved, match="found no commit"):
        provenance.commit(tmp_path)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_every_benchmark_refuses_before_it_measures(monkeypatch, program):
    def refuse():
        raise provenance.Unsaved("refused")
    monkeypatch.setattr(provenance, "commit", refuse)
    done = CliRunner().invoke(program.main, [])
    assert (done.exit_code, done.output) == (2, "Error: refused\n")


def test_nothing_is_saved_from_a_dirty_tree(monkeypatch, repository):
    (repository / "code.py").write_text("second\n")
    check = provenance.commit
    monkeypatch.setattr(provenance, "commit", lambda: check(repository))
    monkeypatch.setattr(provenance, "RESULTS", repository / "results")
    with pytest.raises(provenance.Unsaved, match=r"1 changed or new: code\.py"):
        provenance.save("result", {})
    assert not (repository / "results").exists()
    git(repository, "commit", "--quiet", "--all", "--message", "Second")
    saved = json.loads(provenance.save("result", {"seconds": [1.0]}).read_text())
    assert saved["commit"] == git(repository, "rev-parse", "--short", "HEAD")
    assert saved["seconds"] == [1.0]


def test_programs_are_found_by_name():
    """Without a search path that is set for them."""
    for program in PROGRAMS:
        assert program.__name__ in (BENCHMARKS / "README.rst").read_text(), program.__name__
    assert not [path for path in BENCHMARKS.rglob("*.py") if "sys.path" in path.read_text()]
