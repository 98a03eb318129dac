"""What a run may change when it goes on, what it may not, and what it is told of it."""

import json

import numpy as np
import pytest

from dsgd_mpi.algorithms.allreduce import Allreduce
from dsgd_mpi.algorithms.gossip import Gossip
from dsgd_mpi.arrays.flat import Layout
from dsgd_mpi.config import Config, from_toml
from dsgd_mpi.data import Course
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.optim.sgd import Sgd
from dsgd_mpi.training.checkpoint import Checkpoints
from dsgd_mpi.training.results import keep_config
from dsgd_mpi.training.resume import Consent, changes, course_of, gone_on, refusal, shared_among

DATA = {"train": 60, "test": 20, "image": [8, 8, 1], "classes": 4, "mean": [0.25], "std": [0.5], "digest": "a"}
OLD, NEW = Course(32, 960, 32, 2), Course(64, 960, 64, 4)


def header(data=None, shared_out=False, graph="", **options):
    config = Config(**options)
    return {"algorithm": config.algorithm, "config": config.to_toml(), "shared_out": shared_out, "workers": 2,
            "graph": graph, "data": json.dumps({**DATA, **(data or {})})}


@pytest.mark.parametrize(("before", "now", "ranks", "replicated", "reason"), [
    ({}, {}, 2, False, None), ({}, {}, 4, True, None), ({}, {"lr": 0.1, "epochs": 9, "seed": 7}, 2, False, None),
    ({}, {"batch": 8}, 2, False, None),
    ({}, {}, 4, False, "2 different models, one per rank, but this run has 4 ranks; resume it with 2, or from"),
    ({}, {"model": "resnet14"}, 2, True, "it holds a resnet8, but this run's model is resnet14"),
    ({}, {"algorithm": "gossip"}, 2, True, "it is of a run of allreduce, but this run is one of gossip"),
    ({"algorithm": "push_sum"}, {"algorithm": "sgp"}, 2, True, None),
    ({"shared_out": True}, {"shared_out": True, "batch": 8}, 2, True, "it counts steps of 16 images, but this run has"),
    ({"shared_out": True}, {}, 2, True, "it counts the steps of all ranks together, but this run those of each rank"),
    ({}, {"data": {"mean": [0.3], "digest": "b"}}, 2, True, "trained on other data: mean 0.2500, now 0.3000; give it"),
    ({}, {"data": {"image": [8, 8, 3]}}, 2, True, "trained on other data: image 8x8x1, now 8x8x3; give it"),
    ({}, {"graph": "1a2b"}, 2, True, "graph was no file's, but this run's is that of a file (1a2b); give it the"),
    ({"graph": "1a2b"}, {"graph": "3c4d"}, 2, False, "of a file (1a2b), but this run's is that of a file (3c4d)"),
    ({"graph": "1a2b"}, {"graph": "1a2b"}, 2, False, None),
    ({}, {"data": {"digest": "b"}}, 2, True, "other data: as many, but other images or labels; give it those, or")])
def test_the_table_of_what_may_change(before, now, ranks, replicated, reason):
    found = refusal(header(**before), 2, header(**now), ranks, replicated, Consent())
    assert found is None if reason is None else found.startswith(reason) or reason in found
    assert not found or "\n" not in found
    if "data" in now:
        assert refusal(header(), 2, header(**now), ranks, replicated, Consent(data=True)) is None
    if reason and ("different models" in reason or "graph" in reason):
        assert refusal(header(), 2, header(**now), ranks, replicated, Consent(mean=True)) is None


def test_whatever_changed_is_told():
    assert changes(header(), 2, header(), 2, OLD, OLD) == []
    assert changes(header(), 2, header(lr=0.1, set=("bucket_mb=2",)), 4, OLD, gone_on(OLD, NEW, 965)) == [
        "ranks 2 -> 4", "global batch 32 -> 64", "--set none -> bucket_mb=2", "--lr 0.2 -> 0.1",
        "peak rate is 0.1, at the same place of its schedule (0 images)"]
    assert changes(header(), 2, header(data={"digest": "b"}, quiet=True), 2, OLD, OLD) == ["other data"]
    older = {**header(), "config": 'model = "resnet8"\n'}   # of a version without most options of today
    assert changes(older, 2, header(), 2, OLD, OLD) == []
    assert changes(older, 2, header(keep=3), 2, OLD, OLD) == ["--keep 2 -> 3"]


