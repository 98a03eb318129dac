"""Checkpoints on a simulated cluster: whole or not there, newest first, never the end of a run."""

import json
import logging
import os
import shutil

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from dsgd_mpi.algorithms.allreduce import Allreduce
from dsgd_mpi.algorithms.gossip import Gossip
from dsgd_mpi.arrays.flat import Layout
from dsgd_mpi.data import Course
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.optim.adamw import AdamW
from dsgd_mpi.optim.sgd import Sgd
from dsgd_mpi.training import checkpoint, command, rankfile
from dsgd_mpi.training.checkpoint import Checkpoints
from dsgd_mpi.training.resume import changes, course_of


def on_cluster(tmp_path, size, kind, act, state=None, **header):
    """`act(checkpoints, x, sgd, algorithm)` on each rank, x and v being full of the rank's number."""
    def main(host):
        x, own = np.full(6, float(host.rank), "float32"), kind()
        sgd = Sgd().start(Layout({"w": (5,)}, {"mean": (1,)}), like=x)
        own.start(host, x, sgd)
        sgd.state["v"][:] = host.rank
        return act(Checkpoints(host, tmp_path, {"seed": 1, **header}, state), x, sgd, own)
    return Cluster(size).run(main)


def save(*steps):
    def act(checkpoints, x, sgd, algorithm):
        for step in steps:
            if algorithm.keeps:
                algorithm.t = step
            x += 100
            checkpoints.save(step, x, sgd, algorithm, {"wall_s": step / 2})
        checkpoints.finish()
    return act


def restore(checkpoints, x, sgd, algorithm):
    x[:], sgd.state["v"][:] = -1, -1
    step, totals = checkpoints.restore(x, sgd, algorithm)
    return step, totals["wall_s"], x[0], sgd.state["v"][0], algorithm.t


def test_each_rank_gets_its_own_model_back_and_two_checkpoints_stay(tmp_path):
    on_cluster(tmp_path, 3, Gossip, save(10, 20, 30))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000000020", "checkpoint-000000030"]
    assert on_cluster(tmp_path, 3, Gossip, restore) == [(30, 15, 300 + rank, rank, 30) for rank in range(3)]


def test_replicated_models_are_kept_once_and_fit_any_number_of_ranks(tmp_path):
    on_cluster(tmp_path, 3, Allreduce, save(10))
    assert [path.name for path in tmp_path.rglob("*.h5")] == ["rank0.h5"]
    assert on_cluster(tmp_path, 5, Allreduce, restore) == [(10, 5, 100, 0, 0)] * 5


@pytest.mark.parametrize("algorithm", [Gossip, Allreduce])
def test_what_the_kernels_keep_comes_back_in_place_and_stays_where_the_file_does_not_hold_it(tmp_path, algorithm):
    scale, other = np.float32([8, 1 / 8, 0, 7]), np.float32([5])
    on_cluster(tmp_path, 1, algorithm, save(10), {"scale": scale})
    scale[:] = -1
    on_cluster(tmp_path, 1, algorithm, restore, {"scale": scale, "other": other})
    assert [*scale, *other] == [8, 1 / 8, 0, 7, 5]
    on_cluster(tmp_path, 1, algorithm, restore)         # kernels that keep nothing read it too


def test_a_run_does_not_change_whose_steps_it_counts(tmp_path):
    on_cluster(tmp_path, 3, Gossip, save(10), shared_out=True)
    with pytest.raises(UsageError, match="counts the steps of all ranks together, but this run those of each rank"):
        on_cluster(tmp_path, 3, Gossip, restore)
    assert on_cluster(tmp_path, 3, Gossip, restore, shared_out=True)[0][0] == 10


