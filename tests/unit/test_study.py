"""A study: what its file may say, which cells follow, what is run again, how the best rate is found, and its table."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from dsgd_mpi import algorithms
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.simulated import machine
from dsgd_mpi.study import axes, elsewhere, figures
from dsgd_mpi.study.plan import read
from dsgd_mpi.study.plot import plot
from dsgd_mpi.study.results import Result, gather, load, outcomes, reader, thinned
from dsgd_mpi.study.study import check, commit, counted, run_all, study
from dsgd_mpi.study.table import digits, row_of, table_of
from tests.support import ROOT
from tests.support.data_samples import dataset_file

FILES = sorted((ROOT / "jobs" / "studies").glob("*.toml"))
PLAIN = """
[study]
name = "s"
target = 0.5
seeds = [3, 4]
[base]
batch = 8
cluster = "ethernet-10g"
[axes]
algorithm = ["allreduce", {name = "gossip", set = {mode = "push"}, label = "push", momentum = 0.5}]
ranks = [4, 2]
"""
TUNED = PLAIN + "[tune]\nlr = [0.4, 0.1, 0.2]\n"


def made(tmp_path, text=PLAIN, **more):
    path = tmp_path / "s.toml"
    path.write_text(text)
    found = read(path, **more)
    found.results = tmp_path / "results"
    return found


class Fake:
    """An executor whose runs are as accurate as `accuracy` says, and fail where that is None."""

    def __init__(self, accuracy=lambda cell: 0.6):
        self.accuracy, self.ran = accuracy, []

    def __call__(self, cell, folder):
        self.ran.append(cell)
        found = self.accuracy(cell)
        if found is None:
            (folder / "log").write_text("something\nError: rank 1: out of luck\n")
            return 1
        write_run(folder, found, seconds=100 / cell.ranks)
        return 0


def write_run(folder, accuracy, seconds=10.0, status="finished"):
    """Two evaluations, the first half as accurate."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"wall_s": seconds + 1, "eval_s": 1.0, "compute_s": seconds / 2, "wait_s": seconds, "data_s": 0.0,
               "images": 1000, "accuracy": accuracy}
    (folder / "summary.json").write_text(json.dumps({"status": status, "steps": 100, **figures}))
    half = [f"{step},{step / 50},{part * accuracy},{part * seconds + 1},1.0,{step * 10},1 1"
            for step, part in ((50, 0.5), (100, 1.0))]
    (folder / "summary.csv").write_text("\n".join(["step,epoch,accuracy,wall_s,eval_s,images,rank_steps", *half, ""]))
    lines = [{"step": step, "epoch": step / 50, "loss": 2.0 if step % 2 else None, "wall_s": step / 10, "eval_s": 0.0}
             for step in range(1, 101)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


# reading

def test_cells_are_each_value_of_each_axis_with_each_other_and_each_seed(tmp_path):
    found = made(tmp_path)
    assert [(group.label, group.ranks) for group in found.groups] == [
        ("allreduce", 2), ("push", 2), ("allreduce", 4), ("push", 4)]
    cells = found.known(lambda cell: None)
    assert len(cells) == found.expected(lambda cell: None) == 8 == len({cell.name for cell in cells})
    assert {cell.config.seed for cell in cells} == {3, 4}
    assert cells[2].config.momentum == 0.5
    assert cells[2].words() == ["--algorithm", "gossip", "--set", "mode=push", "--seed", "3", "--batch", "8",
                                "--momentum", "0.5", "--ranks", "2", "--gradients", "real"]


def test_a_batch_is_for_a_rank_or_for_all_and_equal_runs_are_one(tmp_path):
    found = made(tmp_path, PLAIN.replace("batch = 8\n", "").replace("ranks = [4, 2]",
                                                                    "ranks = [2, 4]\nbatch = [8, {total = 32}]"))
    batches = {(group.facet["batch"], group.ranks): group.cell.config.batch for group in found.groups}
    assert batches == {("batch 8 a rank", 2): 8, ("batch 8 a rank", 4): 8, ("batch 32 in total", 2): 16,
                       ("batch 32 in total", 4): 8}
    assert len(found.groups) * 2 - len(found.known(lambda cell: None)) == 4     # 4 ranks of 8 are a total of 32


def test_a_hash_is_of_what_makes_another_run_and_of_nothing_else(tmp_path):
    def hashes(text):
        return [cell.hash for cell in made(tmp_path, text).known(lambda cell: None)]
    first = hashes(PLAIN)
    assert len(first) == len(set(first))
    for same in (PLAIN.replace("batch = 8", "batch = 8\nthreads = 3\nlr = 0.2\nkeep = 3"),
                 PLAIN.replace('"allreduce"', '"allreduce bucket_mb=4.0"'),
                 PLAIN.replace('label = "push"', 'label = "another"'),
                 PLAIN.replace('"ethernet-10g"', '{name = "ethernet-10g", label = "a", about = "b"}')):
        assert hashes(same) == first
    for other in (PLAIN.replace("batch = 8", "batch = 9"), PLAIN.replace("batch = 8", "batch = 8\nlr = 0.3"),
                  PLAIN.replace('"ethernet-10g"', '{name = "ethernet-10g", enters_mpi_s = 0.1}'),
                  PLAIN.replace("batch = 8", 'batch = 8\nas = "resnet50"'), PLAIN.replace("[4, 2]", "[3, 5]"),
                  PLAIN.replace('mode = "push"', 'mode = "push", period = 2').replace('"allreduce"', '"dpsgd"')):
        assert not set(hashes(other)) & set(first)


def test_a_cluster_may_be_changed_for_one_study(tmp_path):
    text = PLAIN.replace('cluster = "ethernet-10g"\n', "") + (
        'cluster = ["ethernet-10g", {name = "ethernet-10g", label = "slow", slow = [{ranks = [0], factor = 3.0}]}]\n')
    places = {group.facet["cluster"]: group.cell.place.machine for group in made(tmp_path, text).groups}
    assert places["ethernet-10g"] == machine.read(machine.found("ethernet-10g"))
    assert places["slow"].slow == (machine.Slow(ranks=(0,), factor=3.0),)


def test_all_are_the_algorithms_that_there_are_and_partitions_are_an_axis(tmp_path):
    text = PLAIN.replace('"allreduce"', '"all"').replace("[4, 2]", '[4]\npartition = ["iid", "dirichlet:0.1"]')
    found = made(tmp_path, text)
    for rule in ("iid", "dirichlet:0.1"):
        alike = [group for group in found.groups if group.cell.config.partition == rule]
        assert [group.label for group in alike] == [*algorithms.names(), "push"]
        assert {group.facet["partition"] for group in alike} == {f"partition {rule}"}
        shared = [group.label for group in alike if group.cell.at(0.4, 0).config.lr == 0.1]
        assert shared == [name for name in algorithms.names() if algorithms.find(name)().updates_add_up] != []
        assert ("--partition" in alike[0].cell.words()) == (rule != "iid"), "as every default, it changes no hash"
    with pytest.raises(UsageError, match="unknown algorithm 'all'"):
        made(tmp_path, re.sub("algorithm = .*", "", PLAIN).replace("[base]", '[base]\nalgorithm = "all"'))


def test_a_study_is_checked_with_each_seed(tmp_path):
    text = PLAIN.replace("[base]", '[base]\npartition = "sizes:0.5"').replace("[4, 2]", "[8]")
    check(made(tmp_path, text.replace("[3, 4]", "[3, 5]")))
    with pytest.raises(UsageError, match=r"s.toml: allreduce on 8 ranks: --partition sizes:0.5: expected at least a b"):
        check(made(tmp_path, text.replace("[3, 4]", "[3, 6]")))


def test_the_share_of_a_rate_is_a_ranks(tmp_path):
    found = made(tmp_path, TUNED.replace('label = "push"', 'label = "push", share_lr = true'))
    cells = found.trials(found.groups[3], lambda cell: None)
    assert {(cell.way.label, cell.ranks, cell.config.lr) for cell in cells} == {
        ("push", 4, 0.1 / 4), ("push", 4, 0.2 / 4), ("push", 4, 0.4 / 4)}


@pytest.mark.parametrize(("old", "new", "message"), [
    ("batch = 8", "batch = 0", "batch: expected at least 1 and .* found 0"),
    ("batch = 8", "bach = 8", "unknown option 'bach'; did you mean 'batch'"),
    ("batch = 8", "batch = {totl = 8}", "expected images a rank, or {total = IMAGES}"),
    ("batch = 8", "batch = {total = 9}", "a total of 9 images cannot be divided by 2 ranks"),
    ("batch = 8", "batch = true", "batch: expected an integer, found true"),
    ("batch = 8", "lr = nan", "lr: expected a finite number|lr: expected at least 0"),
    ("batch = 8", "seed = 8", "see seeds in"),
    ("batch = 8", 'out = "x"', "out is set for each run by the study itself"),
    ("batch = 8", "ranks = 8", r"ranks is both in \[base\] and in \[axes\]"),
    ("batch = 8", 'gradients = "some"', "expected real or none"),
    ('cluster = "ethernet-10g"', "", "expected a cluster to simulate"),
    ('cluster = "ethernet-10g"', "cluster = 3", "expected a cluster's name or file"),
    ("ranks = [4, 2]", "ranks = 4", "ranks: expected a list"),
    ("ranks = [4, 2]", "ranks = [0]", "positive integers"),
    ("ranks = [4, 2]", "", r"expected ranks in \[axes\] or \[base\]"),
    ('"allreduce"', '"alreduce"', "unknown algorithm 'alreduce'"),
    ('"allreduce"', '"gossip mod=push"', "gossip has no option 'mod'"),
    ('"allreduce"', '"gossip push"', "KEY=VALUE"),
    ('"allreduce"', '"allreduce", "allreduce"', "two algorithms are called 'allreduce'"),
    ('"allreduce"', "7", "expected a string such as"),
    ("target = 0.5", "target = 80", "between 0 and 1"),
    ("seeds = [3, 4]", "seeds = [3, 3]", "different integers"),
    ("seeds = [3, 4]", "seds = [3, 3]", "unknown entry 'seds'"),
    ('name = "s"', 'name = "../s"', "name: expected letters"),
    ('name = "s"', 'executor = "mpi"', "expected one of simulate, local, slurm"),
    ('name = "s"', 'executor = "local"', "cluster: expected executor"),
    ("[base]", "[basis]", r"unknown table or option 'basis'; did you mean 'base'"),
    ("[base]", "[tune]\nlr = []\n[base]", r"\[tune\]: expected lr, a list of rates"),
    ("[base]", "[tune]\nlr = [-1]\n[base]", "expected at least 0"),
    ("batch = 8", "lr = 0.1\n[tune]\nlr = [0.1]", r"lr is in \[tune\]"),
    ("[base]", "[tune]\nlr = [0.1]\nbeyond = 2\n[base]", r"beyond: expected a number of rates.* found 2"),
    ("[base]", "[tune]\nlr = [0.1, 0.2]\nbeyond = -1\n[base]", r"beyond: expected a number of rates.* found -1"),
])
def test_a_wrong_file_is_told_in_one_line(tmp_path, old, new, message):
    assert old in PLAIN
    (tmp_path / "s.toml").write_text(PLAIN.replace(old, new, 1))
    told = CliRunner().invoke(study, [str(tmp_path / "s.toml"), "--dry-run"])
    assert told.exit_code == 2
    line = told.output.splitlines()[-1]
    assert line.startswith("Error: ")
    assert str(tmp_path / "s.toml") in line
    assert re.search(message, line), line


def test_a_job_file_with_a_grid_is_a_study(tmp_path):
    found = made(tmp_path, 'steps = 9\n[grid]\nranks = [4, 2]\nalgorithms = ["allreduce", "gossip mode=push"]\n')
    assert found.executor == "local"
    assert [(group.label, group.ranks, group.cell.config.steps) for group in found.groups] == [
        ("allreduce", 2, 9), ("gossip mode=push", 2, 9), ("allreduce", 4, 9), ("gossip mode=push", 4, 9)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_study_holds_cells_that_can_be_run(path, tmp_path, monkeypatch):
    monkeypatch.setenv("DSGD_DATA_DIR", str(tmp_path))
    for name, side, channels in (("fashion-mnist", 28, 1), ("cifar10", 32, 3)):
        dataset_file(tmp_path, train=1280, side=side, channels=channels).rename(tmp_path / f"{name}.h5")
    found = read(path)
    check(found)
    assert found.name == path.stem
    assert found.about
    assert re.match(rf"{found.name}: \d+ groups, {found.expected(reader(found))} cells", counted(found))


# running

def test_a_study_runs_every_cell_once_and_nothing_again(tmp_path):
    found, fake = made(tmp_path), Fake()
    assert run_all(found, fake, tmp_path / "runs", 3) == 0
    assert sorted(cell.name for cell in fake.ran) == sorted(cell.name for cell in found.known(lambda cell: None))
    assert run_all(found, again := Fake(), tmp_path / "runs", 3) == 0
    assert again.ran == []
    for each in (tmp_path / "runs").glob("*/summary.json"):
        each.unlink()                       # as on another machine, which has the results alone
    assert run_all(made(tmp_path, PLAIN.replace("[4, 2]", "[4, 2, 8]")), again, tmp_path / "runs", 1) == 0
    assert {cell.ranks for cell in again.ran} == {8}


def test_what_was_run_without_this_process_is_kept_and_not_run(tmp_path):
    found, fake = made(tmp_path), Fake()
    cell = found.known(lambda cell: None)[2]
    write_run(tmp_path / "runs" / cell.name, 0.75)
    (tmp_path / "runs" / cell.name / "checkpoint-000000100").mkdir()
    run_all(found, fake, tmp_path / "runs", 1)
    assert cell.name not in [each.name for each in fake.ran]
    assert load(found, cell).accuracy == 0.75
    assert not list((tmp_path / "runs" / cell.name).glob("checkpoint-*"))


def test_a_cell_that_fails_is_marked_and_named_and_the_others_go_on(tmp_path, capsys):
    found = made(tmp_path)
    bad = found.known(lambda cell: None)[3]
    assert run_all(found, Fake(lambda cell: None if cell.hash == bad.hash else 0.6), tmp_path / "runs", 2) == 1
    said = capsys.readouterr().out
    assert f"failed: {bad.name}: Error: rank 1: out of luck" in said
    assert "7 of 8 cells have a result" in said
    assert (tmp_path / "runs" / bad.name / "failed").exists()
    words = [str(tmp_path / "s.toml"), "--out", str(tmp_path / "results"), "--runs", str(tmp_path / "runs"), "--status"]
    status = CliRunner().invoke(study, words).output
    assert "7 done, 0 diverged, 1 failed, 0 missing" in status
    assert f"failed: {bad.name}: Error: rank 1: out of luck" in status
    assert run_all(found, fake := Fake(), tmp_path / "runs", 2) == 0
    assert [cell.hash for cell in fake.ran] == [bad.hash]
    assert not (tmp_path / "runs" / bad.name / "failed").exists()


def test_a_damaged_result_is_named_and_one_of_other_defaults_is_run_again(tmp_path):
    found = made(tmp_path)
    run_all(found, Fake(), tmp_path / "runs", 1)
    file = sorted(found.results.glob("*.json"))[0]
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "config": {**content["config"], "smoothing": 0.5}}))
    shown = [load(found, cell) for cell in found.known(lambda cell: None)]
    assert shown.count(None) == 1
    file.write_text(json.dumps(content)[:-50])
    with pytest.raises(UsageError, match=re.escape(str(file))):
        outcomes(found)


