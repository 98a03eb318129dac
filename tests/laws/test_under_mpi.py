"""The laws again, on real ranks: each world is one mpirun, with a time limit."""

import pytest

from tests.support.jobs import run

LAWS, NETS = "tests/laws/test_laws.py", "tests/laws/test_nets.py"


@pytest.mark.parametrize("ranks", [1, 3, *(pytest.param(ranks, marks=pytest.mark.soak) for ranks in (2, 4, 5))])
def test_the_laws_hold_on_mpi(ranks):
    status, output, errors = run("-m", "pytest", "--with-mpi", "-p", "no:cacheprovider", LAWS, NETS, "-k",
                                 "not simulated and not staged and not direct", ranks=ranks, limit_s=240)
    assert status == 0, output + errors
    assert output.count(" passed") == ranks


@pytest.mark.parametrize(("ranks", "files", "worlds"), [
    (2, (NETS,), "staged or direct"),
    pytest.param(2, (LAWS,), "staged", marks=pytest.mark.soak),
    pytest.param(4, (NETS,), "staged or direct", marks=pytest.mark.soak)])
def test_the_laws_hold_for_arrays_on_a_device(ranks, files, worlds):
    status, output, errors = run("-m", "pytest", "--with-mpi", "-p", "no:cacheprovider", *files, "-k", worlds,
                                 ranks=ranks, limit_s=240)
    assert status == 0, output + errors
    assert output.count(" passed") == ranks


@pytest.mark.soak
def test_mass_is_kept_by_eight_ranks_in_500_rounds():
    status, output, errors = run("-m", "pytest", "--with-mpi", "-p", "no:cacheprovider", LAWS, "-k",
                                 "test_mass_is_kept and mpi", ranks=8, limit_s=240)
    assert status == 0, output + errors
    assert output.count(" passed") == 8
