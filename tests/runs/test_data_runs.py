"""Data under mpirun: what is amiss is one line for all ranks, and ranks share the work of a conversion."""

import pytest
from click.testing import CliRunner

from dsgd_mpi.data.commands import data
from tests.support.jobs import run, train
from tests.unit.test_data_layouts import photo, put
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


def pets(folder):
    for where in ("train", "val"):
        for label in ("cat", "dog"):
            for i in range(3):
                put(folder / where / label / f"{i}.jpg", photo(len(where + label) + i))
    return folder


def test_three_ranks_convert_pictures_to_the_bytes_that_one_process_makes(tmp_path):
    for name in ("alone", "shared"):
        (tmp_path / name).mkdir()
    options = ("data", "folder", "--from", pets(tmp_path / "x"), "--size", 8, "--to")
    done = CliRunner().invoke(data, [str(word) for word in (*options[1:], tmp_path / "alone" / "y.h5")])
    status, output, errors = run("-m", "dsgd_mpi", *options, tmp_path / "shared" / "y.h5", ranks=3)
    assert (status, output, errors) == (0, done.stdout.replace("alone", "shared"), "")
    for name in ("y.h5", "y/train-00000.h5", "y/test-00000.h5"):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


@pytest.mark.soak
@pytest.mark.parametrize("part", ["train", "val"])
def test_an_image_that_is_broken_on_one_of_three_ranks_ends_the_conversion_with_one_line(tmp_path, part):
    put(pets(tmp_path / "x") / part / "cat" / "0.jpg", b"hello")
    status, output, errors = run("-m", "dsgd_mpi", "data", "folder", "--from", tmp_path / "x", "--strict", "--size", 8,
                                 "--to", tmp_path / "y.h5", ranks=3)
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert f"{part}/cat/0.jpg: expected an image, found no picture that Pillow knows" in errors
    assert errors.startswith("Error: rank 1 on " if part == "val" else f"Error: {tmp_path}/x")