# the best rate

def test_the_best_rate_is_chosen_with_the_first_seed_and_the_other_seeds_take_it(tmp_path):
    found = made(tmp_path, TUNED)
    best = {2: {0.1: 0.5, 0.2: 0.7, 0.4: 0.6}, 4: {0.1: 0.5, 0.2: 0.6, 0.4: 0.7}}
    fake = Fake(lambda cell: best[cell.ranks][cell.config.lr])
    assert found.expected(reader(found)) == 4 * (3 + 1)
    assert run_all(found, fake, tmp_path / "runs", 2) == 0
    assert len(fake.ran) == found.expected(reader(found)) == 4 * (3 + 1)
    assert {(cell.ranks, cell.config.lr) for cell in fake.ran if cell.config.seed == 4} == {(2, 0.2), (4, 0.4)}
    known = {(each.group.label, each.group.ranks): each for each in outcomes(found)}
    assert (known["push", 2].lr, known["push", 2].at_edge, len(known["push", 2].results)) == (0.2, False, 2)
    assert (known["push", 4].lr, known["push", 4].at_edge) == (0.4, True)
    row = row_of(found, known["push", 4])
    assert (row["n"], row["accuracy"], row["reached"]) == (2, pytest.approx(0.7), 2)
    assert run_all(found, again := Fake(), tmp_path / "runs", 2) == 0
    assert again.ran == []


