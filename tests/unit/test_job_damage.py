"""Laws of job files that are none: whatever values or bytes they hold, status 2 and no traceback."""

import datetime
import itertools

import numpy as np
import pytest
import tomli_w
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsgd_mpi.config import FIELDS, TABLES
from dsgd_mpi.errors import UsageError
from dsgd_mpi.study.grid import points
from dsgd_mpi.train import command
from tests.support import ROOT
from tests.support.damage import damaged
from tests.support.data_samples import dataset_file

FEW = settings(max_examples=50, deadline=None, derandomize=True,
               suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = settings(FEW, max_examples=1000, derandomize=False)
SINGLE = [1, 0, -1, 2**70, 1.5, 1e300, float("nan"), float("inf"), "", "x", "1", "nan", "é", "1:2", "\0", True, False]
NESTED = [[], [1], [[]], [{}], {}, {"a": 1}, datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1, 1),
          datetime.time(1)]
VALUES = st.sampled_from(SINGLE) | st.sampled_from(NESTED) | st.text(max_size=9) | st.integers() | st.floats()
TABLE = st.dictionaries(st.text(max_size=5), VALUES, max_size=3)
JOBS = st.dictionaries(st.sampled_from([*FIELDS, "grid"]), VALUES | TABLE, max_size=3)
RANKS = st.lists(st.integers(-1, 9) | VALUES, max_size=3)
GRIDS = st.fixed_dictionaries({"ranks": RANKS | VALUES, "algorithms": st.lists(VALUES, max_size=2)}) | TABLE | VALUES


def taken(path, *options):
    """Whether `train` takes the file; if not, it says why, and that is all."""
    done = CliRunner().invoke(command, ["--config", str(path), *options])
    assert done.exception is None or isinstance(done.exception, SystemExit), (path.read_bytes(), done.exception)
    assert done.exit_code in (0, 2)
    if done.exit_code:
        assert done.stdout == ""
        assert done.stderr.splitlines()[-1].startswith("Error: "), done.stderr
    return done.exit_code == 0


def written(path, content):
    try:
        path.write_bytes(tomli_w.dumps(content).encode())
    except UnicodeEncodeError:              # half of a surrogate pair
        path.write_bytes(b"")
    return path


@pytest.mark.parametrize("name", FIELDS)
def test_an_option_takes_a_value_of_its_kind_alone(tmp_path, name):
    for value in NESTED if name not in TABLES else SINGLE:
        assert not taken(written(tmp_path / "job.toml", {name: value}), "--print-config"), value


@pytest.mark.parametrize("content", ["batch = 16.5", "batch = true", "lr = true", "epochs = 1e400", "augment = 3",
                                     "epochs = inf", "steps = 1e3"])
def test_no_value_is_turned_into_another(tmp_path, content):
    (tmp_path / "job.toml").write_text(content)
    assert not taken(tmp_path / "job.toml", "--print-config")


def test_every_value_for_every_option_is_taken_or_refused(tmp_path):
    for name, value in itertools.product(FIELDS, SINGLE):
        taken(written(tmp_path / "job.toml", {name: value}), "--print-config")


def run_law(folder, content, grid, seed):
    options = ("--kernels", "reference", "--data", str(folder / "tiny.h5"), "--dry-run")
    taken(written(folder / "job.toml", content), *options)
    for path in (ROOT / "jobs/smoke.toml", ROOT / "jobs/scaling.toml"):
        made, _ = damaged(path.read_bytes(), np.random.default_rng(seed))
        (folder / "damaged.toml").write_bytes(made)
        taken(folder / "damaged.toml", "--print-config")
    try:
        points(written(folder / "grid.toml", {"grid": grid}))
    except UsageError as error:
        assert str(error)  # noqa: PT017


@FEW
@given(JOBS, GRIDS, st.integers(0, 2**32))
def test_job_files_of_any_content_are_taken_or_refused(tmp_path, content, grid, seed):
    dataset_file(tmp_path)
    run_law(tmp_path, content, grid, seed)


@pytest.mark.soak
@MANY
@given(JOBS, GRIDS, st.integers(0, 2**32))
def test_very_many_job_files_are_taken_or_refused(tmp_path, content, grid, seed):
    dataset_file(tmp_path)
    run_law(tmp_path, content, grid, seed)
