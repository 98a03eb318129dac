"""Laws of `plot`: every whole line of a run folder is in the table and the picture; labels name what differs."""

import csv
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from dsgd_mpi.config import Config
from dsgd_mpi.study import plot as module
from dsgd_mpi.study.plot import name, plot, points, read, shared, smooth
from dsgd_mpi.study.scaling import Rate, scaled

pytest.importorskip("matplotlib")

HEADER = "step,epoch,accuracy,consensus_distance,train_loss,wall_s,images_per_s\r\n"


def run_folder(folder, ranks=2, lines=20, rows=2, finished=True, **options):
    """A run as `Record` writes it: a line every 10 steps, 100 steps an epoch, 0.5 s a step."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(Config(**options).to_toml())
    (folder / "env.json").write_text(json.dumps({"ranks": [{}] * ranks}))
    (folder / "metrics.jsonl").write_text("".join(metric(10 * (at + 1)) for at in range(lines)))
    if rows:
        (folder / "summary.csv").write_bytes((HEADER + "".join(row(at + 1) for at in range(rows))).encode())
    if finished:
        (folder / "summary.json").write_text(json.dumps({"status": "finished", "ranks": ranks}))
    return folder


def metric(step):
    return json.dumps({"step": step, "epoch": step / 100, "loss": 2.3 - step / 1000, "lr": 0.1, "images_per_s": 128.0,
                       "wall_s": step / 2}) + "\n"


def row(epoch):
    return f"{100 * epoch},{epoch}.0,{0.5 + epoch / 10},0.0,1.5,{50 * epoch + 1},127.5\r\n"


def run(*arguments):
    return CliRunner().invoke(plot, [str(argument) for argument in arguments], catch_exceptions=False)


def table(folder):
    with open(folder / "curves.csv", newline="") as file:
        return list(csv.DictReader(file))


def picture_size(folder):
    content = (folder / "curves.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(content) > 10_000
    return struct.unpack(">II", content[16:24])


def labels(*folders):
    runs = [read(folder) for folder in folders]
    name(runs)
    return [run.label for run in runs], shared(runs)


def test_one_run_is_drawn_into_its_own_folder_with_every_point_of_it(tmp_path):
    folder = run_folder(tmp_path / "a")
    result = run(folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{folder}/curves.png\n{folder}/curves.csv\n")
    for words in ("finished", "70.00%", "128", "101"):
        assert words in result.stdout
    width, height = picture_size(folder)
    assert width == 1500
    assert 900 < height < 1200
    rows = table(folder)
    assert {(row["run"], row["label"]) for row in rows} == {(str(folder), "a")}
    losses = [row for row in rows if row["kind"] == "train_loss"]
    assert [tuple(float(row[key]) for key in ("step", "epoch", "training_s", "value")) for row in losses] == [
        (step, step / 100, step / 2, 2.3 - step / 1000) for step in range(10, 210, 10)]
    assert [tuple(row.values())[2:] for row in rows if row not in losses] == [
        ("test_accuracy", "100", "1.0", "", "", "51.0", "0.6"), ("test_accuracy", "200", "2.0", "", "", "101.0", "0.7")]


def counted(folder, **options):
    """A run whose evaluations count images, 16 a step, of which every fourth is dropped."""
    run_folder(folder, lines=25, **options)
    rows = [f"{row(epoch).rstrip()},{1600 * epoch},{1200 * epoch}\r\n" for epoch in (1, 2)]
    (folder / "summary.csv").write_text(f"{HEADER.rstrip()},images,images_applied\r\n" + "".join(rows), newline="")
    return folder


def test_curves_over_images_are_those_of_all_ranks(tmp_path, monkeypatch):
    places = []
    monkeypatch.setattr(module, "draw_run", lambda run, panels, index, column, seconds, draw=module.draw_run: (
        places.append([getattr(point, column) for point in run.losses]), draw(run, panels, index, column, seconds))[1])
    folder = counted(tmp_path / "a")
    for over, images in (("images", 16), ("images-applied", 12)):
        assert run(folder, "--over", over).exit_code == 0
        picture_size(folder)
        assert places.pop() == [step * images for step in range(10, 260, 10)]   # between evaluations and after them
    rows = table(folder)
    assert {(row["step"], row["images"], row["images_applied"]) for row in rows if row["kind"] == "test_accuracy"} == {
        ("100", "1600.0", "1200.0"), ("200", "3200.0", "2400.0")}
    assert float(rows[24]["images_applied"]) == 250 * 12


def test_time_is_that_of_training_without_evaluations(tmp_path):
    folder = run_folder(tmp_path / "a")
    lines = [{**json.loads(metric(step)), "eval_s": 2.0} for step in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.csv").write_text(f"{HEADER.rstrip()},eval_s\r\n{row(1).rstrip()},11.5\r\n", newline="")
    assert run(folder).exit_code == 0
    assert [float(row["training_s"]) for row in table(folder)] == [5 - 2, 10 - 2, 51 - 11.5]


def test_a_run_that_did_not_count_images_is_left_out_over_images_and_an_error_alone(tmp_path):
    new, old = counted(tmp_path / "new"), run_folder(tmp_path / "old")
    result = run(new, old, "--over", "images-applied", "--to", tmp_path)
    assert (result.exit_code, result.stderr) == (
        0, f"left out, as no evaluation has counted the images applied in it: {old}\n")
    assert {row["run"] for row in table(tmp_path)} == {str(new)}
    mistake(f"{old}: no evaluation has counted the images; use --over epochs", old,
            "--over", "images")


def test_a_folder_of_runs_is_all_of_them_once_drawn_where_asked(tmp_path, monkeypatch):
    for index, mode in enumerate(("pull", "push")):
        run_folder(tmp_path / "runs" / mode, algorithm="gossip", set=(f"mode={mode}",), seed=index)
    (tmp_path / "runs" / "notes").mkdir()
    assert run(tmp_path / "runs", tmp_path / "runs" / "push", "--to", tmp_path / "new" / "there").exit_code == 0
    picture_size(tmp_path / "new" / "there")
    rows = table(tmp_path / "new" / "there")
    assert len(rows) == 2 * 22
    assert list(dict.fromkeys(row["label"] for row in rows)) == ["mode=pull, seed 0", "mode=push, seed 1"]
    monkeypatch.chdir(tmp_path)
    assert run("runs").stdout.startswith("curves.png\ncurves.csv\n")
    picture_size(tmp_path)


def test_labels_name_what_differs_and_the_title_what_does_not(tmp_path):
    a = run_folder(tmp_path / "a", ranks=1)
    b = run_folder(tmp_path / "b", ranks=4, log_every=5, out="elsewhere")
    assert labels(a, b) == (["1 rank", "4 ranks"], "allreduce, resnet8, fashion-mnist-12k")
    c = run_folder(tmp_path / "c", ranks=4, algorithm="gossip", set=("mode=push",), data="/data/cifar10.h5")
    assert labels(b, c) == (["allreduce, fashion-mnist-12k", "gossip mode=push, cifar10"], "4 ranks, resnet8")
    d = run_folder(tmp_path / "d", ranks=4, algorithm="gossip", data="/data/cifar10.h5", lr=0.3, augment=True)
    assert labels(c, d)[0] == ["mode=push, lr 0.2, no augment", "mode=pull, lr 0.3, augment"]
    assert labels(c)[1] == "gossip mode=push, 4 ranks, resnet8, cifar10"


def test_an_option_given_as_it_is_by_default_makes_no_difference(tmp_path):
    a = run_folder(tmp_path / "a", algorithm="gossip", set=("mode=pull", "period=1"))
    b = run_folder(tmp_path / "b", algorithm="gossip", model="resnet20")
    assert labels(a, b)[0] == ["resnet8", "resnet20"]


def test_statistics_that_are_named_do_not_differ_from_the_same_by_default(tmp_path):
    a, b = run_folder(tmp_path / "a", bn="average"), run_folder(tmp_path / "b")
    c = run_folder(tmp_path / "c", bn="recalibrate")
    d = run_folder(tmp_path / "d", algorithm="gossip")
    assert labels(a, b)[0] == ["a", "b"]
    assert labels(b, c)[0] == ["bn auto", "bn recalibrate"]
    assert labels(b, d)[0] == ["allreduce", "gossip"]


def test_runs_that_are_alike_are_told_apart_by_their_folders(tmp_path):
    folders = [run_folder(tmp_path / path) for path in ("x/a", "x/b", "y/b")]
    assert labels(*folders)[0] == ["a", str(folders[1]), str(folders[2])]


def test_a_run_of_an_unknown_algorithm_is_drawn_with_the_options_given(tmp_path):
    a = run_folder(tmp_path / "a", algorithm="of_tomorrow", set=("k=3",))
    assert labels(a, run_folder(tmp_path / "b"))[0] == ["of_tomorrow k=3", "allreduce"]


@pytest.mark.parametrize("half", ['{"step": 210, "epo', '{"step": 210, "epo\n', "\x00\x00\n", "7\n"])
def test_a_killed_run_is_drawn_as_far_as_its_last_whole_line(tmp_path, half):
    folder = run_folder(tmp_path / "a", rows=1, finished=False)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(half)
    with open(folder / "summary.csv", "a") as file:
        file.write(row(2)[:-6])             # whole to the eye, but the last figure lacks its end
    result = run(folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "unfinished" in result.stdout
    assert [row["kind"] for row in table(folder)] == ["train_loss"] * 20 + ["test_accuracy"]


@pytest.mark.parametrize(("lines", "rows"), [(1, 0), (0, 1), (5, 0)])
def test_a_run_that_has_just_begun_is_drawn(tmp_path, lines, rows):
    folder = run_folder(tmp_path / "a", lines=lines, rows=rows, finished=False)
    assert run(folder).exit_code == 0
    assert len(table(folder)) == lines + rows
    picture_size(folder)


def test_a_run_that_diverges_is_drawn_beside_one_that_does_not(tmp_path):
    a, b = run_folder(tmp_path / "_a"), run_folder(tmp_path / "$b$", lr=9.0)
    with open(b / "metrics.jsonl", "a") as file:
        for value in ("1e30", "Infinity", "NaN", "0.0"):
            file.write(metric(210).replace("2.09", value))
    assert run(a, b, "--to", tmp_path).exit_code == 0
    assert [row["value"] for row in table(tmp_path)[-6:-2]] == ["1e+30", "inf", "nan", "0.0"]


def test_many_runs_have_a_legend_of_many_lines(tmp_path):
    for seed in range(30):
        run_folder(tmp_path / str(seed), lines=3, seed=seed)
    assert run(tmp_path, "--to", tmp_path).exit_code == 0
    assert picture_size(tmp_path)[1] > 1200


def test_a_run_without_figures_is_left_out_beside_others_and_an_error_alone(tmp_path):
    empty, other = run_folder(tmp_path / "a", lines=0, rows=0), run_folder(tmp_path / "b")
    result = run(tmp_path, "--to", tmp_path)
    assert (result.exit_code, result.stderr) == (0, f"left out, as there are no figures in it yet: {empty}\n")
    assert {row["run"] for row in table(tmp_path)} == {str(other)}
    mistake(f"{empty}: nothing to plot yet; metrics.jsonl and summary.csv hold no whole line", empty)


def mistake(words, *arguments):
    """One line on stderr, status 2."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_what_is_no_run_folder_is_an_error(tmp_path):
    mistake("expected a run folder, with a config.toml, found no such folder", tmp_path / "none")
    mistake("which neither it nor a folder in it has", tmp_path)
    (tmp_path / "file").touch()
    mistake("expected a run folder", tmp_path / "file")
    run_folder(tmp_path / "a")
    mistake("cannot be written", tmp_path / "a", "--to", tmp_path / "file")