def test_rates_beyond_the_list_are_tried_while_the_best_is_the_first_or_the_last(tmp_path, capsys):
    found = made(tmp_path, TUNED + "beyond = 2\n")
    best = {2: {0.05: 0.4, 0.1: 0.7, 0.2: 0.6, 0.4: 0.5}, 4: {0.1: 0.5, 0.2: 0.6, 0.4: 0.7, 0.8: 0.8, 1.6: 0.9}}
    fake = Fake(lambda cell: best[cell.ranks][cell.config.lr])
    assert run_all(found, fake, tmp_path / "runs", 2) == 0
    assert len(fake.ran) == found.expected(reader(found)) == 2 * (4 + 1) + 2 * (5 + 1)
    known = {(each.group.label, each.group.ranks): (each.lr, each.at_edge, len(each.results))
             for each in outcomes(found)}
    assert known == {("allreduce", 2): (0.1, False, 2), ("push", 2): (0.1, False, 2),
                     ("allreduce", 4): (1.6, True, 2), ("push", 4): (1.6, True, 2)}
    assert "22 of 22 cells have a result" in capsys.readouterr().out
    before, after = found.slots(lambda cell: None), found.slots(reader(found))
    assert all(after[number].hash == cell.hash for number, cell in before.items())
    assert len({cell.hash for cell in after.values()}) == 22


