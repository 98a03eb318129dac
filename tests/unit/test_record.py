"""What is counted in a run, and where it stays when the run is resumed."""

import csv
import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from dsgd_mpi.algorithms import Algorithm
from dsgd_mpi.algorithms.backup import Backup
from dsgd_mpi.algorithms.gossip import Gossip
from dsgd_mpi.data import Course
from dsgd_mpi.kernels.api import Known
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.net.simulated.host import SimulatedHost
from dsgd_mpi.net.simulated.machine import star
from dsgd_mpi.training import loop
from dsgd_mpi.training.display import Display
from dsgd_mpi.training.record import Record
from tests.support.runs import training

SLOW = star(gradient_s=lambda rank, step: 3.0 if rank == 3 else 1.0)
BATCH = 2
HOST = SimpleNamespace(rank=0, now=lambda: 0.0, progress=lambda: None, traffic=SimpleNamespace(
    staleness={}, comm_s=0.0, wait_s=0.0, bytes_sent=0))


def simulated(folder, algorithm, steps, resume=False, size=5):
    """summary.json of a run whose rank 3 is slow, as rank 0 knows it."""
    def main(host):
        run = training(host, folder, algorithm(), steps)
        first, totals = run.checkpoints.restore(run.model.flat, run.optimizer, run.algorithm) if resume else (0, None)
        record = Record(host, run.algorithm, folder, Display(False), 1000, BATCH, 4, 5, first, totals)
        return record.finish("", loop.train(run, record, first, lambda: False), {})
    return Cluster(size, SLOW).run(main)[0]


@pytest.mark.parametrize("backups", [0, 1, 2])
def test_only_gradients_that_are_applied_count_as_applied_after_a_resume_too(tmp_path, backups):
    for steps in (12, 20):
        summary = simulated(tmp_path, lambda: Backup(backups), steps, resume=steps == 20)
        assert summary["images_applied"] == steps * (4 - backups) * BATCH
        assert (summary["images"] > summary["images_applied"]) == (backups > 0)
    with open(tmp_path / "summary.csv", newline="") as file:
        assert [int(row["images_applied"]) for row in csv.DictReader(file)] == [
            steps * (4 - backups) * BATCH for steps in (12, 20)]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["images"], line["images_applied"]) for line in lines] == [
        (0, line["step"] * (4 - backups) * BATCH) for line in lines]        # of rank 0, which only serves


def test_one_rank_with_backups_applies_its_own(tmp_path):
    summary = simulated(tmp_path, Backup, 6, size=1)
    assert summary["images"] == summary["images_applied"] == 6 * BATCH


def test_the_answer_takes_time_of_training_and_not_of_evaluation(tmp_path, monkeypatch):
    clock = [0.0]

    class Slow(Gossip):
        def answer(self, x):
            clock[0] += 5
            return super().answer(x)

    def main(host):
        run = training(host, tmp_path, Slow(), 6)
        predictor = run.model.predictor
        run.model.predictor = lambda: (clock.__setitem__(0, clock[0] + 7), predictor())[1]
        record = Record(host, run.algorithm, tmp_path, Display(False), 1000, BATCH, 1, 5)
        loop.train(run, record, 0, lambda: False)
        return record.finish("", 6, {})

    monkeypatch.setattr(SimulatedHost, "now", lambda host: clock[0] + host.cluster.clock.now)
    summary = Cluster(1).run(main)[0]
    assert (summary["answer_s"], summary["eval_s"]) == pytest.approx((5, 7))
    assert summary["images_per_s"] == pytest.approx(summary["images"] / (summary["wall_s"] - 7))


@pytest.mark.parametrize(("wait_s", "told"), [(1.0, ["25% of the last 10 s", "37% of the last 20 s"]), (0.05, [])])
def test_the_share_of_time_spent_waiting_for_images_is_noted_and_a_large_one_told_once(tmp_path, wait_s, told):
    """Rank 1 waits for each of its batches, and in a resumed run three times as long; a gradient takes a second."""
    said = []

    def main(host, steps, wait_s):
        run = training(host, tmp_path, Gossip(), steps)
        stream = run.batches.stream
        run = replace(run, eval_every=5, course=Course(1, 1000, 1), checkpoint_every=10)

        def late(first):
            for batch in stream(first):
                host.linger(host.rank * wait_s)
                yield batch

        run.batches.stream = late
        first, totals = (run.checkpoints.restore(run.model.flat, run.optimizer, run.algorithm) if steps > 10 else
                         (0, None))
        record = Record(host, run.algorithm, tmp_path, Display(False), 1000, BATCH, 2, 5, first, totals,
                        advice="try more")
        record.display.print = said.append
        record.finish("", loop.train(run, record, first, lambda: False), {})

    for steps, seconds in ((10, wait_s), (15, 3 * wait_s)):
        Cluster(2, star(gradient_s=1.0)).run(partial(main, steps=steps, wait_s=seconds))
    with open(tmp_path / "summary.csv", newline="") as file:
        shares = [float(row["data_share"]) for row in csv.DictReader(file)]
    assert shares == pytest.approx([each / (1 + each) / 2 for each in (wait_s, wait_s, 3 * wait_s)], rel=0.02)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["data_share"] for line in lines] == [0, 0, 0], "of rank 0"
    assert said == [f"{each} of training went by waiting for images; try more" for each in told]


def test_totals_of_an_older_version_count_all_images_as_applied(tmp_path):
    record = Record(HOST, Algorithm(), tmp_path, Display(False), 10, BATCH, 1, 1, totals={"images": 30})
    record.loss(Known(1.0))
    assert record.figures()["images_applied"] == record.figures()["images"] == 32
    record.output.close()


def test_a_table_that_an_older_version_began_keeps_its_columns(tmp_path):
    path = tmp_path / "summary.csv"
    for before, after in (("step,accuracy\r\n10,0.5\r\n", "step,accuracy\n10,0.5\n20,0.6\n"),
                          ("", "step,new,accuracy\n20,1,0.6\n")):
        path.write_text(before)
        record = Record(HOST, Algorithm(), tmp_path, Display(False), 10, BATCH, 1, 1, 10)
        record.output.add("summary.csv", record.as_csv({"step": 20, "new": 1, "accuracy": 0.6}))
        assert path.read_text() == after
        record.output.add("summary.csv", record.as_csv({"step": 30, "new": 2, "accuracy": 0.7}))
        assert path.read_text().count("\n") == after.count("\n") + 1
        record.output.close()


def test_of_a_file_of_lines_what_a_resumed_run_will_write_again_is_cut(tmp_path):
    """Lines that are not ours do no harm, nor does one that was written in part."""
    path = tmp_path / "metrics.jsonl"
    kept = b'{"step": 5}\nnot ours\n\xff\r?\n{"step": null}\n[[]]\n' + b"[" * 100_000 + b'\n{"step": 10}\n'
    for more in (b"", b'{"step": 15}\n{"step": 20}\n', b'{"step": 15', b'{"step": 1'):
        path.write_bytes(kept + more)
        Record(HOST, Algorithm(), tmp_path, Display(False), 10, BATCH, 1, 1, 10).output.close()
        assert path.read_bytes() == kept