@pytest.mark.parametrize(("keep_best", "kept"), [(False, [40, 50]), (True, [20, 40, 50])])
def test_the_best_is_kept_beside_the_last_ones(tmp_path, keep_best, kept):
    (tmp_path / "summary.csv").write_text("step,accuracy\n10,0.5\n20,0.9\n30,0.9\njunk\n35,1.0\n40,\n50,0.8\n")

    def act(checkpoints, x, sgd, algorithm):
        checkpoints.keep_best = keep_best
        save(10, 20, 30, 40, 50)(checkpoints, x, sgd, algorithm)
    on_cluster(tmp_path, 2, Gossip, act)
    assert checkpoint.steps_in(tmp_path) == kept
    assert checkpoint.best_of(tmp_path) == (20 if keep_best else 50)


def test_the_command_lists_verifies_and_shows_them(tmp_path):
    def said(*words):
        found = CliRunner().invoke(command.checkpoint, [str(word) for word in words])
        return found.exit_code, found.output

    status, output = said("list", tmp_path)
    assert (status, output.count("\n")) == (2, 1)
    assert "no checkpoint; expected a run folder" in output
    on_cluster(tmp_path, 3, Gossip, save(10, 20))
    (tmp_path / "summary.csv").write_text("step,accuracy\n10,0.5\n")
    status, output = said("list", tmp_path)
    assert status == 0
    assert [line.split()[1:4] for line in output.splitlines()] == [["10", "3", "files"], ["20", "3", "files"]]
    assert [line.endswith("best") for line in output.splitlines()] == [True, False]
    assert said("verify", tmp_path) == (0, "step        10   3 files whole\nstep        20   3 files whole\n")
    status, output = said("show", tmp_path)
    shown = json.loads(output)
    assert (status, shown["step"], shown["ranks"], len(shown["totals"])) == (0, 20, 3, 3)
    assert shown["arrays"]["x"] == "float32 (6,)"
    assert json.loads(said("show", tmp_path, "--step", 10)[1])["step"] == 10
    assert "no checkpoint of step 15; there are those of 10, 20" in said("show", tmp_path, "--step", 15)[1]
    (tmp_path / "checkpoint-000000010" / "SHA256SUMS").unlink()
    (tmp_path / "checkpoint-000000020" / "rank2.h5").write_bytes(b"junk")
    status, output = said("verify", tmp_path)
    assert status == 2
    assert "step        10   3 files whole, as far as can be seen" in output
    assert "step        20   cannot be used: rank2.h5 cannot be read back" in output
    assert said("show", tmp_path)[0] == 2
    (tmp_path / "checkpoint-000000020" / "rank1.h5").unlink()
    (tmp_path / "checkpoint-000000020" / "rank1.h5").symlink_to("nowhere")
    status, output = said("list", tmp_path)
    assert (status, output.splitlines()[1].split()[1:4]) == (0, ["20", "2", "files"])


def rewrite(path, change, sums=False):
    """Changes an HDF5 file as somebody else might; with `sums`, as if it had been written so."""
    with h5py.File(path, "r+") as file:
        change(file)
    listed = path.with_name("SHA256SUMS")
    if sums:
        lines = [line for line in listed.read_text().splitlines() if not line.endswith(path.name)]
        listed.write_text("\n".join([*lines, f"{rankfile.digest(path)}  {path.name}"]) + "\n")
    elif listed.exists():
        listed.unlink()


def without(name):
    return lambda file: file.__delitem__(name)


def attribute(name, value=None):
    return lambda file: file.attrs.__delitem__(name) if value is None else file.attrs.__setitem__(name, value)


def replaced(name, value):
    def change(file):
        del file[name]
        file[name] = value
    return change


def totals(text):
    return replaced("totals", np.frombuffer(text, np.uint8))