def test_the_lower_of_equal_rates_is_taken_and_a_run_that_diverged_is_the_worst(tmp_path):
    found = made(tmp_path, TUNED)
    group = found.groups[0]
    assert found.choice(group, lambda cell: 0.5).lr == 0.1
    assert found.choice(group, lambda cell: None) is None
    assert found.choice(group, {0.1: 0.0, 0.2: 0.1, 0.4: 0.0}.get and (lambda cell: cell.config.lr == 0.2)).lr == 0.2
    assert Result({"config": {}, "summary": {"status": "diverged", "accuracy": 0.9}, "rows": [], "metrics": {}}
                  ).accuracy == 0


def test_points_of_a_job_array_keep_their_numbers(tmp_path):
    found = made(tmp_path, TUNED)
    before = found.slots(lambda cell: None)
    assert sorted(before) == list(range(12))
    assert [cell.hash for cell in before.values()] == [
        cell.hash for group in found.groups for cell in found.trials(group, lambda cell: None)]
    after = found.slots(lambda cell: 0.5)
    assert sorted(after) == list(range(16))
    assert all(after[number].hash == before[number].hash for number in before)


# what the results say

def test_a_target_is_reached_between_two_evaluations(tmp_path):
    write_run(tmp_path, 0.8, seconds=10)
    cell = made(tmp_path).known(lambda cell: None)[0]
    result = Result(gather(cell, tmp_path))
    at = result.reached(0.6)
    assert (at.steps, at.seconds, at.images, at.epochs) == pytest.approx((75, 7.5, 750, 1.5))
    assert result.reached(0.2).steps == pytest.approx(25)
    assert result.reached(0.81) is None
    assert result.images_per_s == pytest.approx(100)
    assert result.split() == pytest.approx({"compute": 0.05, "wait": 0.05, "data": 0, "other": 0})


