"""What is shipped for clusters: job files name runs that there can be, scripts are sound and alike."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dsgd_mpi import algorithms
from dsgd_mpi.config import Config, build, from_toml, read_toml
from dsgd_mpi.errors import UsageError
from dsgd_mpi.nn import models
from dsgd_mpi.study.grid import grid, points
from tests.support import ROOT

JOBS = sorted((ROOT / "jobs").glob("*.toml"))
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
BATCH = [path for path in SCRIPTS if "#SBATCH" in path.read_text()]
PARTIAL = ("smoke", "scaling")              # these leave the algorithm to others


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_file_names_a_run_that_there_can_be(path):
    config = Config(**from_toml(path))
    build(algorithms.find(config.algorithm), config.algorithm_options(), config.algorithm)
    models.graph(config.model, 10, (32, 32, 3))
    assert config.data in ("fashion-mnist-12k", "cifar10", "imagenet.h5")


def test_a_whole_job_leaves_nothing_of_one_that_it_is_given_after():
    whole = [read_toml(path) for path in JOBS if path.stem not in PARTIAL]
    assert len(whole) == 11
    for values in whole:
        assert values.keys() - {"set"} == whole[0].keys() - {"set"}
        assert values.keys() >= {"algorithm", "model", "data", "epochs", "batch", "lr", "schedule", "warmup", "augment"}
    for path in JOBS:
        if path.stem not in PARTIAL:
            assert path.stem.endswith(read_toml(path)["algorithm"])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound(path):
    for words in (["bash", "-n"], [Path(sys.executable).with_name("shellcheck"), "-x"]):
        done = subprocess.run([*words, path], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_batch_scripts_differ_in_their_job_only():
    assert len(BATCH) == 6
    own = ("--job-name", "--time", "--array", "--output")
    heads = [[line for line in path.read_text().splitlines() if line.startswith(("#SBATCH", "#!", "."))
              and not any(option in line for option in own)] for path in BATCH]
    assert all(head == heads[0] for head in heads)
    for path in BATCH:
        job = next(line for line in path.read_text().splitlines() if line.startswith("job="))
        assert path.stem == "scaling_array" or (ROOT / job.removeprefix("job=")).exists()


def test_the_array_has_a_task_for_each_point_of_its_grid():
    found = points(ROOT / "jobs" / "scaling.toml")
    assert f"#SBATCH --array=0-{len(found) - 1}\n" in (ROOT / "slurm" / "scaling_array.sh").read_text()
    assert max(point.ranks for point in found) == 16 * 8
    for point in found:
        assert set(point.options()[::2]) <= {"--algorithm", "--set"}


def test_a_script_outside_a_job_says_what_it_is_for():
    done = subprocess.run(["bash", "-e", "slurm/gossip_128.sh"], cwd=ROOT, capture_output=True, text=True,
                          env={"PATH": "/usr/bin:/bin"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: this is for sbatch: sbatch slurm/gossip_128.sh \n"


# the grid

def grid_file(tmp_path, text):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    return path


def test_a_grid_is_every_algorithm_on_every_number_of_ranks(tmp_path):
    path = grid_file(tmp_path, '[grid]\nranks = [16, 2]\nalgorithms = ["allreduce", "gossip  mode=push"]\n')
    assert [(point.ranks, point.label()) for point in points(path)] == [
        (2, "00002-allreduce"), (2, "00002-gossip-mode=push"), (16, "00016-allreduce"), (16, "00016-gossip-mode=push")]
    listed = CliRunner().invoke(grid, [str(path)])
    assert listed.output.splitlines()[3].split() == ["3", "16", "ranks", "gossip", "mode=push"]
    one = CliRunner().invoke(grid, [str(path), "--point", "1"])
    assert one.output.splitlines() == ["2", "00002-gossip-mode=push", "--algorithm", "gossip", "--set", "mode=push"]
    beyond = CliRunner().invoke(grid, [str(path), "--point", "4"])
    assert beyond.exit_code == 2
    assert "has 4 points, 0 to 3; found --point 4" in beyond.output


@pytest.mark.parametrize(("text", "message"), [
    ("lr = 1.0\n", r"expected a table \[grid\]"),
    ("grid = 3\n", r"expected a table \[grid\]"),
    ('[grid]\nranks = [0]\nalgorithms = ["gossip"]\n', "positive integers"),
    ('[grid]\nranks = [true]\nalgorithms = ["gossip"]\n', "positive integers"),
    ('[grid]\nranks = [2]\nalgorithms = []\n', "texts like"),
    ('[grid]\nranks = [2]\nalgorithms = ["gosip"]\n', "unknown algorithm 'gosip'"),
    ('[grid]\nranks = [2]\nalgorithms = ["gossip mod=push"]\n', "gossip has no option 'mod'"),
    ("[grid\n", "not a TOML file"),
])
def test_a_grid_with_mistakes_is_told(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        points(grid_file(tmp_path, text))