@pytest.mark.parametrize(("change", "reason"), [
    (without("x"), "dataset x is missing"), (without("optimizer/v"), "dataset optimizer/v is missing"),
    (without("keeps/t"), "dataset keeps/t is missing"), (without("optimizer"), "dataset optimizer/v is missing"),
    (replaced("optimizer/v", np.zeros(3)), r"dataset optimizer/v: expected the shape \(5,\), found \(3,\)"),
    (replaced("optimizer/v", "words"), "dataset optimizer/v is missing"),
    (replaced("x", np.zeros(4)), "holds a network of 4 elements; this run's has 6"),
    (replaced("x", np.full(6, np.nan)), "dataset x holds numbers that are not finite"),
    (replaced("keeps/t", np.zeros(3)), "dataset keeps/t has another shape"),
    (attribute("step"), "attribute step is missing"), (attribute("step", -3), "attribute step: expected a whole"),
    (attribute("step", "ten"), "attribute step: expected a whole number"),
    (attribute("step", 10), "holds step 10, but is in the folder of step 20"),
    (attribute("ranks"), "attribute ranks is missing"), (attribute("ranks", 7), "holds 7 different models"),
    (without("totals"), "totals are missing"), (totals(b"{"), "cannot be read back"),
    (totals(b"[1]"), "totals are no record of a run"), (totals(b"[]"), "totals are no record of a run"),
    (totals(b'[{"wall_s": "long"}]'), "totals are no record of a run"),
    (totals(b'[{"wall_s": NaN}]'), "totals are no record of a run"),
    (totals(b'[{"wall_s": -1}]'), "totals are no record of a run"),
    (totals(b'[{"wall_s": 1}, {"wall_s": 1}, {"wall_s": 1}]'), "totals are no record of a run"),
    (totals(b'[{"staleness_counts": 3}]'), "totals are no record of a run"),
    (totals(b'[{"staleness_counts": {"x": 1}}]'), "totals are no record of a run"),
    (totals(b'[{"epoch_loss": 0.5}]'), "totals are no record of a run"),
    (totals(b'[{"line_losses": [null]}]'), "totals are no record of a run"),
    (totals(b'[{"rank_steps": null}]'), "totals are no record of a run"),
    (totals(b"[" * 9999), "cannot be read back"),
    (attribute("ranks", 0), "ranks and workers are damaged"), (attribute("workers", 3), "ranks and workers"),
    (attribute("workers", "all"), "attribute workers: expected a whole number"),
    (attribute("course", [32.5, 320, 32, 2, 5]), "attribute course is damaged"),
    (attribute("course", [32, 3, 32, 2, 5]), "attribute course is damaged"),
    (attribute("course", [32, 0, 32, 2, 5]), "attribute course is damaged"),
    (attribute("course", "x"), "attribute course is damaged"), (attribute("config", "[["), "attributes are damaged"),
    (attribute("format", 99), "expected checkpoint format"), (attribute("format", "x"), "expected checkpoint format"),
    (attribute("algorithm", "easgd"), "it is of a run of easgd, but this run is one of gossip"),
    (attribute("optimizer", "lars"), "expected the state of sgd, found that of lars")])
@pytest.mark.parametrize("sums", [False, True])
def test_what_is_half_valid_is_passed_over_with_its_reason(tmp_path, change, reason, sums, caplog):
    on_cluster(tmp_path, 2, Gossip, save(10, 20), algorithm="gossip")
    rewrite(tmp_path / "checkpoint-000000020" / "rank1.h5", change, sums)
    with caplog.at_level(logging.WARNING):
        found = on_cluster(tmp_path, 2, Gossip, restore, algorithm="gossip")
    assert found == [(10, 5, 100 + rank, rank, 10) for rank in range(2)]
    assert len(caplog.records) == 1
    shutil.rmtree(tmp_path / "checkpoint-000000010")
    with pytest.raises(UsageError, match=f"checkpoint-000000020: .*{reason}") as refused:
        on_cluster(tmp_path, 2, Gossip, restore, algorithm="gossip")
    assert "\n" not in str(refused.value.message)


def test_a_file_of_another_step_is_no_reason_to_wait(tmp_path, caplog):
    on_cluster(tmp_path, 3, Gossip, save(10, 20))
    shutil.copy(tmp_path / "checkpoint-000000010/rank1.h5", tmp_path / "checkpoint-000000020/rank1.h5")
    (tmp_path / "checkpoint-000000020/SHA256SUMS").unlink()
    assert [found[0] for found in on_cluster(tmp_path, 3, Gossip, restore)] == [10] * 3
    assert "rank1.h5 holds step 10, but is in the folder of step 20" in caplog.text


