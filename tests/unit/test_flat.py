"""The flat vector's layout, and the buckets that its gradient travels in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsgd_mpi.arrays.flat import Buckets, Layout, finite


def test_views_write_to_the_vector_and_cover_it():
    layout = Layout({"a": (2, 3), "b": (4,)}, {"mean": (2,)})
    x = np.zeros(layout.size)
    for number, view in enumerate(layout.views(x).values(), start=1):
        view[...] = number
    assert (layout.parameters, layout.size) == (10, 12)
    assert x.tolist() == [1] * 6 + [2] * 4 + [3] * 2


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(0, 200))
def test_buckets_carry_every_number_once_from_the_back_and_are_large_enough(stretches, size):
    x = np.arange(sum(stretches))
    sent = []
    buckets = Buckets(size, lambda part: sent.append(x[part]))
    end = x.size
    for length in stretches:
        buckets(slice(end - length, end))
        end -= length
    assert np.array_equal(np.concatenate(sent[::-1]), x)
    assert all(len(part) >= size for part in sent[:-1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_vector_is_finite_if_every_element_is(dtype):
    largest = np.finfo(dtype).max
    assert finite(np.zeros(0, dtype))
    assert finite(np.array([largest, largest, -largest], dtype))
    for place in range(5):
        for bad in (np.nan, np.inf, -np.inf):
            x = np.full(5, largest, dtype)
            x[place] = bad
            assert not finite(x)
