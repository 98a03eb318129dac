"""Whose images are whose: one rank's each, the same for a seed, as skewed as asked for, and what is refused."""

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsgd_mpi.config import Config
from dsgd_mpi.data import Batches, Course, open_dataset, partition
from dsgd_mpi.data.formats import Split
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.simulated.machine import star
from dsgd_mpi.study import simulate
from dsgd_mpi.training.build import fit, prepare
from dsgd_mpi.training.resume import changes

RULES = ["dirichlet:0.1", "dirichlet:0.001", "dirichlet:1e6", "shards:1", "shards:2", "sizes:0.5", "sizes:0.001"]
TEN = np.arange(4000) // 400                # labels, sorted
skews = pytest.mark.parametrize("text", RULES)


def owned(text, labels=TEN, ranks=8, seed=0):
    return partition.owners(labels, ranks, partition.parse(text), seed)


def counted(text, ranks=8, seed=0):
    return partition.counts(TEN, owned(text, TEN, ranks, seed), 10, ranks)


@given(text=st.sampled_from(RULES), labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
       ranks=st.integers(1, 40), seed=st.integers(0, 2**63 - 1))
def test_each_image_is_of_one_rank_the_same_for_a_seed(text, labels, ranks, seed):
    labels, rule = np.array(labels), partition.parse(text)
    if rule.kind == "shards" and rule.value * ranks > len(labels):
        return
    owner = owned(text, labels, ranks, seed)
    assert owner.shape == labels.shape
    assert 0 <= owner.min() <= owner.max() < ranks
    assert np.array_equal(owner, owned(text, labels, ranks, seed))
    found = partition.counts(labels, owner, 5, ranks)
    assert np.array_equal(found.sum(1), np.bincount(labels, minlength=5))
    if rule.kind == "dirichlet":
        assert np.ptp(found.sum(0)) <= 1, "the amounts are equal"
    if rule.kind == "shards":
        assert np.ptp(found.sum(0)) <= rule.value, "to one image a shard"


@skews
def test_other_seeds_and_ranks_share_out_otherwise(text):
    one = owned(text, seed=1)
    assert not np.array_equal(one, owned(text, seed=2))
    assert text == "sizes:0.001" or not np.array_equal(one, owned(text, ranks=7, seed=1))


@pytest.mark.parametrize("ranks", [4, 8, 16])
def test_the_smaller_alpha_is_the_more_the_classes_differ_from_rank_to_rank(ranks):
    """The largest share of a rank that is of one class, on average over ranks and seeds."""
    largest = [np.mean([(found.max(0) / found.sum(0)).mean() for found in (
        counted(f"dirichlet:{alpha}", ranks, seed) for seed in range(8))]) for alpha in (0.001, 0.1, 1, 10, 1e6)]
    assert largest == sorted(largest, reverse=True)
    assert largest[1] > 1.5 * largest[3]
    assert largest[-1] < 0.15, "alike, to chance"
    alone = counted("dirichlet:0.001", ranks=10)
    assert (alone.max(0) == 400).sum() >= 9, "where a class is as much as a rank takes, each has one"


def test_a_rank_has_k_shards_of_images_sorted_by_class():
    """Ten classes of 400, in 20 shards of 200: each is of one class, and which ranks have it is drawn."""
    found = counted("shards:2", ranks=10)
    assert set(found.ravel().tolist()) <= {0, 200, 400}
    assert (found.sum(0) == 400).all()
    assert not np.array_equal(found, counted("shards:2", ranks=10, seed=1))
    assert (np.count_nonzero(counted("shards:1", ranks=10), axis=0) == 1).all()


def test_amounts_differ_where_classes_do_not():
    found = counted("sizes:1")
    assert np.ptp(found.sum(0)) > 200
    large = found[:, found.sum(0) > 400]
    assert large.size
    assert np.abs(large / large.sum(0) - 0.1).max() < 0.06
    assert np.ptp(counted("sizes:1e6").sum(0)) < 20


