"""The laws again, on real ranks: each world is one mpirun, with a time limit."""

import pytest
from jobs import run


@pytest.mark.parametrize("ranks", [1, 2, 4, 5])
def test_the_laws_hold_on_mpi(ranks):
    status, output, errors = run("-m", "pytest", "--with-mpi", "-p", "no:cacheprovider", "tests/test_laws.py",
                                 "tests/test_nets.py", "-k", "not simulated and not staged and not direct", ranks=ranks,
                                 limit_s=240)
    assert status == 0, output + errors
    assert output.count(" passed") == ranks


@pytest.mark.parametrize(("ranks", "files", "worlds"), [
    (2, ("tests/test_laws.py", "tests/test_nets.py"), "staged"), (4, ("tests/test_nets.py",), "staged or direct")])
def test_the_laws_hold_for_arrays_on_a_device(ranks, files, worlds):
    status, output, errors = run("-m", "pytest", "--with-mpi", "-p", "no:cacheprovider", *files, "-k", worlds,
                                 ranks=ranks, limit_s=240)
    assert status == 0, output + errors
    assert output.count(" passed") == ranks


def test_mass_is_kept_by_eight_ranks_in_500_rounds():
    status, output, errors = run("-m", "pytest", "--with-mpi", "-p", "no:cacheprovider", "tests/test_laws.py", "-k",
                                 "test_mass_is_kept and mpi", ranks=8, limit_s=240)
    assert status == 0, output + errors
    assert output.count(" passed") == 8
