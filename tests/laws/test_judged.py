"""The simulated cluster takes as long as SimGrid, which is not ours, says."""

import numpy as np
import pytest

from benchmarks.net import judge
from tests.support.debian import Unavailable, install

CASES = judge.cases()


@pytest.fixture(scope="module")
def simgrid():
    """When each rank of each case ends there."""
    if judge.missing():
        try:
            install("this test", [judge.PACKAGE])
        except Unavailable as reason:
            pytest.skip(str(reason))
    if reason := judge.missing():
        pytest.skip(f"no SimGrid {judge.VERSION}: {reason}")
    return judge.there(CASES)


@pytest.mark.parametrize("name", CASES)
def test_it_takes_as_long_as_on_simgrid(simgrid, name):
    """The last rank; and each, where ranks do not meet in means, from which all return at once here."""
    here, there = np.array(judge.here(CASES[name])), np.array(simgrid[name])
    assert here.max() == pytest.approx(there.max(), rel=0.03)
    if not any(what == "mean" for program in CASES[name].programs for what, *_ in program):
        assert here == pytest.approx(there, rel=0.03)