@pytest.mark.parametrize("text", ["", "iid:1", "dirichlet", "dirichlet:", "dirichlet:0", "dirichlet:nan", "shards:0",
                                  "shards:1.5", "sizes:-1", "sizes:1e9", "classes:3", "dirichlet:0.1:2", "shards"])
def test_what_is_no_rule_is_refused_before_anything_is_read(text):
    with pytest.raises(UsageError, match=r"^--partition.*: expected .*, found ") as refusal:
        prepare(Config(partition=text, data="no such data"), 2)
    assert "\n" not in refusal.value.message


@pytest.fixture(scope="module")
def prepared():
    return prepare(Config(), None)


@pytest.mark.parametrize(("options", "ranks", "found"), [
    ({"partition": "sizes:0.5"}, 16, "the smallest share has 1; use --partition sizes:1"),
    ({"partition": "sizes:1", "batch": 250}, 16, " or --batch "),
    ({"partition": "sizes:0.001"}, 8, "the smallest share has 0; use --partition sizes:"),
    ({"partition": "shards:700", "batch": 750}, 16, "has 733; use --partition shards:10 or --batch 733"),
    ({"partition": "shards:800"}, 16, "more than the 12,000 training images; use --partition shards:750 or less")])
def test_a_refusal_names_ways_out_that_work(options, ranks, found, prepared):
    def fits(**options):
        fit(dataclasses.replace(prepared, config=Config(**options), owned={}), ranks)

    with pytest.raises(UsageError, match=r"^--partition ") as refusal:
        fits(**options)
    message = refusal.value.message
    assert found in message
    assert "\n" not in message
    for way in message.rpartition("; use ")[2].replace(" or less", "").split(" or "):
        flag, value = way.split()
        fits(**{**options, flag[2:]: int(value) if flag == "--batch" else value})


def test_a_run_that_survives_its_ranks_has_no_images_of_one_rank_alone():
    with pytest.raises(UsageError, match=r"^--survive: expected --partition iid, found shards:2, .*--no-survive"):
        prepare(Config(partition="shards:2", survive=True, data="no such data"), 2)


