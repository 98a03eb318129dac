"""A refactoring shows the same bits: whole runs end as they were recorded, on processors that have been recorded."""

import json
from functools import cache
from pathlib import Path

import pytest

from tests.runs import bits

RECORDED = json.loads(Path(__file__).with_name("recorded.json").read_text())
OURS = RECORDED.get(bits.processor())
needs_recording = pytest.mark.skipif(
    OURS is None, reason=f"no runs are recorded for {bits.processor()}, and sums of floats differ between processors; "
    "to compare two versions here: python -m tests.runs.bits FILE.json in the one, with --against in the other")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return bits.small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """What a run that is not interrupted comes to, made once."""
    return cache(lambda name: bits.measure(name, data, tmp_path_factory.mktemp("run") / "run"))


@needs_recording
@pytest.mark.parametrize("name", bits.RUNS)
def test_a_run_ends_as_recorded_to_the_bit(whole, name):
    assert whole(name) == OURS[name]


@pytest.mark.parametrize("name", bits.RESUMED)
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path, data, whole, name):
    """On any processor."""
    assert bits.measure(name, data, tmp_path / "stopped", back_to=5) == whole(name)
