"""Faults that a user may inject, and what the run makes of them."""

import json
import time

import numpy as np
import pytest

from dsgd_mpi.errors import UsageError
from dsgd_mpi.training.inject import Fault, Faults, parse
from tests.support.jobs import train
from tests.support.left import model_of, same, steps_of

SHORT = ("--steps", 12, "--batch", 8, "--log-every", 1, "--checkpoint-every", 4, "--threads", 1)


def test_faults_are_read():
    assert parse("kill@1:20, slow@0:0.5") == [Fault("kill", 1, 20), Fault("slow", 0, 0.5)]
    assert parse(None) == []


@pytest.mark.parametrize(("text", "found"), [
    ("kil@1:2", "expected KIND@RANK:STEP with one of kill, "), ("kill", "found 'kill'"), ("kill@1", "found 'kill@1'"),
    ("kill@x:2", "--inject kill@x:2: RANK: expected "), ("kill@1:0", "STEP: expected at least 1, found 0"),
    ("slow@1:nan", "SECONDS: expected"), ("nan@-1:2", "RANK: expected at least 0, found -1"),
    ("kill@1:2,", "found ''")])
def test_what_is_no_fault_is_refused_in_one_line(text, found):
    with pytest.raises(UsageError) as problem:
        parse(text)
    assert found in problem.value.message
    assert "\n" not in problem.value.message


def test_a_rank_has_its_own_faults_at_their_step():
    faults, x = Faults(parse("nan@1:3,slow@1:0.5,slow@1:0.25,nan@0:2"), 1), np.ones(5)
    assert faults.delay_s == 0.75
    for step in range(1, 5):
        faults.before(step)
        with faults.spoiling(x, 4):
            assert np.isnan(x).tolist() == [False, False, False, step == 3, False]
        assert np.array_equal(x, np.ones(5))


def test_what_is_past_does_not_befall_a_run_that_goes_on_and_a_step_of_another_rank_is_not_missed():
    late, x = Faults(parse("nan@0:3,nan@0:7"), 0), np.ones(2)
    seen = []
    for step in (5, 6, 9, 10):              # tickets 7 and 8 were drawn by others
        late.before(step)
        with late.spoiling(x, 2):
            seen.append(bool(np.isnan(x[1])))
    assert seen == [False, False, True, False]


def test_a_part_of_a_checkpoint_is_damaged_once(tmp_path):
    faults, file = Faults(parse("corrupt@1:4"), 1), tmp_path / "rank1.h5"
    for step, changed in ((3, False), (6, True), (9, False)):
        file.write_bytes(bytes(100))
        faults.before(step)
        faults.saved(file)
        assert (sum(file.read_bytes()) == 0xFF) == changed


def test_a_rank_that_is_not_there_is_refused_before_anything_is_made(tmp_path):
    status, _, errors = train("--inject", "kill@2:3", "--out", tmp_path / "run", ranks=2)
    assert (status, errors) == (2, "Error: --inject kill: expected a rank from 0 to 1, found 2\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("kind", "status", "told"), [
    ("kill", None, ""), ("nan", 3, "Error: rank 1: the loss at step 7 is nan"),
    pytest.param("raise", 1, "rank 1 on ", marks=pytest.mark.soak)])
def test_after_the_fault_the_run_goes_on_as_if_there_had_been_none(tmp_path, small, kind, status, told):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(*SHORT, *small, "--out", whole, ranks=2)[0] == 0
    start = time.monotonic()
    found, output, errors = train(*SHORT, *small, "--inject", f"{kind}@1:7", "--out", broken, ranks=2)
    assert found == status or (status is None and found != 0), errors
    assert time.monotonic() - start < 15
    assert told in errors
    assert f"│ {kind}@1:7" in output
    assert not (broken / "model.h5").exists()
    result, _, errors = train("--resume", broken, ranks=2)
    assert result == 0, errors
    assert same(model_of(whole), model_of(broken))
    assert steps_of(broken) == steps_of(whole) == list(range(1, 13))


def test_a_disk_that_is_full_is_said_once_and_a_damaged_checkpoint_is_passed_over(tmp_path, small):
    """Rank 0 writes all of all-reduce's files; what is missing afterwards is made when the run is resumed."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert train(*SHORT, *small, "--out", whole)[0] == 0
    status, _, errors = train(*SHORT, *small, "--inject", "corrupt@0:8,diskfull@0:10", "--out", folder)
    assert status == 1, errors
    assert errors.count("metrics.jsonl") == 2, "once when it happens and once at the end"
    assert "no checkpoint at step 12" in errors
    status, _, errors = train("--resume", folder)
    assert status == 0, errors
    assert "resumed from step 4, since newer checkpoints cannot be used: " in errors
    assert same(model_of(whole), model_of(folder))
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["status"] == "finished"
