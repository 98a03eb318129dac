"""Floats as 16 bits."""

import numpy as np
import pytest

from dsgd_mpi.arrays.half import narrow, widen


@pytest.mark.parametrize(("kind", "bits"), [("bfloat16", 8), ("float16", 11)])
def test_rounded_to_nearest_and_ties_to_even(kind, bits):
    exact = np.float32([0, -0.0, 1, -2.5, np.inf, -np.inf, 2.0**14])
    np.testing.assert_array_equal(widen(narrow(exact, kind), kind), exact)
    ulp = 2.0 ** (1 - bits)                 # of 1
    between = np.float32([1 + ulp / 2, 1 + 3 * ulp / 2, 1 + 0.51 * ulp, 1 + 0.49 * ulp])
    np.testing.assert_array_equal(widen(narrow(between, kind), kind), np.float32([1, 1 + 2 * ulp, 1 + ulp, 1]))
    assert np.isnan(widen(narrow(np.float32([np.nan]), kind), kind)).all()


def test_only_bfloat16_has_the_range_of_float32():
    large = np.float64([2.0**100])
    assert widen(narrow(large, "bfloat16"), "bfloat16", np.float64) == large
    assert np.isinf(widen(narrow(large, "float16"), "float16"))