def ranks_of(text, batch, size=4, **kw):
    images, owner = Split(np.zeros((90, 8, 8, 3), np.uint8), np.arange(90) // 9, np.zeros(3), np.ones(3)), None
    if text != "iid":
        owner = owned(text, images.labels, size)
    return [Batches(images, batch, rank, size, own=None if owner is None else np.flatnonzero(owner == rank), **kw)
            for rank in range(size)]


@pytest.mark.parametrize("text", ["dirichlet:0.1", "shards:2", "sizes:2"])
def test_a_rank_sees_its_own_images_alone_each_once_before_any_again(text):
    begun, again = ranks_of(text, 5), ranks_of(text, 5)
    assert {each.steps_per_epoch for each in begun} == {90 // 20}, "an epoch is as long as with iid"
    for rank, other in zip(begun, again, strict=True):
        seen = np.concatenate([rank.indices(step) for step in range(60)])
        own, passes = rank.own, len(seen) // len(rank.own)
        parts = seen[:passes * len(own)].reshape(passes, len(own))
        assert passes > 1
        assert all(np.array_equal(np.sort(part), own) for part in parts)
        assert len(set(map(tuple, parts))) == passes, "shuffled anew"
        assert all(np.array_equal(other.indices(step), seen[5 * step:5 * step + 5]) for step in reversed(range(60)))


def test_resumed_with_another_batch_each_image_is_still_seen_as_often():
    old = ranks_of("dirichlet:0.1", 5)
    course = old[0].course
    course = Course(3 * 4, course.epoch, course.first, course.workers, 7, course.drawn(7))
    new = ranks_of("dirichlet:0.1", 3, course=course)
    for before, after in zip(old, new, strict=True):
        seen = np.concatenate([before.indices(step) for step in range(7)] + [
            after.indices(step) for step in range(7, 20)])
        assert np.array_equal(seen, np.concatenate([before.indices(step) for step in range(20)])[:len(seen)])


def test_what_is_recalibrated_sees_the_images_of_all_ranks():
    own, shuffled = ranks_of("shards:1", 5)[1], ranks_of("iid", 5)[1]
    assert np.array_equal(own.of_all().indices(2), shuffled.indices(2))
    assert shuffled.of_all() is shuffled
    assert set(own.indices(2).tolist()) <= set(own.own.tolist()), "itself it stays as it was"
    assert Config().statistics(True) == "average"
    assert Config(partition="shards:1").statistics(True) == "recalibrate"


def test_a_table_is_shortened_beyond_sixteen_ranks_and_classes():
    found = np.arange(20 * 18).reshape(20, 18)
    text = partition.table(found, [f"class {number}" for number in range(20)], first=2)
    lines = text.splitlines()
    assert len(lines) == 1 + 16 + 2
    assert lines[0].split() == ["rank", *map(str, range(2, 18))]
    assert lines[1].split()[:4] == ["class", "0", "0", "1"]
    assert lines[-2].split()[:2] == ["all", str(found[:, 0].sum())]
    assert lines[-1] == "and 2 more ranks and 4 more classes in env.json"
    assert "more" not in partition.table(found[:16, :16], "abcdefghijklmnop")
    assert partition.summary(np.array([[3, 0], [1, 4]])) == "4 images a rank, of 1 to 2 classes"
    assert partition.summary(np.array([[3, 0], [0, 4]])) == "3 to 4 images a rank, of 1 class"


@pytest.fixture
def data(monkeypatch):
    """The built-in training images, and six test images."""
    found = open_dataset("fashion-mnist-12k")
    found.test = Split(np.zeros((6, 28, 28, 1), np.uint8), np.zeros(6), found.mean, found.std)
    monkeypatch.setattr("dsgd_mpi.training.build.open_dataset", lambda name: found)
    return found


def simulated(ranks, **options):
    config = Config(**{"algorithm": "dpsgd", "batch": 2, "partition": "dirichlet:0.1", "steps": 4,
                       "checkpoint_every": 2, "keep": 9, "bn": "local", "eval_own": 0, **options})
    assert simulate.run(config, simulate.Simulation(star(gradient_s=1.0), ranks)) == 0


def model(folder):
    with h5py.File(folder / "model.h5") as file:
        return {name: file[name][()] for name in file}


def test_a_simulated_run_shows_its_table_and_is_resumed_exactly(tmp_path, capsys, data):
    once, again = tmp_path / "once", tmp_path / "again"
    simulated(3, out=str(once))
    shown = capsys.readouterr().out
    found = partition.counts(data.train.labels, owned("dirichlet:0.1", data.train.labels, 3), 10, 3)
    assert partition.table(found, data.classes) in shown
    assert "dirichlet:0.1: 4,000 images a rank, of " in shown
    about = json.loads((once / "env.json").read_text())["partition"]
    assert about == {"rule": "dirichlet:0.1", "classes": data.classes, "first_rank": 0, "images": found.tolist()}
    assert json.loads((once / "summary.json").read_text())["partition"] == "dirichlet:0.1"
    shutil.copytree(once, again)
    shutil.rmtree(max(again.glob("checkpoint-*")))
    (again / "model.h5").unlink()
    simulated(3, resume=str(again))
    assert "changed" not in capsys.readouterr().out
    for name, array in model(once).items():
        assert np.array_equal(array, model(again)[name]), name


def test_whoever_goes_on_among_other_ranks_is_told_that_images_change_hands():
    about, course = {"config": Config(partition="shards:2").to_toml()}, Course(32, 960, 32, 2)
    assert changes(about, 2, about, 2, course, course) == []
    assert "shards:2 shared out anew" in changes(about, 2, about, 4, course, course)
    assert changes({"config": Config().to_toml()}, 2, about, 2, course, course) == ["--partition iid -> shards:2"]
