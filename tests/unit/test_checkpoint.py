"""Checkpoints on a simulated cluster: whole or not there, newest first, never the end of a run."""

import logging

import h5py
import numpy as np
import pytest

from dsgd_mpi.algorithms.allreduce import Allreduce
from dsgd_mpi.algorithms.gossip import Gossip
from dsgd_mpi.arrays.flat import Layout
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.simulated.host import Cluster
from dsgd_mpi.optim.adamw import AdamW
from dsgd_mpi.optim.sgd import Sgd
from dsgd_mpi.training import checkpoint
from dsgd_mpi.training.checkpoint import Checkpoints


def on_cluster(tmp_path, size, algorithm, act, state=None, **header):
    """`act(checkpoints, x, sgd, algorithm)` on each rank, x and v being full of the rank's number."""
    def main(host):
        x, own = np.full(6, float(host.rank), "float32"), algorithm()
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
    assert "rank1.h5 cannot be read back" in caplog.text


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(tmp_path, monkeypatch, caplog):
    on_cluster(tmp_path, 2, Gossip, save(10))

    def atomic(path, verify):
        raise OSError(f"{path}: No space left on device")
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(checkpoint, "atomic", atomic)
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
        return adamw.state
    written = act(AdamW(), save)
    with h5py.File(next(tmp_path.rglob("rank0.h5"))) as file:
        assert (file.attrs["format"], file.attrs["optimizer"], set(file["optimizer"])) == (2, "adamw", {"m", "v", "t"})

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
            del file["optimizer"], file.attrs["optimizer"]
            file.attrs["format"] = 1
    assert on_cluster(tmp_path, 3, Gossip, restore) == [(10, 5, 100 + rank, rank, 10) for rank in range(3)]
