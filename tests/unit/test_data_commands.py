"""Laws of `data` on the command line: what it makes is sound, and a mistake is one line and status 2."""

import subprocess
import sys

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dsgd_mpi.data import sharding
from dsgd_mpi.data.commands import data
from dsgd_mpi.data.formats import check, open_dataset
from tests.support import ROOT, data_samples
from tests.support.data_samples import dataset_file
from tests.unit.test_data_convert import idx


def run(*arguments):
    return CliRunner().invoke(data, [str(argument) for argument in arguments])


def test_a_converted_data_set_is_found_by_name_verified_and_cut_down(tmp_path, monkeypatch):
    monkeypatch.setenv("DSGD_DATA_DIR", str(tmp_path / "data"))
    idx(tmp_path)
    refused = run("fashion-mnist", "--from", tmp_path)
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert "expected Fashion-MNIST as published" in refused.stderr
    assert not (tmp_path / "data").exists()
    made = run("fashion-mnist", "--from", tmp_path, "--as-is")
    assert made.exit_code == 0
    assert made.stderr.startswith(f"Warning: {tmp_path}: not Fashion-MNIST as published, 20 + 10 images with mean 0.")
    assert made.stdout == f"{tmp_path}/data/fashion-mnist.h5: 20 training and 10 test images, 0.0 MB\n"
    shown = run("verify", "fashion-mnist").stdout
    for words in ("Ankle boot", "28 x 28 x 1", "Zalando", "fashion-mnist, not as published", "passed: datasets"):
        assert words in shown
    cut = run("subset", "--from", "fashion-mnist", "--to", tmp_path / "small.h5", "--train", 10, "--test", 10,
              "--seed", 4)
    assert cut.exit_code == 0
    check(tmp_path / "small.h5")
    with open_dataset(tmp_path / "small.h5") as small:
        assert (len(small.train), small._file.attrs["subset_seed"]) == (10, 4)


@pytest.mark.parametrize("arguments", [
    ("cifar10", "--from", "/nowhere"), ("fashion-mnist", "--from", "/nowhere"), ("verify", "/nowhere/x.h5"),
    ("verify", "fashion"), ("subset", "--from", "x.h5", "--to", "y.h5"),
])
def test_a_mistake_is_one_line_on_stderr_and_status_2(arguments):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


def test_a_class_without_images_is_shown_and_named_and_what_the_line_tells_to_do_helps(tmp_path):
    path, small = dataset_file(tmp_path), tmp_path / "small.h5"
    with h5py.File(path, "r+") as file:
        for part in ("train", "test"):
            file[f"{part}/labels"][...] = file[f"{part}/labels"][()] + 1
        file.attrs.create("classes", ["-", "north", "east", "south", "west"], dtype=h5py.string_dtype())
    shown = run("verify", path)
    assert shown.exit_code == 0
    assert shown.stderr.splitlines() == [f"Warning: {path}: no image in {part}/images is of class '-'"
                                         for part in ("train", "test")]
    assert ["│", "-", "│", "0", "│", "0", "│"] in [line.split() for line in shown.stdout.splitlines()]
    refused = run("subset", "--from", path, "--to", small, "--train", 50, "--test", 10)
    assert refused.exit_code == 2
    assert "found none of class '-', label 0; take its name out of the attribute classes" in refused.stderr
    assert "use" not in refused.stderr
    with h5py.File(path, "r+") as file:
        for part in ("train", "test"):
            file[f"{part}/labels"][...] = file[f"{part}/labels"][()] - 1
        file.attrs.create("classes", file.attrs["classes"][1:], dtype=h5py.string_dtype())
    refused = run("subset", "--from", path, "--to", small, "--train", 50, "--test", 10)
    assert "--train: expected a multiple of 4" in refused.stderr
    assert "use 48" in refused.stderr
    refused = run("subset", "--from", path, "--to", small, "--train", 48, "--test", 10)
    assert "use 8" in refused.stderr
    assert run("subset", "--from", path, "--to", small, "--train", 48, "--test", 8).exit_code == 0
    check(small)


@pytest.mark.parametrize("amiss", ["zeros", "mean"])
def test_a_subset_of_a_file_that_does_not_verify_is_not_made(tmp_path, amiss):
    path, small = dataset_file(tmp_path), tmp_path / "small.h5"
    with h5py.File(path, "r+") as file:
        if amiss == "mean":
            file.attrs["mean"] = file.attrs["mean"] / 2
        else:
            file["train/images"][...] = 0
    refused = run("subset", "--from", path, "--to", small, "--train", 48, "--test", 8)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert not small.exists()


def test_a_folder_that_cannot_be_made_is_no_lack_of_space(tmp_path):
    path, place = dataset_file(tmp_path), tmp_path / "file"
    place.touch()
    done = run("subset", "--from", path, "--to", place / "x.h5", "--train", 48, "--test", 8)
    assert done.stderr == f"Error: {place} cannot be created (File exists); choose another path by --to\n"


def test_a_damaged_file_does_not_pass(tmp_path):
    path = dataset_file(tmp_path)
    path.write_bytes(path.read_bytes()[:2000])
    result = run("verify", path)
    assert result.exit_code == 2
    assert "damaged" in result.stderr


def test_help_needs_neither_mpi_nor_data():
    code = "import sys\nfrom dsgd_mpi.data.commands import data\nassert 'mpi4py' not in sys.modules\ndata(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("cifar10", "fashion-mnist", "imagenet", "show", "subset", "verify"):
        assert command in done.stdout


@pytest.mark.parametrize("sharded", [False, True])
def test_info_tells_what_a_file_says_of_itself(tmp_path, sharded, monkeypatch):
    path = dataset_file(tmp_path)
    if sharded:
        monkeypatch.setattr(data_samples, "BROKEN", {"train 3"})
        path = tmp_path / "many.h5"
        sharding.make(path, data_samples.plan(), 1)
    told = run("info", path)
    assert told.exit_code == 0
    lines = told.stdout.splitlines()
    assert lines[:3] == [f"file    {path}", f"images  {60 - sharded} training and 20 test images in 4 classes: north, "
                         "east, south, west", "image   8 x 8 x 3, uint8"]
    assert lines[-3 if sharded else -1].startswith("stored  pixels, 0.")
    assert lines[-3 if sharded else -1].endswith(" MB in 3 files" if sharded else " MB in 1 file")
    assert not sharded or lines[-2:] == ["remark  1 image is grey", "no use  train train 3: half a picture"]


@pytest.mark.parametrize(("side", "channels"), [(8, 3), (8, 1), (130, 3)])
def test_a_contact_sheet_has_the_images_and_names(tmp_path, side, channels):
    path, picture = dataset_file(tmp_path, train=20, test=8, side=side, channels=channels), tmp_path / "grid.png"
    done = run("show", path, "--picture", picture, "--images", 7)
    assert done.stdout == f"{picture}: 7 of 20 train images of {path}\n"
    sheet = np.asarray(Image.open(picture))
    pixels, scale = data_samples.content(20, 8, side=side, channels=channels).train[0], max(1, -(-96 // side))
    corner = sheet[6:6 + scale * side:scale, 6:6 + scale * side:scale, :]
    assert any((corner == image).all() for image in pixels)
    assert (sheet[6 + scale * side:6 + scale * side + 16, 6:102] < 128).any()            # a name
    refused = run("show", path, "--picture", tmp_path / "no" / "grid.png")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "choose another path by --picture" in refused.stderr


def test_the_manual_has_every_command():
    manual = (ROOT / "docs" / "data.rst").read_text()
    assert not [name for name in data.commands if f"data {name}" not in manual and f"``{name}``" not in manual]