@pytest.mark.parametrize("name", ["rank1.h5", "SHA256SUMS"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path),
                                  lambda path: os.symlink("nowhere", path)])
def test_what_is_no_file_is_not_opened_where_one_is_expected(tmp_path, name, make, caplog):
    on_cluster(tmp_path, 2, Gossip, save(10, 20))
    (tmp_path / "checkpoint-000000020" / name).unlink()
    make(tmp_path / "checkpoint-000000020" / name)
    assert [found[0] for found in on_cluster(tmp_path, 2, Gossip, restore)] == [10] * 2
    assert f"checkpoint-000000020: {name} is no file" in caplog.text
    on_cluster(tmp_path, 2, Gossip, save(20))           # nor is it in the way
    assert [found[0] for found in on_cluster(tmp_path, 2, Gossip, restore)] == [20] * 2


JUNK = (-1, 0.5, 10**18, "", "junk\nin two lines", "{}", "[1]", "[[", "a = 1", '{"images": {}, "mean": ["x"]}', b"\xff",
        [1, 2], [[0.5], [1.5]], True)


def test_junk_in_an_attribute_is_a_reason_of_one_line_and_no_other_exception(tmp_path):
    about = {"algorithm": "gossip", "config": "model = 'resnet8'\nbatch = 2\n", "workers": 2, "shared_out": False,
             "data": '{"images": 10, "mean": [0.5]}'}
    on_cluster(tmp_path, 2, Gossip, save(10), **about)
    path = tmp_path / "checkpoint-000000010" / "rank0.h5"
    whole = path.read_bytes()

    def act(checkpoints, x, sgd, algorithm):
        checkpoints.course = Course(4, 40, 4, 2)
        step, _ = checkpoints.restore(x, sgd, algorithm)
        return course_of(checkpoints.resumed[0], step, 2, 0, 40), changes(
            checkpoints.resumed[0], 2, checkpoints.header, 2, checkpoints.course, checkpoints.course)
    assert on_cluster(tmp_path, 2, Gossip, act, **about)[0][0].images == 40
    refused = []
    for name in (*about, "course", "optimizer", "step", "ranks", "format"):
        for junk in JUNK:
            path.write_bytes(whole)
            rewrite(path, attribute(name, junk))
            try:
                on_cluster(tmp_path, 2, Gossip, act, **about)
            except UsageError as error:
                refused.append(error.message)
    assert len(refused) > 100
    assert not [message for message in refused if "\n" in message or len(message) > 500]


def test_nothing_is_overwritten_before_all_ranks_can_go_on(tmp_path):
    on_cluster(tmp_path, 2, Gossip, save(10))
    rewrite(tmp_path / "checkpoint-000000010" / "rank1.h5", without("x"), sums=True)

    def act(checkpoints, x, sgd, algorithm):
        with pytest.raises(UsageError, match="dataset x is missing"):
            checkpoints.restore(x, sgd, algorithm)
        return (x == checkpoints.host.rank).all() and (sgd.state["v"] == checkpoints.host.rank).all()
    assert on_cluster(tmp_path, 2, Gossip, act) == [True, True]


def test_what_is_not_ours_is_neither_read_nor_deleted_nor_in_the_way(tmp_path):
    on_cluster(tmp_path, 2, Gossip, save(10))
    ten = tmp_path / "checkpoint-000000010"
    (ten / "note.txt").write_text("the best so far")
    for name in ("checkpoint-000000010 (copy)", "checkpoint-10", "checkpoint-best", "checkpoint-000000099x"):
        shutil.copytree(ten, tmp_path / name)
    (tmp_path / "checkpoint-000000050").symlink_to(ten)
    (tmp_path / "checkpoint-000000060").write_text("a file")
    (tmp_path / "checkpoint-000000020").write_text("another")
    (tmp_path / ".checkpoint-000000030.part").write_text("a third")
    (tmp_path / "checkpoint-000000070").mkdir()
    before = {path.name for path in tmp_path.iterdir()}
    assert on_cluster(tmp_path, 2, Gossip, restore)[0][0] == 10
    assert {path.name for path in tmp_path.iterdir()} == before
    on_cluster(tmp_path, 2, Gossip, save(20, 30, 40))
    assert checkpoint.steps_in(tmp_path) == [30, 40]
    assert (tmp_path / "checkpoint-000000020.other").read_text() == "another"
    assert (tmp_path / ".checkpoint-000000030.part.other").read_text() == "a third"
    assert os.listdir(ten) == ["note.txt"]
    assert {path.name for path in tmp_path.iterdir()} >= before - {"checkpoint-000000020", ".checkpoint-000000030.part"}
    assert on_cluster(tmp_path, 2, Gossip, restore)[0][0] == 40


