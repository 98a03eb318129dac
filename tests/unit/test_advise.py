"""`advise`: what studies say of an epoch, and how speeds and epochs become a ranking."""

import pytest
from click.testing import CliRunner

from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.simulated.machine import Gradient, Link, Machine, Slow
from dsgd_mpi.study import advise
from dsgd_mpi.study.plan import read
from dsgd_mpi.study.study import run_all
from tests.unit.test_study import write_run

STUDY = """
[study]
name = "known"
target = 0.5
seeds = [1, 2]
results = "{results}"
[base]
batch = 8
cluster = "ethernet-10g"
[axes]
algorithm = ["allreduce", "gossip mode=push", "sgp"]
ranks = [2, 8]
"""


@pytest.fixture
def known(tmp_path):
    """Gossip needs 1.2 times all-reduce's epochs on 2 ranks and 2.0 on 8; sgp never gets there."""
    path = tmp_path / "known.toml"
    path.write_text(STUDY.format(results=tmp_path / "results"))
    final = {("allreduce", 2): 0.8, ("allreduce", 8): 0.8, ("gossip", 2): 0.8 / 1.2, ("gossip", 8): 0.5}

    def execute(cell, folder):
        write_run(folder, final.get((cell.way.name, cell.ranks), 0.3))
        epochs = {("allreduce", 8): 1.0, ("gossip", 8): 2.0}.get((cell.way.name, cell.ranks))
        if epochs:                          # reached at its end
            (folder / "summary.csv").write_text("step,epoch,accuracy,wall_s,eval_s,images,rank_steps\n"
                                                f"100,{epochs},0.5,11,1,1000,1 1\n")
        return 0
    run_all(read(path, ""), execute, tmp_path / "runs", 1)
    return advise.evidence([path])


def test_epochs_are_those_of_all_reduce_on_as_many_ranks_and_interpolated(known):
    gossip = known["gossip mode=push"]
    assert gossip.at(2) == pytest.approx((1.2, 1.2, 1.2))
    assert gossip.at(8) == pytest.approx((2.0, 2.0, 2.0))
    assert gossip.at(4) == pytest.approx((1.6, 1.6, 1.6))
    assert gossip.at(16) is None
    assert gossip.at(1) is None
    assert gossip.studies == {"known"}
    assert known["allreduce"].at(4) == pytest.approx((1.0, 1.0, 1.0))
    assert "sgp" not in known


def test_who_is_slow_in_the_network_but_learns_as_fast_is_told_so(known, monkeypatch):
    monkeypatch.setattr(advise, "candidates", lambda: ["allreduce", "gossip mode=push", "sgp"])
    slow = Machine(card=Link(1e8, 1e-3), gradient=Gradient(0.01), slow=(Slow(ranks=(1,), factor=30.0),))
    found = {each.name: each for each in advise.advised(slow, 4, "resnet18", 8, known)}
    gossip, base = found["gossip mode=push"], found["allreduce"]
    assert gossip.images_per_s > 1.2 * base.images_per_s
    assert gossip.epochs == pytest.approx((1.6, 1.6, 1.6))
    assert "but it needs 1.6 times the epochs" in gossip.why
    assert gossip.hours(3600e6)[1] == pytest.approx(1.6e6 / gossip.images_per_s)
    assert found["sgp"].epochs is None
    assert found["sgp"].rests_on == "no study"
    assert list(found)[-1] == "sgp", "those without evidence come last"


@pytest.mark.parametrize("text", ["2:3x", "x", "2%:3", "200%:3x", "2%:0x", "2%:..x"])
def test_slow_ranks_that_are_none_are_refused(text):
    with pytest.raises(UsageError, match="--slow"):
        advise.slowed(text)


def test_the_command_prints_a_table(monkeypatch, tmp_path):
    monkeypatch.setattr(advise, "candidates", lambda: ["allreduce"])
    monkeypatch.setattr(advise, "STUDIES", tmp_path)        # what a study adds to the table may wrap the sentence
    done = CliRunner().invoke(advise.advise, ["--cluster", "ethernet-10g", "--ranks", "2", "--model", "resnet18",
                                              "--slow", "50%:2x"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "simulated" in done.output
    assert "the measure of all others" in " ".join(done.output.split())
