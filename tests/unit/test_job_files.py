"""What is shipped for clusters: job files name runs that there can be, scripts are sound and alike."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from dsgd_mpi import algorithms, optim
from dsgd_mpi.config import build, read_toml, tomllib
from dsgd_mpi.errors import UsageError
from dsgd_mpi.nn import models
from dsgd_mpi.study.grid import grid, points
from dsgd_mpi.train import command
from tests.support import ROOT

JOBS = sorted((ROOT / "jobs").glob("*.toml"))
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
BATCH = [path for path in SCRIPTS if "#SBATCH" in path.read_text()]
MODELS = [path for path in JOBS if path.stem.startswith("resnet")]
ALGORITHMS = [path for path in JOBS if path.stem in algorithms.names()]
WHOLE = ("smoke", "scaling")                # these need no other file


def resolved(*paths):
    """The configuration that `train` makes of job files in a row."""
    words = [word for path in paths for word in ("--config", str(path))]
    done = CliRunner().invoke(command, [*words, "--print-config"])
    assert done.exit_code == 0, done.output
    return tomllib.loads(done.output)


def test_a_job_file_is_for_a_model_or_for_an_algorithm_or_whole():
    assert len(MODELS) == 3
    assert len(ALGORITHMS) == 5
    assert {path.stem for path in JOBS} == {*(path.stem for path in [*MODELS, *ALGORITHMS]), *WHOLE}
    for path in ALGORITHMS:
        values = read_toml(path)
        assert values["algorithm"] == path.stem
        assert values.keys() <= {"algorithm", "lr", "warmup", "set"}
    for path in MODELS:
        assert read_toml(path).keys().isdisjoint({"algorithm", "set"})
        assert read_toml(path).keys() == read_toml(MODELS[0]).keys()


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda path: path.stem)
@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_a_model_and_an_algorithm_make_a_run_that_there_can_be(model, algorithm):
    values = resolved(model, algorithm)
    table = values.pop("set")
    algorithms.build(algorithm.stem, {key: str(value) for key, value in table.items()})
    models.graph(values["model"], 10, (32, 32, 3))
    assert values["data"] in ("cifar10", "imagenet.h5")
    assert table == {key: str(value) for key, value in read_toml(algorithm).get("set", {}).items()}
    assert values["algorithm"] == algorithm.stem
    for key, value in {**read_toml(model), **read_toml(algorithm)}.items():
        assert key == "set" or values[key] == value


OF_THE_PAPER = {path.stem: path for path in sorted((ROOT / "jobs" / "paper").glob("*.toml"))}
TASKS = ("imagenet", "cifar10", "fashion_mnist")
METHODS = {"allreduce": "allreduce", "easgd": "easgd", "gossip_pull": "gossip", "gossip_push": "gossip",
           "parameter_server": "parameter_server"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_a_task_and_a_method_of_the_paper_make_a_run_that_there_can_be(task, method):
    values = resolved(*(OF_THE_PAPER[name] for name in (task, method, "straggler")))
    assert values["algorithm"] == METHODS[method]
    algorithms.build(values["algorithm"], values["set"])
    build(optim.find(values["optimizer"]), values["set_optimizer"], values["optimizer"])
    assert (values["batch"], values["lr"], values["slow_rank"]) == (32, 0.1, "0:uniform:0:0.3")
    assert read_toml(OF_THE_PAPER[task]).keys() == read_toml(OF_THE_PAPER["imagenet"]).keys()


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_each_setting_of_the_paper_says_where_it_comes_from(name):
    assert name in (*TASKS, *METHODS, "straggler")
    head, *lines = [line for line in OF_THE_PAPER[name].read_text().splitlines() if line]
    assert "Jin et al. 2016" in head or "jobs/paper/imagenet.toml" in head
    for line in lines:
        assert line.startswith(("#", "[", " " * 28 + "#")) or line.partition("  # ")[2][:4] in ("CODE", "OURS"), line


@pytest.mark.parametrize(("model", "ranks"), [("resnet20_cifar10", 8), ("resnet50_imagenet", 128)])
def test_learning_rates_follow_their_rule(model, ranks):
    """The model's file has the rate of a step of all ranks; an n-th of it is for a rank alone, or if ranks add up."""
    found = {path.stem: resolved(ROOT / "jobs" / f"{model}.toml", path) for path in ALGORITHMS}
    whole = found["allreduce"]["lr"]
    assert found["gossip"]["lr"] == found["sgp"]["lr"] == whole
    assert found["easgd"]["lr"] == pytest.approx(whole / ranks)
    server = found["parameter_server"]
    adds_up = algorithms.build("parameter_server", server["set"]).updates_add_up
    assert server["lr"] == pytest.approx(whole / ranks if adds_up else whole)


