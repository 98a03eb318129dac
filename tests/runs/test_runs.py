"""Whole runs, as a user starts them: what they leave behind."""

import csv
import dataclasses
import json
import time
from collections import Counter

import numpy as np
import pytest

from dsgd_mpi import algorithms
from dsgd_mpi.nn import resnet
from tests.support.jobs import run, train
from tests.support.left import SMALL, model_of, steps_of


@pytest.mark.parametrize(("ranks", "algorithm"), [(None, "allreduce"), (2, "allreduce"), (4, "gossip")])
def test_a_run_leaves_its_folder(tmp_path, ranks, algorithm):
    status, output, errors = train(*SMALL, "--algorithm", algorithm, "--out", tmp_path / "run", ranks=ranks)
    assert (status, errors) == (0, "")
    assert "result" in output
    assert "warm-up of 6 steps, half of the run, sgd" in " ".join(output.replace("│", " ").split())
    assert f"python -m dsgd_mpi plot {tmp_path / 'run'}" in output
    count = ranks or 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert (summary["algorithm"], summary["ranks"], summary["steps"]) == (algorithm, count, 12)
    assert summary["epochs"] == pytest.approx(12 * 8 * count / 12_000, rel=0.01)
    assert 0 < summary["accuracy"] < 1
    for key in ("model", "data", "seed", "train_loss", "images_per_s", "wall_s", "compute_s", "comm_s", "wait_s",
                "data_s", "bytes_sent", "consensus_distance"):
        assert summary[key] is not None, key
    assert summary["wall_s"] >= summary["compute_s"] > 0
    assert (summary["bytes_sent"] > 0) == (count > 1)
    assert (summary["consensus_distance"] > 0) == (algorithm == "gossip")
    assert steps_of(tmp_path / "run") == [4, 8, 12]
    assert len((tmp_path / "run" / "summary.csv").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "run" / "env.json").read_text())["ranks"][-1]["kernels"] in ("onednn", "reference")
    assert model_of(tmp_path / "run")["fc.weight"].shape == (10, 64)
    repeated = train("--config", tmp_path / "run" / "config.toml", "--print-config")[1]
    assert repeated == (tmp_path / "run" / "config.toml").read_text()


# one for each way in which ranks talk; the others, which the laws hold to over MPI, too, are for make soak
BY_VERBS = {"adpsgd", "allreduce", "backup", "gossip", "hierarchical", "parameter_server", "sgp"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in BY_VERBS else pytest.mark.soak)
                                  for name in algorithms.names()])