@pytest.mark.parametrize(("file", "content", "words"), [
    ("metrics.jsonl", "x" + metric(10) + metric(20), "metrics.jsonl, line 1: damaged"),
    ("metrics.jsonl", "{}\n" + metric(20), "line 1: damaged, expected step, epoch, wall_s, images_per_s and loss"),
    ("summary.csv", HEADER + "100,1.0\n" + row(2), "summary.csv, line 2: damaged"),
    ("summary.json", "{", "summary.json: cannot be read or is damaged"),
    ("config.toml", "depth = 3", "unknown option 'depth'"),
])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, file, content, words):
    folder = run_folder(tmp_path / "a")
    (folder / file).write_text(content)
    mistake(words, folder)


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)        # an import of it fails
    mistake("plotting needs matplotlib; pip install 'dsgd_mpi[plot]'", run_folder(tmp_path / "a"))


def test_a_smooth_curve_keeps_a_straight_line_and_the_first_value():
    line = np.linspace(3, 1, 100)
    np.testing.assert_allclose(smooth(list(line))[:98], line[:98])
    wave = line + 0.1 * (-1) ** np.arange(100)
    assert smooth(list(wave))[0] == wave[0]
    assert np.abs(smooth(list(wave)) - line)[2:].max() < 0.05
    assert smooth([]).size == 0