def test_a_curve_is_thinned_by_means():
    lines = [{"step": step, "epoch": step, "loss": float(step), "wall_s": step + 1.0, "eval_s": 1.0}
             for step in range(1, 101)]
    curve = thinned(lines)
    assert len(curve["loss"]) <= 40
    assert curve["loss"][0] == pytest.approx(2)
    assert curve["step"][:2] == [3, 6] == curve["training_s"][:2]
    assert thinned([{**lines[0], "loss": None}])["loss"] == []


def test_the_table_says_mean_spread_and_count(tmp_path):
    found = made(tmp_path)
    run_all(found, Fake(lambda cell: 0.6 if cell.config.seed == 3 else 0.4), tmp_path / "runs", 1)
    row = row_of(found, outcomes(found)[0])
    assert (row["n"], row["accuracy"], row["accuracy_sd"]) == (2, pytest.approx(0.5), pytest.approx(0.1414, abs=1e-4))
    assert (row["reached"], row["simulated"]) == (1, True)
    table = table_of(found, outcomes(found))
    assert "simulated" in table.title
    assert next(iter(table.columns[5].cells)) == "50 +- 14%"
    assert next(iter(table.columns[8].cells)).endswith("(1 of 2)")
    words = [str(tmp_path / "s.toml"), "--out", str(found.results), "--table", "--target", "0.35"]
    other = CliRunner().invoke(study, words, env={"COLUMNS": "250"}).output
    assert "epochs to 35%" in other
    assert "(1 of 2)" not in other
    assert [digits(1234.5678, 12.3), digits(0.123456, 0.00234), digits(5, 0)] == ["1,235", "0.1235", "5.0"]