def test_every_algorithm_trains_a_network_and_goes_on_from_its_checkpoint(tmp_path, small, name):
    folder = tmp_path / "run"
    status, _, errors = train(*SMALL, *small, "--algorithm", name, "--lr", 0.01, "--out", folder, ranks=3)
    assert (status, errors) == (0, "")
    summary = json.loads((folder / "summary.json").read_text())
    assert 0 < summary["train_loss"] < 3
    own = [summary[f"own_accuracy_{each}"] for each in ("min", "mean", "max")]
    if algorithms.find(name).one_model:
        assert own == [None] * 3
    else:                                   # the mean of equal numbers is rounded
        assert own[0] - 1e-9 <= own[1] <= own[2] + 1e-9
    serving = algorithms.find(name)().servers
    assert summary["images"] == 12 * 8 * 3 or serving       # who serves computes no gradient
    assert summary["images_applied"] == (12 * 8 if name == "backup" else summary["images"])
    one_sided = algorithms.find(name).one_sided
    assert (summary["staleness"] is not None) == one_sided
    steps = [0] * serving + [12] * (3 - serving)
    assert (summary["rank_steps"], summary["lr"] > 0) == (steps, True)
    counts = {int(stale): count for stale, count in summary["staleness_counts"].items()}
    with open(folder / "summary.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    assert row["rank_steps"] == " ".join(map(str, steps))
    assert row["staleness_counts"] == " ".join(f"{stale}:{count}" for stale, count in sorted(counts.items()))
    assert row["staleness_max"] == (str(max(counts)) if one_sided else "")
    apart = summary["rank_consensus_distance"]
    assert [each is None for each in apart] == [not count for count in steps]
    assert np.mean([each for each in apart if each is not None]) == pytest.approx(summary["consensus_distance"])
    assert row["rank_consensus_distance"] == " ".join("-" if each is None else f"{each:.6g}" for each in apart)
    assert all(float(row[key]) >= 0 for key in ("consensus_distance", "bytes_sent", "wait_s", "lr"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["rank_steps"] for line in lines] == ([0, 0, 0] if serving else [4, 8, 12])
    told = sum((Counter(line["staleness_counts"]) for line in lines), Counter())    # of rank 0
    assert (0 < told.total() <= sum(counts.values())) if one_sided else not told
    assert np.isfinite(model_of(folder)["fc.weight"]).all()
    assert all((view > 0).all() for key, view in model_of(folder).items() if key.endswith("running_var"))
    status, _, errors = train("--resume", folder, "--steps", 18, ranks=3)
    assert (status, errors) == (0, "")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 18
    assert summary["images_applied"] == (18 * 8 if name == "backup" else summary["images"])


@pytest.mark.parametrize(("algorithm", "asked", "bn"), [
    ("allreduce", "average", "average"), ("allreduce", "recalibrate", "recalibrate"), ("allreduce", "local", "local"),
    ("allreduce", "auto", "average"), ("gossip", "auto", "recalibrate"), ("gossip", "average", "average")])
def test_the_statistics_of_the_answer_are_those_asked_for(tmp_path, algorithm, asked, bn):
    """Over so few steps the running averages are still near their start, the measured ones are not."""
    status, output, errors = train("--algorithm", algorithm, "--steps", 2, "--batch", 32, "--lr", 0, "--bn", asked,
                                   "--out", tmp_path / "run", ranks=2)
    assert (status, errors) == (0, "")
    assert f"batch norm statistics: {bn}" in output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["bn"] == bn
    assert (0 < summary["recalibrate_s"] < summary["eval_s"]) == (bn == "recalibrate")
    own = model_of(tmp_path / "run")["layer3.0.bn2.running_var"].mean()
    start = resnet("resnet8", 10, (28, 28, 1), 32, "reference").state["layer3.0.bn2.running_var"].mean()
    assert (abs(own - start) < 0.25) == (bn != "recalibrate")


def test_a_slow_rank_is_slow_and_the_others_wait_for_it(tmp_path, small):
    start = time.monotonic()
    status, _, errors = train(*SMALL, *small, "--slow-rank", "1:0.3", "--out", tmp_path / "run", ranks=2)
    assert (status, errors) == (0, "")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert time.monotonic() - start > summary["wall_s"] > 12 * 0.3
    assert summary["wait_s"] > 12 * 0.3 / 2 * 0.8            # the mean of one that waits and one that does not


def test_more_ranks_than_cores(tmp_path, small):
    status, _, errors = train(*small, "--steps", 20, "--batch", 2, "--out", tmp_path / "run", ranks=16, limit_s=120)
    assert status == 0, errors


def test_a_network_learns_the_real_images(tmp_path):
    """Guessing is right in 10 %; one epoch, 2 ranks."""
    assert train("--epochs", 1, "--batch", 32, "--out", tmp_path / "run", ranks=2, limit_s=120)[0] == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["accuracy"] > 0.5


# without MPI

def test_questions_are_answered_without_mpi(tmp_path):
    for module, *args in (("train", "--help"), ("train", "--dry-run"), ("train", "--print-config"),
                          ("train", "--algorithm", "list"), ("__main__", "data", "--help"),
                          ("__main__", "plot", "--help"), ("__main__", "train", "--help"), ("__main__", "--help")):
        program = ("import sys, runpy; sys.modules['mpi4py'] = None; "
                   f"sys.argv = ['dsgd', *{args!r}]; runpy.run_module('dsgd_mpi.{module}', run_name='__main__')")
        status, output, errors = run("-c", program)
        assert (status, errors) == (0, ""), (module, args, errors)
        assert output


def test_the_list_tells_of_each_algorithm_all_that_is_to_be_known():
    listed = train("--algorithm", "list")[1]
    for name in algorithms.names():
        found = algorithms.find(name)
        entry = f"\n{listed}".partition(f"\n{name}   --set ")[2].partition("--set")[0]
        assert all(f"{item.name}={item.default}" in entry for item in dataclasses.fields(found))
        assert "arXiv" in entry or "et al." in entry
        assert f"communication per step     {found.traffic}" in entry
        assert f"model evaluated and saved  {found.offers}" in entry
        assert "--steps-total  " in entry
    assert "with mode=push" in listed


@pytest.mark.parametrize(("options", "new"), [((), "sgp"), (("--set", "graph=exponential"), "sgp"),
                                              (("--set", "graph=random", "--set", "probability=0.5"), "gosgd")])
def test_an_algorithm_s_old_name_works_and_says_the_new_one(options, new):
    status, output, errors = train("--dry-run", "--algorithm", "push_sum", *options)
    assert status == 0
    assert "configuration OK: push_sum on 1 ranks" in output
    assert errors.strip().endswith(f"is now called {new}: use --algorithm {new}")
    assert errors.count("\n") == 1


def test_a_run_without_an_mpi_library_says_what_to_install(tmp_path):
    program = "import sys; sys.modules['mpi4py'] = None; from dsgd_mpi.train import main; main()"
    status, _, errors = run("-c", program, "--out", tmp_path / "run")
    assert status == 2
    assert "MPI could not be loaded" in errors
    assert "pip install mpich" in errors
