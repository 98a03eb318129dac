"""The laws again, on real ranks: each world is one mpirun, with a time limit."""

import pytest
from jobs import run


@pytest.mark.parametrize("ranks", [1, 2, 4, 5])
def test_the_laws_hold_on_mpi(ranks):
    status, output, errors = run("-m", "pytest", "--with-mpi", "-p", "no:cacheprovider", "tests/test_laws.py",
                                 "tests/test_nets.py", "-k", "not simulated", ranks=ranks, limit_s=240)
    assert status == 0, output + errors
    assert output.count(" passed") == ranks


def test_mass_is_kept_by_eight_ranks_in_500_rounds():
    status, output, errors = run("-m", "pytest", "--with-mpi", "-p", "no:cacheprovider", "tests/test_laws.py", "-k",
                                 "test_mass_is_kept and mpi", ranks=8, limit_s=240)
    assert status == 0, output + errors
    assert output.count(" passed") == 8
