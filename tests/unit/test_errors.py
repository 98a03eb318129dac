"""How a rank that fails ends the job: one line for what is the user's, a traceback for the rest, and the status."""

import pytest

from dsgd_mpi.errors import RunError, UsageError
from dsgd_mpi.training.job import fail


class Gone(Exception):
    """The job, where MPI would end the process."""


class Host:
    rank = 3

    @staticmethod
    def abort(status):
        raise Gone(status)


@pytest.mark.parametrize(("failure", "status", "said"), [
    (UsageError("--lr: expected a number"), 2, "Error: --lr: expected a number\n"),
    (RunError("the loss is nan", 3), 3, "Error: the loss is nan\n"),
])
def test_an_error_that_is_one_line_for_the_user_is_printed_as_one_and_gives_its_status(failure, status, said, capsys):
    with pytest.raises(Gone) as gone:
        fail(Host(), failure)
    assert gone.value.args == (status,)
    assert capsys.readouterr().err == said


def test_any_other_error_is_printed_with_its_rank_and_where_it_was_raised(capsys):
    with pytest.raises(Gone) as gone:
        fail(Host(), ValueError("unforeseen"))
    assert gone.value.args == (1,)
    assert "rank 3 on " in capsys.readouterr().err
