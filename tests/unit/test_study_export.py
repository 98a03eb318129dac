"""A study's figures, as other programs read them, are those of its results."""

import csv
import importlib.util

import pytest
from click.testing import CliRunner

from dsgd_mpi.study.export import extrap, values
from dsgd_mpi.study.plan import read
from dsgd_mpi.study.plot import plot
from dsgd_mpi.study.results import outcomes, write

STUDY = """
[study]
name = "s"
target = 0.5
seeds = [0, 1]
[base]
cluster = "ethernet-10g"
[axes]
algorithm = ["allreduce", {name = "gossip", label = "gossip, pull"}]
ranks = [2, 4, 8, 16, 32]
"""


@pytest.fixture
def study(tmp_path):
    """With results whose steps take 0.1 s of computing, and 0.01 s more of waiting for each rank."""
    (tmp_path / "study.toml").write_text(STUDY)
    found = read(tmp_path / "study.toml")
    found.results = tmp_path
    for cell in found.known(lambda cell: None):
        wait = 0.01 * cell.ranks * 100
        write(found, cell, {
            "config": cell.resolved(), "rows": [
                {"step": 100, "epoch": 2, "images": 1600 * cell.ranks, "wall_s": 10 + wait, "eval_s": 0.0,
                 "accuracy": 0.8}],
            "summary": {"status": "finished", "accuracy": 0.8, "wall_s": 10 + wait, "eval_s": 0.0, "compute_s": 10.0,
                        "wait_s": wait, "data_s": 0.0, "steps": 100, "epochs": 2, "images": 1600 * cell.ranks},
            "metrics": {"step": [100], "epoch": [2], "training_s": [10 + wait], "loss": [1.0]}})
    return found


def test_plot_draws_a_study_from_its_folder_and_writes_it_for_others(study, tmp_path):
    to = tmp_path / "pictures"
    done = CliRunner().invoke(plot, ["--study", str(tmp_path), "--to", str(to), "--extrap"], catch_exceptions=False)
    assert (done.exit_code, done.stderr) == (0, "")
    assert {path.name for path in to.iterdir()} == {line.rpartition("/")[2] for line in done.stdout.splitlines()}
    assert {"scaling.png", "scaling.pdf", "study.csv", "values.txt", "runs.csv", "extrap.txt"} <= {
        path.name for path in to.iterdir()}
    with open(to / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["ranks"], row["global_batch"], row["runs"]) for row in rows[:2]] == [("2", "32", "2")] * 2
    assert float(rows[0]["minutes_to_target"]) == pytest.approx(12 * 0.5 / 0.8 / 60, rel=1e-4)


@pytest.mark.parametrize(("words", "found"), [([], "neither"), (["--extrap", "."], "no study"),
                                              (["--study", ".", "."], "both")])
def test_plot_takes_runs_or_a_study(words, found):
    done = CliRunner().invoke(plot, words)
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: expected run folders, or a study by --study")
    assert done.stderr.endswith(f"found {found}\n")


def test_a_study_without_results_is_told(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    done = CliRunner().invoke(plot, ["--study", str(tmp_path)])
    assert done.exit_code == 2
    assert "expected results of s, found none" in done.stderr


def test_values_are_a_name_and_a_number_a_line(study):
    found = dict(line.split(": ") for line in values(study, outcomes(study)).splitlines())
    assert float(found["s.gossip-pull.8.wait_s"]) == pytest.approx(0.08)
    assert float(found["s.allreduce.2.accuracy"]) == 0.8
    assert found["s.allreduce.2.n"] == "2"


def test_a_region_with_gaps_is_left_out_of_the_text_for_extrap(study):
    known = outcomes(study)
    assert extrap(known).count("REGION") == 2 * 5
    known[0].results.clear()
    assert extrap(known).count("REGION") == 5


@pytest.mark.skipif(importlib.util.find_spec("extrap") is None, reason="extrap is not installed: pip install extrap")
@pytest.mark.filterwarnings("ignore")       # of what it imports
def test_extrap_finds_how_a_step_grows(study, tmp_path):
    from extrap.fileio.file_reader.text_file_reader import TextFileReader
    from extrap.modelers.model_generator import ModelGenerator
    (tmp_path / "extrap.txt").write_text(extrap(outcomes(study)))
    experiment = TextFileReader().read_experiment(str(tmp_path / "extrap.txt"))
    generator = ModelGenerator(experiment)
    generator.model_all()
    model = next(model for (path, metric), model in generator.models.items()
                 if (path.name, metric.name) == ("allreduce", "step_s"))
    assert model.hypothesis.function.evaluate(64) == pytest.approx(0.1 + 0.64, rel=0.02)
