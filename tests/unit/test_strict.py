"""JSON that any reader takes."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsgd_mpi.arrays.strict import to_json
from tests.support import ROOT

anything = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner))


def with_none(content):
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: with_none(value) for key, value in content.items()}
    return [with_none(value) for value in content] if isinstance(content, list) else content


@given(anything)
def test_what_is_finite_is_kept_and_the_rest_is_null(content):
    assert json.loads(to_json(content), parse_constant=pytest.fail) == with_none(content)


def test_numpy_s_numbers_are_numbers_too():
    assert to_json({"a": np.float64("nan"), "b": (np.float64(0.5), -np.inf), "c": {3: math.nan}}) == (
        '{"a": null, "b": [0.5, null], "c": {"3": null}}')


@pytest.mark.parametrize("folder", ["training", "study", "algorithms"])
def test_nothing_that_a_run_writes_is_written_by_another_function(folder):
    assert not [path for path in (ROOT / "dsgd_mpi" / folder).rglob("*.py") if "json.dump" in path.read_text()]
