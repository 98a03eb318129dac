"""How a rank that fails ends the job: one line for what is the user's, a traceback for the rest, and the status."""

import errno
import os

import pytest

from dsgd_mpi.arrays import hdf5
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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_file_that_found_no_room_at_the_end_is_one_line_that_says_how_to_go_on(tmp_path, monkeypatch, capsys, number):
    def full(*_args):
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(hdf5, "_write", full)
    with pytest.raises(OSError, match=os.strerror(number)) as failure, hdf5.atomic(tmp_path / "model.h5"):
        pass
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(Gone) as gone:
        fail(Host(), failure.value)
    assert gone.value.args == (1,)
    said = capsys.readouterr().err
    assert said.startswith(f"Error: {tmp_path / 'model.h5'} was not written")
    assert os.strerror(number) in said
    assert "continue with --resume" in said
    assert said.count("\n") == 1