def test_a_course_is_kept_through_any_number_of_changes_and_known_of_older_versions():
    begun = Course(32, 960, 32, 2)
    about = {"course": [begun.batch, begun.epoch, begun.first, begun.workers, begun.drawn(17)]}
    assert course_of(about, 17, 2, 0, 965).units(20) == begun.units(20)
    now = gone_on(course_of(about, 17, 2, 0, 965), NEW, 965)
    assert (now.batch, now.epoch, now.first, now.workers, now.drawn(18)) == (64, 960, 32, 2, 17 * 32 + 64)
    assert (now.units(17), now.units(18), now.reaches(120)) == (17, 19, 17 + 52)
    old = {"config": Config(batch=16).to_toml()}
    assert course_of(old, 17, 2, 0, 965).drawn(17) == course_of(old, 17, 3, 1, 965).drawn(17) == 17 * 32
    assert gone_on(begun, NEW, 200).epoch == NEW.epoch       # of other data


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_what_was_counted_is_shared_among_other_ranks(ranks):
    before = [{"images": 100 + rank, "wall_s": 5.0, "rank_steps": 10, "epoch_loss": [3.0 + rank, 4],
               "line_losses": [rank], "staleness_counts": {"1": 2}} for rank in range(2)]
    found = shared_among(before, ranks)
    assert len(found) == ranks
    assert sum(each["images"] for each in found) == 201
    assert [each["wall_s"] for each in found] == [5.0] * ranks
    assert sum(each["epoch_loss"][0] for each in found) == pytest.approx(7)
    assert sum(each["epoch_loss"][1] for each in found) == pytest.approx(8)
    assert sum(sum(each["staleness_counts"].values()) for each in found) == 4
    assert [each["line_losses"] for each in found] == [[0], *[[]] * (ranks - 1)]


def on_cluster(folder, size, algorithm, act):
    def main(host):
        x, own = np.full(6, float(host.rank), "float32"), algorithm()
        sgd = Sgd().start(Layout({"w": (5,)}, {"mean": (1,)}), like=x)
        own.start(host, x, sgd)
        sgd.state["v"][:] = 7
        return act(Checkpoints(host, folder, {"workers": size}), x, sgd, own)
    return Cluster(size).run(main)


def save(checkpoints, x, sgd, algorithm):
    checkpoints.save(10, x, sgd, algorithm, {"images": 10 + checkpoints.host.rank, "epoch_loss": [1.5, 2]})
    checkpoints.finish()


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_any_number_of_ranks_goes_on_from_the_mean(tmp_path, size):
    on_cluster(tmp_path, 4, Gossip, save)

    def restore(checkpoints, x, sgd, algorithm):
        sgd.state["v"][:] = 0
        step, totals = checkpoints.restore(x, sgd, algorithm, consent=Consent(mean=True))
        return step, totals["images"], x[0], sgd.state["v"][0], algorithm.t
    found = on_cluster(tmp_path, size, Gossip, restore)
    assert [(step, x, v, t) for step, _, x, v, t in found] == [(10, 1.5, 0, 0)] * size
    assert sum(images for _, images, *_ in found) == 46
    (tmp_path / "checkpoint-000000010" / "rank2.h5").unlink()
    with pytest.raises(UsageError, match=r"checkpoint-000000010: rank2\.h5 is missing"):
        on_cluster(tmp_path, size, Gossip, restore)


def test_the_configuration_that_is_kept_is_the_run_s_and_not_how_it_was_resumed(tmp_path):
    (tmp_path / "config.toml").write_text(Config().to_toml())
    keep_config(tmp_path, Config(epochs=9, resume=str(tmp_path), resume_as="mean", auto_resume=True))
    assert Config(**from_toml(tmp_path / "config.toml")) == Config(epochs=9, out=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_every_rank_gets_its_own_figures_back_where_one_file_is_for_all(tmp_path):
    on_cluster(tmp_path, 3, Allreduce, save)
    images = {size: [totals["images"] for _, totals in on_cluster(
        tmp_path, size, Allreduce, lambda checkpoints, *parts: checkpoints.restore(*parts))] for size in (3, 2)}
    assert images == {3: [10, 11, 12], 2: [17, 16]}