def test_ways_are_compared_by_what_they_mean():
    plain, same, other = axes.ways(["gossip", "gossip mode=pull period=1", "gossip period=2"], "here")
    assert plain.given() == same.given() == {}
    assert other.given() == {"period": "2"}


def test_a_study_of_one_simulated_cell_from_the_command_line(tmp_path):
    (tmp_path / "s.toml").write_text(PLAIN.replace("[3, 4]", "[3]").replace("[4, 2]", "[2]").replace(
        '"allreduce", ', "").replace("batch = 8", "batch = 2\nsteps = 3\neval_own = 0"))
    words = [sys.executable, "-m", "dsgd_mpi", "study", "s.toml"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "1 of 1 cells have a result in runs/studies/s" in done.stdout
    content = json.loads(next((tmp_path / "runs/studies/s").glob("*.json")).read_text())
    assert content["summary"]["simulated"]
    assert content["commit"] == commit()
    assert re.fullmatch(r"[0-9a-f]{7,40}\+?", content["commit"] or "0" * 7)
    assert content["summary"]["steps"] == 3
    assert len(content["rows"]) == 1


def test_every_picture_is_drawn_and_says_simulated_and_where_the_methods_cross(tmp_path):
    """All-reduce takes 100 s on 2 and on 4 ranks, gossip 50 on 2 and 200 on 4: they cross between them."""
    found = made(tmp_path)
    seconds = {("allreduce", 2): 100, ("allreduce", 4): 100, ("gossip", 2): 50, ("gossip", 4): 200}

    def execute(cell, folder):
        write_run(folder, 0.6, seconds[cell.way.name, cell.ranks])
        return 0
    run_all(found, execute, tmp_path / "runs", 1)
    every = outcomes(found)
    (ranks, _), = figures.crossings(found, every)
    assert ranks == pytest.approx(2 * 2**0.5)
    made_ = figures.draw_study(found, every, tmp_path / "pictures")
    assert {path.name for path in made_} == {"study.csv", *(f"{what}.{kind}" for what in (
        "curves", "target", "scaling", "speedup", "split") for kind in ("png", "pdf"))}
    base = figures.base_of(every)
    assert (base.group.label, base.group.ranks) == ("allreduce", 2)
    assert all(path.stat().st_size > 400 for path in made_)


@pytest.mark.parametrize(("summary", "apart", "panels"), [
    ({}, 0.0, 0), ({"staleness_counts": {"0": 3, "4": 1}}, 0.0, 1), ({}, 0.1, 1),
    ({"rank_consensus_distance": [None, 0.1, 0.3]}, 0.2, 2),
    ({"rank_consensus_distance": [0.1, 0.3], "staleness_counts": {"1": 3}}, 0.2, 3)])
def test_staleness_and_distances_are_drawn_where_there_are_any(summary, apart, panels):
    row = {"step": 1, "epoch": 1.0, "accuracy": 0.5, "wall_s": 1.0, "eval_s": 0.0, "images": 8,
           "consensus_distance": apart}
    result = Result({"config": {}, "summary": summary, "rows": [row], "metrics": []})
    outcome = SimpleNamespace(results=[result], group=SimpleNamespace(label="gossip", ranks=2))
    figure = figures.spread_of(None, [outcome])
    assert len(figure.axes if figure else []) == panels
    if panels == 3:
        heights = [patch.get_xy()[:, 1].max() for patch in figure.axes[2].patches]
        assert heights == [0.5]             # each of two ranks is half of them


def test_no_picture_is_drawn_of_what_has_no_result(tmp_path):
    found = made(tmp_path)
    assert [path.name for path in figures.draw_study(found, outcomes(found), tmp_path)] == ["study.csv"]


def test_what_was_learned_is_drawn_with_the_speeds_of_other_clusters(tmp_path):
    """Both need as many images; gossip has twice all-reduce's images per second on one cluster, half on the other."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    learned = made(tmp_path / "a")
    timed = made(tmp_path / "b", PLAIN.replace('cluster = "ethernet-10g"\n', "") + (
        'cluster = ["ethernet-10g", {name = "ethernet-10g", label = "slow", slow = [{ranks = [0], factor = 3.0}]}]\n'))
    seconds = {("allreduce", "ethernet-10g"): 10.0, ("gossip", "ethernet-10g"): 5.0, ("allreduce", "slow"): 10.0,
               ("gossip", "slow"): 20.0}

    def execute(cell, folder):
        write_run(folder, 0.6, seconds[cell.way.name, cell.place.label])
        return 0
    run_all(learned, execute, tmp_path / "runs", 1)
    run_all(timed, execute, tmp_path / "runs", 1)
    found = elsewhere.points(learned, outcomes(learned), outcomes(timed))
    assert {(each.cluster, each.outcome.group.label, each.outcome.group.ranks): each.relative.mean for each in found
            } == pytest.approx({(cluster, label, ranks): relative for cluster, label, relative in (
                ("ethernet-10g", "allreduce", 1), ("ethernet-10g", "push", 0.5), ("slow", "allreduce", 1),
                ("slow", "push", 2)) for ranks in (2, 4)})
    for each in ("a", "b"):
        (tmp_path / each / "s.toml").rename(tmp_path / each / "results" / "study.toml")
    drawn = CliRunner().invoke(plot, ["--study", str(learned.results), "--speeds", str(timed.results), "--to",
                                      str(tmp_path / "to")])
    assert drawn.exit_code == 0, drawn.output
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == [
        "elsewhere.csv", "elsewhere.pdf", "elsewhere.png"]
