"""A run on data that are not what they seem: refused by one line for all ranks, before anything is made."""

from tests.support.jobs import train
from tests.unit.test_data_storage import virtual_file


def test_a_virtual_file_whose_part_is_gone_is_refused_by_all_ranks_in_one_line_and_trained_on_when_it_is_back(tmp_path):
    path = virtual_file(tmp_path)
    options = ("--data", path, "--model", "resnet8", "--batch", 4, "--steps", 2, "--quiet", "--out", tmp_path / "run")
    part = tmp_path / "b.h5"
    part.rename(tmp_path / "c.h5")
    status, output, errors = train(*options, ranks=2)
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith(f"Error: {path}: train/images is a virtual dataset in 2 other files, of which b.h5 cannot")
    assert not (tmp_path / "run").exists()
    (tmp_path / "c.h5").rename(part)
    status, _, errors = train(*options, ranks=2)
    assert (status, errors) == (0, "")