def test_what_a_killed_run_left_unfinished_is_cleared_away(tmp_path):
    on_cluster(tmp_path, 2, Gossip, save(10))
    shutil.copytree(tmp_path / "checkpoint-000000010", tmp_path / ".checkpoint-000000017.part")
    on_cluster(tmp_path, 2, Gossip, save(20))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000000010", "checkpoint-000000020"]


def test_those_newer_than_where_a_run_went_on_do_not_crowd_out_its_own(tmp_path):
    on_cluster(tmp_path, 2, Gossip, save(10, 20))
    (tmp_path / "checkpoint-000000020" / "rank0.h5").write_bytes(b"junk")
    on_cluster(tmp_path, 2, Gossip, save(12, 14, 16))
    assert checkpoint.steps_in(tmp_path) == [14, 16, 20]
    assert on_cluster(tmp_path, 2, Gossip, restore)[0][0] == 16


@pytest.mark.parametrize("sums", [True, False])
def test_no_damage_of_any_kind_gets_past_the_check_or_raises_anything_else(tmp_path, sums):
    """Cut anywhere, and a byte changed anywhere, as a disk or a stranger might."""
    on_cluster(tmp_path, 1, Gossip, save(10))
    path = tmp_path / "checkpoint-000000010" / "rank0.h5"
    if not sums:
        path.with_name("SHA256SUMS").unlink()
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    passed = 0
    for place in rng.integers(0, len(whole), 300):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.integers(8)
        for content in (whole[:place], bytes(flipped)):
            path.write_bytes(content)
            try:
                checkpoint.read(tmp_path, 10, 0)
                passed += 1
            except rankfile.Unfit:
                pass
    assert passed == 0 if sums else passed < 600
    path.write_bytes(whole)
    assert json.dumps(checkpoint.read(tmp_path, 10, 0).totals) == '[{"wall_s": 5.0}]'


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"0  rank0.h5\n", b"a" * 64 + b"  rank0.h5\n",
                                     b"a" * 64 + b"  rank1.h5\n"])
def test_a_list_of_digests_that_is_damaged_is_no_list(tmp_path, content):
    on_cluster(tmp_path, 1, Gossip, save(10))
    (tmp_path / "checkpoint-000000010" / "SHA256SUMS").write_bytes(content)
    with pytest.raises(UsageError, match=r"SHA256SUMS|SHA-256"):
        on_cluster(tmp_path, 1, Gossip, restore)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_damage_on_one_rank_sends_all_to_the_checkpoint_before(tmp_path, damage, caplog):
    on_cluster(tmp_path, 3, Gossip, save(10, 20))
    file = tmp_path / "checkpoint-000000020" / "rank1.h5"
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        place = content.find(np.full(6, 201, "float32").tobytes())
        content[place] ^= 1
        file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert [found[0] for found in on_cluster(tmp_path, 3, Gossip, restore)] == [10] * 3
    assert len(caplog.records) == 1
    assert "resumed from step 10" in caplog.text
    assert ("rank1.h5 is missing" if damage == "gone" else "rank1.h5 cannot be read back") in caplog.text


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(tmp_path, monkeypatch, caplog):
    on_cluster(tmp_path, 2, Gossip, save(10))

    def place(path, content, verify):
        raise OSError(f"{path}: No space left on device")
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(rankfile, "place", place)
        on_cluster(tmp_path, 2, Gossip, save(20))
    assert "no checkpoint at step 20" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000010"]
    assert on_cluster(tmp_path, 2, Gossip, restore)[0][0] == 10