def test_no_line_is_lost_in_a_file_of_whole_lines(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(map(metric, range(1, 4))))
    assert [point.step for point in points(tmp_path / "metrics.jsonl", json.loads, "loss")] == [1, 2, 3]
    assert list(points(tmp_path / "none", json.loads, "loss")) == []


def test_plotting_needs_no_mpi_and_help_no_matplotlib():
    code = (f"import sys\nfrom {module.__name__} import plot\n"
            "assert not {'mpi4py', 'matplotlib'} & set(sys.modules)\nplot(['--help'])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "curves.csv" in done.stdout


# scaling

def test_efficiency_is_the_share_of_images_a_rank_on_the_fewest_ranks():
    rates = ("b", 4, 100.0), ("a", 8, 300.0), ("a", 2, 90.0), ("a", 2, 110.0), ("b", 8, 200.0)
    assert [tuple(each) for each in scaled([Rate(*rate) for rate in rates])] == [
        ("a", 2, 2, 100.0, 90.0, 110.0, 1.0), ("a", 8, 1, 300.0, 300.0, 300.0, 0.75),
        ("b", 4, 1, 100.0, 100.0, 100.0, 1.0), ("b", 8, 1, 200.0, 200.0, 200.0, 1.0)]


def test_runs_on_several_numbers_of_ranks_are_drawn_against_them(tmp_path):
    for ranks in (1, 2, 4):
        for seed in (0, 1):
            run_folder(tmp_path / "runs" / f"{ranks}-{seed}", ranks=ranks, seed=seed, algorithm="gossip")
        run_folder(tmp_path / "runs" / f"{ranks}-push", ranks=ranks, algorithm="gossip", set=("mode=push",))
    result = run(tmp_path / "runs", "--to", tmp_path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"{tmp_path}/scaling.png\n{tmp_path}/scaling.csv\n" in result.stdout
    with open(tmp_path / "scaling.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["ranks"], row["runs"]) for row in rows] == [
        (f"mode={mode}", str(ranks), str(runs)) for mode, runs in (("pull", 2), ("push", 1)) for ranks in (1, 2, 4)]
    assert [float(row["efficiency"]) for row in rows[:3]] == [1, 0.5, 0.25]     # all of them make 127.5 images/s
    assert struct.unpack(">II", (tmp_path / "scaling.png").read_bytes()[16:24])[0] == 1500


def test_runs_on_one_number_of_ranks_have_no_scaling(tmp_path):
    run_folder(tmp_path / "a")
    run_folder(tmp_path / "b", lr=0.3)
    assert "scaling" not in run(tmp_path, "--to", tmp_path).stdout
    assert not (tmp_path / "scaling.csv").exists()
