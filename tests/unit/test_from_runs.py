"""A cluster is inferred from runs: from those of a cluster that is known, and from run folders."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from dsgd_mpi.config import Config
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.simulated.machine import Gradient, Link, Machine, read
from dsgd_mpi.study import calibrate, from_runs
from dsgd_mpi.study.from_runs import Taken, inferred, step_s, taken

THERE = Machine(ranks_per_node=2, card=Link(2e8, 3e-4), node=Link(3e9, 2e-5), collective="ring",
                gradient=Gradient(seconds=0.02, model="resnet8", batch=16, image=(28, 28, 1)))
WAYS = {"allreduce": Config("allreduce"), "gossip": Config("gossip")}


def known(way, ranks, per_node):
    run = Taken(way, WAYS[way], ranks, per_node, 0.0, (0.02,) * 5)
    return replace(run, step_s=step_s(run, THERE))


def test_runs_of_a_known_cluster_tell_how_long_it_takes_on_more_ranks(monkeypatch):
    runs = [known(way, ranks, min(ranks, 2)) for way in WAYS for ranks in (2, 8)]
    monkeypatch.setattr(from_runs, "FINEST", 0.08)
    monkeypatch.setattr(from_runs, "STEPS", 6)
    monkeypatch.setattr(from_runs, "run_folders", lambda folders: range(len(runs)))
    monkeypatch.setattr(from_runs, "taken", lambda number: runs[number])
    found = inferred([])
    assert found.error < 0.03
    assert len(found.others) == 2
    for way in WAYS:
        low, likely, high = found.predicted(known(way, 32, 2))
        truth = known(way, 32, 2).step_s
        assert low <= likely <= high
        assert likely == pytest.approx(truth, rel=0.1)
    assert any("128" in line and "images/s" in line for line in from_runs.told(found, 128))


def write_run(folder, ranks, hosts, step, wait, config="", summary=None):
    """Forty steps, a line every ten."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(config or 'model = "resnet8"\nbatch = 16\n')
    (folder / "summary.json").write_text(json.dumps({"status": "finished", "ranks": ranks, **(summary or {})}))
    (folder / "env.json").write_text(json.dumps({"ranks": [{"host": f"n{rank * hosts // ranks}"}
                                                           for rank in range(ranks)]}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps({
        "step": count, "epoch": 1.0, "images_per_s": 1.0, "loss": 1.0, "wall_s": count * step + 0.5 * (count > 20),
        "eval_s": 0.5 * (count > 20), "wait_s": count * wait}) + "\n" for count in (10, 20, 30, 40)))
    (folder / "summary.csv").write_text("step,epoch,wall_s,images_per_s,accuracy\n")


def test_what_a_run_took_is_read_from_its_folder(tmp_path):
    write_run(tmp_path / "a", 4, 2, 0.03, 0.01)
    run = taken(tmp_path / "a")
    assert (run.way, run.ranks, run.per_node, run.step_s) == ("allreduce", 4, 2, pytest.approx(0.03))
    assert run.own_s == pytest.approx((0.02, 0.02, 0.02))
    write_run(tmp_path / "b", 4, 2, 0.03, 0.01, summary={"status": "stopped"})
    write_run(tmp_path / "c", 4, 2, 0.03, 0.01, summary={"simulated": "all times and rates"})
    assert taken(tmp_path / "b") is None
    assert taken(tmp_path / "c") is None


def test_calibrate_writes_the_cluster_and_a_picture_without_mpi(tmp_path, monkeypatch, capsys):
    for ranks, step in ((1, 0.02), (2, 0.021), (4, 0.03)):
        write_run(tmp_path / "runs" / f"{ranks}", ranks, max(1, ranks // 2), step, step - 0.02)
    (tmp_path / "runs" / "x.json").write_text("{}")
    words = ["--from", *map(str, sorted((tmp_path / "runs").iterdir())), "--out", str(tmp_path / "my.toml"), "--ranks",
             "8"]
    asked = calibrate.command.main(words, prog_name="x", standalone_mode=False)
    assert calibrate.run(asked, None, 0, None) == 0
    said = capsys.readouterr().out
    assert "allreduce" in said
    assert "images/s" in said
    machine = read(tmp_path / "my.toml")
    assert (machine.ranks_per_node, machine.gradient.batch) == (2, 16)
    assert machine.gradient.seconds == pytest.approx(0.02)
    assert (tmp_path / "my.png").stat().st_size > 5000


@pytest.mark.parametrize(("configs", "message"), [
    (["batch = 16\n", "batch = 8\n"], "one model and one batch a rank, found resnet8 with 8, resnet8 with 16 images"),
    ([], "expected a run folder")])
def test_runs_that_tell_nothing_are_refused(tmp_path, configs, message):
    for number, config in enumerate(configs):
        write_run(tmp_path / "runs" / f"{number}", 2, 1, 0.03, 0.01, config='model = "resnet8"\n' + config)
    with pytest.raises(UsageError, match=message):
        inferred([tmp_path / "runs"])


def test_runs_are_given_after_from(tmp_path):
    told = CliRunner().invoke(calibrate.command, ["runs/a"])
    assert told.exit_code == 2
    assert "runs are given after --from" in told.output