def test_what_does_not_fit_is_told(tmp_path):
    with pytest.raises(UsageError, match="no complete checkpoint to resume from"):
        on_cluster(tmp_path, 2, Gossip, restore)
    on_cluster(tmp_path, 3, Gossip, save(10))
    with pytest.raises(UsageError, match=r"holds 3 different models, one per rank, but this run has 2 ranks"):
        on_cluster(tmp_path, 2, Gossip, restore)

    def smaller(checkpoints, x, sgd, algorithm):
        checkpoints.restore(x[:4], sgd, algorithm)
    with pytest.raises(UsageError, match="holds a network of 6 elements; this run's has 4"):
        on_cluster(tmp_path, 3, Gossip, smaller)


def test_the_state_of_an_optimizer_is_kept_by_name_and_is_no_other_optimizer_s(tmp_path):
    def act(optimizer, what):
        def main(host):
            x = np.zeros(6, "float32")
            started = optimizer.start(Layout({"w": (5,)}, {"mean": (1,)}), like=x)
            return what(started, Checkpoints(host, tmp_path, {}), x)
        return Cluster(1).run(main)[0]

    def save(adamw, checkpoints, x):
        adamw.update(x, np.arange(6, dtype="float32"), 0.1)
        checkpoints.save(1, x, adamw, Allreduce(), {})
        checkpoints.finish()
        return adamw.state
    written = act(AdamW(), save)
    with h5py.File(next(tmp_path.rglob("rank0.h5"))) as file:
        assert (file.attrs["format"], file.attrs["optimizer"], set(file["optimizer"])) == (3, "adamw", {"m", "v", "t"})

    def restore(optimizer, checkpoints, x):
        before = dict(optimizer.state)
        checkpoints.restore(x, optimizer, Allreduce())
        assert all(optimizer.state[name] is array for name, array in before.items())
        return optimizer.state
    for name, array in act(AdamW(), restore).items():
        np.testing.assert_array_equal(array, written[name])
    with pytest.raises(UsageError, match="expected the state of sgd, found that of adamw; resume with --opt"):
        act(Sgd(), restore)


def test_a_checkpoint_of_format_1_is_read(tmp_path):
    on_cluster(tmp_path, 3, Gossip, save(10))
    for path in tmp_path.rglob("rank*.h5"):
        with h5py.File(path, "r+") as file:
            file["v"] = file["optimizer/v"][()]
            file.attrs["totals"] = json.dumps({"wall_s": 5.0})
            del file["optimizer"], file.attrs["optimizer"], file["totals"]
            file.attrs["format"] = 1
    next(tmp_path.rglob("SHA256SUMS")).unlink()
    assert on_cluster(tmp_path, 3, Gossip, restore) == [(10, 5, 100 + rank, rank, 10) for rank in range(3)]


def test_the_only_file_of_a_checkpoint_that_is_gone_is_told(tmp_path, caplog):
    on_cluster(tmp_path, 2, Allreduce, save(10, 20))
    (tmp_path / "checkpoint-000000020" / "rank0.h5").unlink()
    assert on_cluster(tmp_path, 2, Allreduce, restore)[0][0] == 10
    assert "resumed from step 10, since newer checkpoints cannot be used: checkpoint-000000020: rank0.h5 is missing" \
        in caplog.text


def test_a_checkpoint_that_may_not_be_looked_into_is_told(tmp_path, caplog, monkeypatch):
    """As root sees one, tests being run by root: it is empty."""
    on_cluster(tmp_path, 2, Allreduce, save(10))
    (tmp_path / "checkpoint-000000020").mkdir()
    assert on_cluster(tmp_path, 2, Allreduce, restore)[0][0] == 10
    assert not caplog.text
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "checkpoint-000000020")
    assert on_cluster(tmp_path, 2, Allreduce, restore)[0][0] == 10
    assert "resumed from step 10, since newer checkpoints cannot be used: checkpoint-000000020: " in caplog.text
