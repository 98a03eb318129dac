"""Steps that are shared out: each is done once, by whoever is free, on a simulated cluster and over MPI."""

import json
import os
import signal

import numpy as np
import pytest

from dsgd_mpi import algorithms
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.net.simulated.machine import star
from dsgd_mpi.training import loop
from dsgd_mpi.training.display import Display
from dsgd_mpi.training.record import Record
from tests.support.jobs import Job, pids, train, until
from tests.support.runs import training

WAYS = [("adpsgd", {}), ("easgd", {}), ("gossip", {"mode": "push"}), ("parameter_server", {}),
        ("parameter_server", {"servers": 1}), ("gosgd", {}), ("gossip", {"partner": "independent"}),
        ("async_local", {})]
every_way = pytest.mark.parametrize(("name", "options"), [
    pytest.param(*way, marks=() if number in (0, 3, 4) else pytest.mark.soak) for number, way in enumerate(WAYS)],
    ids=lambda value: str(value))
SLOW = 3                                    # rank


def simulated(folder, name, options, steps, ask=None, resume=False):
    """A run on four ranks, of which one takes five times as long: of each the step reached, the summary, the model."""
    def main(host):
        run = training(host, folder, algorithms.find(name)(**options), steps, shared_out=True)
        first, totals = run.checkpoints.restore(run.model.flat, run.optimizer, run.algorithm) if resume else (0, None)
        record = Record(host, run.algorithm, folder, Display(False), 1000, 2, 1, 5, first, totals)
        reached = loop.train(run, record, first, lambda: host.rank == 1 and record.rank_steps == ask)
        return reached, record.finish("", reached, {}), run.model.flat.copy()
    costs = star(gradient_s=lambda rank, step: 5.0 if rank == SLOW else 1.0)
    return list(zip(*Cluster(4, costs).run(main), strict=True))


@every_way
def test_simulated_each_step_is_done_once_and_a_slow_rank_does_few(tmp_path, name, options):
    reached, summaries, models = simulated(tmp_path, name, options, steps=60)
    steps = summaries[0]["rank_steps"]
    assert reached == (60,) * 4
    assert sum(steps) == 60
    assert steps[SLOW] * 3 < steps[1] == pytest.approx(steps[2], abs=3)
    assert (steps[0] == 0) == ("servers" in options)
    assert all(np.array_equal(model, models[0]) for model in models)
    assert np.isfinite(models[0]).all()
    assert sorted(path.name for path in tmp_path.glob("check*")) == ["checkpoint-000000050", "checkpoint-000000060"]
    assert [json.loads(line)["step"] // 5 for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][-1] == 12


@every_way
def test_simulated_who_is_asked_to_stop_stops_all_and_the_run_goes_on_from_there(tmp_path, name, options):
    reached, summaries, _ = simulated(tmp_path, name, options, steps=60, ask=5)
    assert len(set(reached)) == 1
    assert reached[0] == sum(summaries[0]["rank_steps"]) < 25
    assert (tmp_path / f"checkpoint-{reached[0]:09d}").is_dir()
    reached, summaries, _ = simulated(tmp_path, name, options, steps=60, resume=True)
    assert reached == (60,) * 4
    assert sum(summaries[0]["rank_steps"]) == 60


@pytest.mark.parametrize(("name", "options"), [
    pytest.param(*WAYS[0], marks=pytest.mark.soak), WAYS[2], WAYS[4]], ids=lambda value: str(value))
def test_over_mpi_a_slow_rank_does_few_steps_and_the_run_is_stopped_and_goes_on(tmp_path, small, name, options):
    folder = tmp_path / "run"
    settings = [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    job = Job("-m", "dsgd_mpi.train", *small, "--algorithm", name, *settings, "--lr", 0.01, "--batch", 4,
              "--steps-total", 100_000, "--slow-rank", "3:0.3", "--log-every", 20, "--out", folder, ranks=4)
    metrics = folder / "metrics.jsonl"
    until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 10, limit_s=90)
    os.kill(pids(str(folder))[-1], signal.SIGUSR1)
    status, output, errors = job.finish()
    assert status == 75, output + errors
    stopped = json.loads((folder / "summary.json").read_text())
    assert stopped["steps"] == sum(stopped["rank_steps"]) < 100_000
    assert 0 < 5 * stopped["rank_steps"][3] < max(stopped["rank_steps"])
    goal = stopped["steps"] + 150
    status, output, errors = train("--resume", folder, "--steps-total", goal, ranks=4, limit_s=120)
    assert status == 0, output + errors
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["steps"], sum(summary["rank_steps"])) == ("finished", goal, goal)
    assert summary["images"] == 4 * goal
    assert all(now >= then for now, then in zip(summary["rank_steps"], stopped["rank_steps"], strict=True))
    assert 0 < summary["accuracy"] < 1
    if summary["staleness"]:
        assert sum(summary["staleness_counts"].values()) >= goal    # one for each step, and part of the model