def test_a_file_on_the_command_line_wins_key_by_key():
    before = resolved(ROOT / "jobs/resnet50_imagenet.toml", ROOT / "jobs/gossip.toml")
    after = resolved(ROOT / "jobs/resnet50_imagenet.toml", ROOT / "jobs/gossip.toml", ROOT / "jobs/smoke.toml")
    assert {key for key in after if after[key] != before.get(key)} <= read_toml(ROOT / "jobs/smoke.toml").keys()
    assert (after["algorithm"], after["set"], after["model"]) == ("gossip", before["set"], "resnet8")
    assert after["epochs"] == before["epochs"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound(path):
    for words in (["bash", "-n"], [Path(sys.executable).with_name("shellcheck"), "-x"]):
        done = subprocess.run([*words, path], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_batch_scripts_hold_their_resources_their_job_and_nothing_else():
    assert len(BATCH) == 6
    own = ("--job-name", "--time", "--array", "--output")
    heads = [[line for line in path.read_text().splitlines() if line.startswith("#SBATCH")
              and not any(option in line for option in own)] for path in BATCH]
    assert all(head == heads[0] for head in heads)
    for path in BATCH:
        shebang, *lines = path.read_text().splitlines()
        assert shebang == "#!/bin/bash -e"
        job, body = [line for line in lines if line and not line.startswith("#")]
        assert body == ". slurm/lib.sh"
        if path.stem == "scaling_array":
            assert job == 'job=("${DSGD_GRID:-jobs/scaling.toml}") grid_point=$SLURM_ARRAY_TASK_ID'
        else:
            algorithm = path.stem.removesuffix("_128").replace("push_sum", "sgp")     # what people type, and what it is
            assert job == f"job=(jobs/resnet50_imagenet.toml jobs/{algorithm}.toml)"
            assert ROOT / f"jobs/{algorithm}.toml" in ALGORITHMS


def test_the_array_has_a_task_for_each_point_of_its_grid():
    found = points(ROOT / "jobs" / "scaling.toml")
    assert f"#SBATCH --array=0-{len(found) - 1}\n" in (ROOT / "slurm" / "scaling_array.sh").read_text()
    assert max(point.ranks for point in found.values()) == 16 * 8
    for point in found.values():
        assert set(point.options()[::2]) <= {"--algorithm", "--set"}


def test_a_script_outside_a_job_says_what_it_is_for():
    done = subprocess.run(["bash", "-e", "slurm/gossip_128.sh"], cwd=ROOT, capture_output=True, text=True,
                          env={"PATH": "/usr/bin:/bin"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: submit this with sbatch: sbatch slurm/gossip_128.sh \n"


FAKE = """#!/bin/bash
[ "${*: -1}" != true ] || exit 0        # all nodes answer
echo "started: ${0##*/} $*"
echo "netmod: ${MPIR_CVAR_CH4_NETMOD:-none}"
echo "$FAKE_ERROR" >&2
exit "${FAKE_STATUS:-0}"
"""
CHOSEN = [{"MPIR_CVAR_CH4_NETMOD": "ucx"}, {"MPICH_CH4_NETMOD": "ucx"}, {"UCX_TLS": "tcp"}, {"DSGD_LAUNCH": "mpirun"},
          {"MPI4PY_LIBMPI": "/opt/mpi/libmpi.so"}, {"DSGD_ENV": "site.sh"}]
HOW = "name a file with 'export MPIR_CVAR_CH4_NETMOD=ofi' in DSGD_ENV, or set DSGD_LAUNCH=mpirun"


@pytest.fixture
def batch(tmp_path):
    """Runs a script as SLURM does, on two nodes, with launchers that only say what they were given."""
    for name in ("srun", "mpirun"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "site.sh").write_text("export UCX_NET_DEVICES=eth0\n")

    def run(*options, **given):
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "4", "SLURM_JOB_CPUS_PER_NODE": "2(x2)",
               "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NAME": "gossip-128"}
        where = {"PATH": f"{tmp_path}:/usr/bin:/bin", "DSGD_VENV": str(tmp_path / "venv")}
        (tmp_path / "venv" / "bin").mkdir(parents=True)
        (tmp_path / "venv" / "bin" / "python3").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
        (tmp_path / "venv" / "bin" / "python3").chmod(0o755)
        given = {key: str(tmp_path / value) if key == "DSGD_ENV" else value for key, value in given.items()}
        with open(tmp_path / "log", "w") as log:
            done = subprocess.run(["bash", "-e", "slurm/gossip_128.sh", *options], cwd=ROOT, stdout=log, stderr=log,
                                  env={**job, **where, **given}, timeout=60)
        return done.returncode, (tmp_path / "log").read_text()
    return run


def mpich_from_pypi():
    try:
        return bool(metadata.version("mpich"))
    except metadata.PackageNotFoundError:
        return False


def test_a_job_starts_its_job_files_in_order_and_options_last(batch):
    status, log = batch("--epochs", "3")
    assert status == 0
    assert " -m dsgd_mpi.train --config jobs/resnet50_imagenet.toml --config jobs/gossip.toml --epochs 3\n" in log


def test_libfabric_is_chosen_for_mpich_from_pypi_where_nothing_is_set(batch):
    _, log = batch()
    assert ("MPICH from PyPI: MPIR_CVAR_CH4_NETMOD=ofi" in log) == mpich_from_pypi()
    assert f"netmod: {'ofi' if mpich_from_pypi() else 'none'}\n" in log


@pytest.mark.parametrize("given", CHOSEN, ids=lambda given: next(iter(given)))
def test_what_somebody_has_chosen_is_left_alone(batch, given):
    status, log = batch(**given)
    assert status == 0, log
    assert "MPICH from PyPI" not in log
    assert f"netmod: {given.get('MPIR_CVAR_CH4_NETMOD', 'none')}\n" in log


@pytest.mark.parametrize(("given", "said"), [
    ({"FAKE_ERROR": "Fatal error in internal_Init_thread: Other MPI error"}, True),
    ({"FAKE_ERROR": "MPI_Init_thread failed", "DSGD_LAUNCH": "mpirun"}, False),
    ({"FAKE_ERROR": "Error: --lr: expected a number"}, False)])
def test_a_job_whose_ranks_fail_in_mpi_init_ends_with_how_to_choose(batch, given, said):
    status, log = batch(FAKE_STATUS="15", **given)
    assert status == 15
    assert log.splitlines()[-1].endswith(f"ranks failed in MPI_Init; {HOW}") == said


# the grid

def grid_file(tmp_path, text):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    return path


def test_a_grid_is_every_algorithm_on_every_number_of_ranks(tmp_path):
    path = grid_file(tmp_path, '[grid]\nranks = [16, 2]\nalgorithms = ["allreduce", "gossip  mode=push"]\n')
    assert [(point.ranks, point.label()) for point in points(path).values()] == [
        (2, "00002-allreduce"), (2, "00002-gossip-mode=push"), (16, "00016-allreduce"), (16, "00016-gossip-mode=push")]
    listed = CliRunner().invoke(grid, [str(path)])
    assert listed.output.splitlines()[3].split() == ["3", "16", "ranks", "gossip", "mode=push"]
    one = CliRunner().invoke(grid, [str(path), "--point", "1"])
    assert one.output.splitlines() == ["2", "00002-gossip-mode=push", "--algorithm", "gossip", "--set", "mode=push"]
    beyond = CliRunner().invoke(grid, [str(path), "--point", "4"])
    assert beyond.exit_code == 2
    assert "has 4 points, 0 to 3; found --point 4" in beyond.output


def test_a_grid_may_be_a_study_whose_points_are_known_as_its_rates_are(tmp_path):
    path = grid_file(tmp_path, '[study]\nseeds = [1, 2]\n[base]\nsteps = 3\n[axes]\nranks = [2]\nalgorithm = '
                               '[{name = "gossip", set = {mode = "push"}, label = "push"}]\n')
    one = CliRunner().invoke(grid, [str(path), "--point", "1"]).output.splitlines()
    assert (one[0], one[2:]) == ("2", ["--algorithm", "gossip", "--set", "mode=push", "--seed", "2", "--steps", "3"])
    assert one[1].startswith("push-2-lr0.2-s2-")
    done = CliRunner().invoke(command, ["--config", str(path), *one[2:], "--print-config"])     # as a job array does
    assert (done.exit_code, tomllib.loads(done.output)["steps"]) == (0, 3)
    path.write_text(path.read_text() + "[tune]\nlr = [0.1, 0.2]\n")
    assert len(points(path)) == 2
    assert CliRunner().invoke(grid, [str(path), "--point", "2"]).exit_code == 2


@pytest.mark.parametrize(("text", "message"), [
    ("lr = 1.0\n", r"expected a table \[grid\]"),
    ("grid = 3\n", r"expected a table \[grid\]"),
    ('[grid]\nranks = [0]\nalgorithms = ["gossip"]\n', "positive integers"),
    ('[grid]\nranks = [true]\nalgorithms = ["gossip"]\n', "positive integers"),
    ('[grid]\nranks = [2]\nalgorithms = []\n', "such as 'gossip mode=push'"),
    ('[grid]\nranks = [2]\nalgorithms = ["gosip"]\n', "unknown algorithm 'gosip'"),
    ('[grid]\nranks = [2]\nalgorithms = ["gossip mod=push"]\n', "gossip has no option 'mod'"),
    ("[grid\n", "not a TOML file"),
])
def test_a_grid_with_mistakes_is_told(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        points(grid_file(tmp_path, text))
