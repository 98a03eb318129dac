"""Whole runs, as a user starts them: what they leave behind, how they go on, how they end when something is wrong."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import textwrap
import time
from collections import Counter

import h5py
import numpy as np
import pytest

from dsgd_mpi import algorithms
from dsgd_mpi.data.formats import write
from dsgd_mpi.nn import resnet
from tests.support import ROOT
from tests.support.data_samples import content
from tests.support.jobs import Job, pids, run, train, until

SMALL = ("--steps", 12, "--batch", 8, "--log-every", 4)


def model_of(folder):
    with h5py.File(folder / "model.h5") as file:
        return {name: file[name][()] for name in file}


def steps_of(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def progress_of(folder):
    """All that does not depend on the clock, of each line and each evaluation."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with open(folder / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return ([[line[key] for key in ("step", "epoch", "lr", "loss", "images")] for line in lines],
            [[row[key] for key in ("step", "epoch", "lr", "accuracy", "train_loss", "images")] for row in rows])


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("ranks", "algorithm"), [(None, "allreduce"), (2, "allreduce"), (4, "gossip")])
def test_a_run_leaves_its_folder(tmp_path, ranks, algorithm):
    status, output, errors = train(*SMALL, "--algorithm", algorithm, "--out", tmp_path / "run", ranks=ranks)
    assert (status, errors) == (0, "")
    assert "result" in output
    assert "warm-up of 6 steps, half of the run, sgd" in " ".join(output.replace("│", " ").split())
    assert f"python -m dsgd_mpi plot {tmp_path / 'run'}" in output
    count = ranks or 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert (summary["algorithm"], summary["ranks"], summary["steps"]) == (algorithm, count, 12)
    assert summary["epochs"] == pytest.approx(12 * 8 * count / 12_000, rel=0.01)
    assert 0 < summary["accuracy"] < 1
    for key in ("model", "data", "seed", "train_loss", "images_per_s", "wall_s", "compute_s", "comm_s", "wait_s",
                "data_s", "bytes_sent", "consensus_distance"):
        assert summary[key] is not None, key
    assert summary["wall_s"] >= summary["compute_s"] > 0
    assert (summary["bytes_sent"] > 0) == (count > 1)
    assert (summary["consensus_distance"] > 0) == (algorithm == "gossip")
    assert steps_of(tmp_path / "run") == [4, 8, 12]
    assert len((tmp_path / "run" / "summary.csv").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "run" / "env.json").read_text())["ranks"][-1]["kernels"] in ("onednn", "reference")
    assert model_of(tmp_path / "run")["fc.weight"].shape == (10, 64)
    repeated = train("--config", tmp_path / "run" / "config.toml", "--print-config")[1]
    assert repeated == (tmp_path / "run" / "config.toml").read_text()


@pytest.mark.parametrize("ranks", [1, 4])
def test_stopped_and_resumed_equals_never_stopped_to_the_bit(tmp_path, ranks):
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    assert train(*SMALL, "--out", whole, ranks=ranks)[0] == 0
    assert train(*SMALL, "--out", halved, "--checkpoint-every", 5, ranks=ranks)[0] == 0     # at 0, too, at first
    assert sorted(path.name for path in halved.glob("check*")) == ["checkpoint-000000010", "checkpoint-000000012"]
    (halved / "checkpoint-000000012" / "rank0.h5").write_bytes(b"cut short")
    (halved / "model.h5").unlink()
    status, _, errors = train("--resume", halved, ranks=ranks)
    assert status == 0
    assert "cannot be read back" in errors
    assert same(model_of(whole), model_of(halved))
    assert progress_of(halved) == progress_of(whole)
    assert "already finished, at step 12" in train("--resume", halved, ranks=ranks)[1]


def content_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_lengthened_run_is_from_then_on_the_long_one_and_whatever_its_end_lacks_is_made(tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(*SMALL, "--schedule", "constant", "--out", whole)[0] == 0
    assert train(*SMALL, "--schedule", "constant", "--steps", 6, "--out", run)[0] == 0
    stale, finished = (run / "model.h5").read_bytes(), content_of(run)
    for again in ((), ("--steps", 6), ("--steps", 5)):
        status, output, errors = train("--resume", run, *again)
        assert (status, errors) == (0, "")
        assert ("already at step 6, beyond the 5" if 5 in again else "already finished, at step 6\n") in output
    assert content_of(run) == finished
    assert train("--resume", run, "--steps", 12)[0] == 0
    assert same(model_of(whole), model_of(run))
    assert "steps = 12\n" in (run / "config.toml").read_text()
    finished = content_of(run)
    assert "already finished, at step 12\n" in train("--resume", run)[1]
    assert content_of(run) == finished
    (run / "model.h5").write_bytes(stale)       # killed before it was written again
    (run / "summary.json").unlink()
    rows = (run / "summary.csv").read_text().splitlines(keepends=True)
    (run / "summary.csv").write_text("".join(rows[:-1]))
    status, output, errors = train("--resume", run)
    assert (status, errors) == (0, "")
    assert "already finished, at step 12, but for summary.csv, summary.json, model.h5" in output
    assert same(model_of(whole), model_of(run))
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert [row.split(",")[0] for row in (run / "summary.csv").read_text().splitlines()] == ["step", "6", "12"]
    assert steps_of(run) == steps_of(whole)
    before = (run / "summary.json").read_bytes()
    (run / "model.h5").write_bytes(b"cut short")
    assert "but for model.h5\n" in train("--resume", run)[1]
    assert same(model_of(whole), model_of(run))
    after = json.loads((run / "summary.json").read_text())
    assert {key: after[key] for key in ("accuracy", "images")} == {
        key: json.loads(before)[key] for key in ("accuracy", "images")}


def test_other_ranks_go_on_in_the_middle_of_an_epoch_and_what_changed_is_told(tmp_path):
    """Of 12,000 images: two ranks have drawn 10 x 2 x 8, then three draw 3 x 8 a step, to 16 x 16 at the least."""
    run, data = tmp_path / "run", tmp_path / "other.h5"
    assert train(*SMALL, "--schedule", "linear", "--warmup", 0, "--checkpoint-every", 10, "--out", run, ranks=2)[0] == 0
    shutil.rmtree(run / "checkpoint-000000012")
    status, output, errors = train("--resume", run, "--steps", 16, "--log-every", 1, ranks=3)
    assert (status, errors) == (0, "")
    told = " ".join(output.replace("│", " ").split())
    assert "changed ranks 2 -> 3, global batch 16 -> 24, --steps 12 -> 16, --log-every 4 -> 1" in told
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-4:]
    assert [line["step"] for line in lines] == [11, 12, 13, 14]
    assert [line["lr"] for line in lines] == pytest.approx([0.2 * (256 - images) / 256 for images in (
        160, 184, 208, 232)])
    assert json.loads((run / "summary.json").read_text())["images"] == 160 + 4 * 24
    write(data, content(train=9000, side=28, channels=1))
    refused = train("--resume", run, "--steps", 20, env={"DSGD_DATA": str(data)})
    assert refused[0] == 2
    assert refused[2].count("\n") == 1
    assert "trained on other data: train 12000, now 9000" in refused[2]
    assert "resnet8" in train("--resume", run, "--steps", 20, "--model", "resnet14")[2]


@pytest.mark.parametrize(("number", "options"), [
    (signal.SIGUSR1, ("allreduce",)), (signal.SIGUSR2, ("gossip",)), (signal.SIGTERM, ("gossip", "--set", "mode=push")),
    (signal.SIGUSR2, ("parameter_server", "--set", "servers=1"))])
def test_a_signal_to_one_rank_stops_all_at_one_step_and_the_run_goes_on_from_there(tmp_path, number, options):
    folder = tmp_path / "run"
    job = Job("-m", "dsgd_mpi.train", "--steps", 400, "--batch", 4, "--log-every", 1, "--out", folder,
              "--algorithm", *options, ranks=3)
    until(lambda: (folder / "metrics.jsonl").exists() and len(steps_of(folder)) > 5)
    os.kill(pids(str(folder))[-1], number)
    status, output, errors = job.finish()
    assert status == 75, output + errors
    stopped = json.loads((folder / "summary.json").read_text())
    assert stopped["status"] == "stopped"
    assert 5 < stopped["steps"] < 400
    assert f"continue with --resume {folder}" in output
    step = stopped["steps"]
    status, output, errors = train("--resume", folder, "--steps", step + 10, ranks=3)
    assert status == 0, output + errors
    assert steps_of(folder) == list(range(1, step + 11))
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_terminal_that_is_closed_save_the_run(tmp_path, number):
    folder, program = tmp_path / "run", tmp_path / "program.py"
    program.write_text("import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
                       "signal.signal(signal.SIGHUP, signal.SIG_DFL)\nfrom dsgd_mpi.train import main\nmain()")
    job = Job(program, "--steps", 4000, "--batch", 4, "--log-every", 1, "--quiet", "--out", folder,
              env={"PYTHONPATH": str(ROOT)})
    until(lambda: (folder / "metrics.jsonl").exists() and len(steps_of(folder)) > 5)
    os.kill(job.process.pid, number)
    assert job.finish() == (75, "", "")
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"


@pytest.mark.parametrize(("own", "found"), [
    (("--lr", 0.1, "--seed", 7), "--seed: 0 on rank 0, 7 on rank 1; --lr: 0.2 on rank 0, 0.1 on rank 1"),
    (("--checkpoint-every", 7), "--checkpoint-every: 0 on rank 0, 7 on rank 1"),
    (("--algorithm", "gossip"), "--algorithm: allreduce on rank 0, gossip on rank 1")])
def test_ranks_that_were_started_differently_are_told_before_anything_is_made(tmp_path, own, found):
    status, output, errors = train("--steps", 3, "--out", tmp_path / "run", ranks=2, last=own)
    assert (status, output) == (2, "")
    assert errors == (f"Error: the ranks do not agree on what to run: {found}; start all of them with the same "
                      "command, environment, data and version\n")
    assert not (tmp_path / "run").exists()


def test_a_command_line_that_one_rank_cannot_read_ends_all(tmp_path):
    status, output, errors = train("--steps", 3, "--out", tmp_path / "run", ranks=2, last=("--lr", "x"))
    assert (status, output, errors) == (2, "", "Error: ranks [1]: --lr: expected a number, found 'x'\n")
    assert not (tmp_path / "run").exists()


def test_a_rank_that_is_to_print_alone_leaves_nobody_waiting(tmp_path):
    status, output, errors = train("--steps", 3, "--out", tmp_path / "run", ranks=2, last=("--print-config",))
    assert (status, output) == (2, "")
    assert errors == ("Error: ranks [1]: the command line asks for output alone, as --help does, but that of other "
                      "ranks does not; start all ranks with the same command\n")
    assert not (tmp_path / "run").exists()
    status, output, errors = train("--print-config", ranks=2)
    assert (status, output, errors) == (0, train("--print-config")[1], "")


def test_a_requeued_run_goes_on_from_its_newest_checkpoint_or_anew_where_there_is_none(tmp_path):
    again = ("--auto-resume", "--out", tmp_path / "run", *SMALL, "--checkpoint-every", 5)
    assert train(*again, ranks=2)[0] == 0
    before = model_of(tmp_path / "run")
    assert "already finished, at step 12" in train(*again, ranks=2)[1]
    shutil.rmtree(tmp_path / "run" / "checkpoint-000000012")
    assert " 10 to 12" in train(*again, ranks=2)[1]
    assert same(model_of(tmp_path / "run"), before)
    for path in (tmp_path / "run").glob("checkpoint-*"):
        shutil.rmtree(path)
    assert " 0 to 12" in train(*again, ranks=2)[1]
    assert same(model_of(tmp_path / "run"), before)
    assert steps_of(tmp_path / "run") == [4, 8, 12]
    assert "already finished" in train(*again, "--bn", "average", ranks=2)[1]      # what it is by default
    status, _, errors = train(*again, "--lr", 0.01, ranks=2)
    assert status == 2
    assert f"{tmp_path / 'run'} already holds another run" in errors


def test_a_run_stops_by_itself_before_its_batch_job_ends(tmp_path):
    end = time.time() + 15
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "night", "SLURM_JOB_NODELIST": "n[1-2]",
           "SLURM_JOB_END_TIME": str(int(end))}
    status, output, errors = train("--steps", 100_000, "--batch", 4, "--out", tmp_path / "run", ranks=2, env=job)
    assert status == 75, output + errors
    assert end - 5 < time.time() < end      # a tenth of what was left
    assert "7 (night) on n[1-2], 00:00:" in output
    assert "before the job's time limit; continue with --resume" in output
    assert list((tmp_path / "run").glob("checkpoint-*"))


# one for each way in which ranks talk; the others, which the laws hold to over MPI, too, are for make soak
BY_VERBS = {"adpsgd", "allreduce", "backup", "gossip", "hierarchical", "parameter_server", "sgp"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in BY_VERBS else pytest.mark.soak)
                                  for name in algorithms.names()])
def test_every_algorithm_trains_a_network_and_goes_on_from_its_checkpoint(tmp_path, name):
    folder = tmp_path / "run"
    status, _, errors = train(*SMALL, "--algorithm", name, "--lr", 0.01, "--out", folder, ranks=3)
    assert (status, errors) == (0, "")
    summary = json.loads((folder / "summary.json").read_text())
    assert 0 < summary["train_loss"] < 3
    own = [summary[f"own_accuracy_{each}"] for each in ("min", "mean", "max")]
    if algorithms.find(name).one_model:
        assert own == [None] * 3
    else:                                   # the mean of equal numbers is rounded
        assert own[0] - 1e-9 <= own[1] <= own[2] + 1e-9
    serving = algorithms.find(name)().servers
    assert summary["images"] == 12 * 8 * 3 or serving       # who serves computes no gradient
    assert summary["images_applied"] == (12 * 8 if name == "backup" else summary["images"])
    one_sided = algorithms.find(name).one_sided
    assert (summary["staleness"] is not None) == one_sided
    steps = [0] * serving + [12] * (3 - serving)
    assert (summary["rank_steps"], summary["lr"] > 0) == (steps, True)
    counts = {int(stale): count for stale, count in summary["staleness_counts"].items()}
    with open(folder / "summary.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    assert row["rank_steps"] == " ".join(map(str, steps))
    assert row["staleness_counts"] == " ".join(f"{stale}:{count}" for stale, count in sorted(counts.items()))
    assert row["staleness_max"] == (str(max(counts)) if one_sided else "")
    apart = summary["rank_consensus_distance"]
    assert [each is None for each in apart] == [not count for count in steps]
    assert np.mean([each for each in apart if each is not None]) == pytest.approx(summary["consensus_distance"])
    assert row["rank_consensus_distance"] == " ".join("-" if each is None else f"{each:.6g}" for each in apart)
    assert all(float(row[key]) >= 0 for key in ("consensus_distance", "bytes_sent", "wait_s", "lr"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["rank_steps"] for line in lines] == ([0, 0, 0] if serving else [4, 8, 12])
    told = sum((Counter(line["staleness_counts"]) for line in lines), Counter())    # of rank 0
    assert (0 < told.total() <= sum(counts.values())) if one_sided else not told
    assert np.isfinite(model_of(folder)["fc.weight"]).all()
    assert all((view > 0).all() for key, view in model_of(folder).items() if key.endswith("running_var"))
    status, _, errors = train("--resume", folder, "--steps", 18, ranks=3)
    assert (status, errors) == (0, "")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 18
    assert summary["images_applied"] == (18 * 8 if name == "backup" else summary["images"])


@pytest.mark.parametrize(("algorithm", "asked", "bn"), [
    ("allreduce", "average", "average"), ("allreduce", "recalibrate", "recalibrate"), ("allreduce", "local", "local"),
    ("allreduce", "auto", "average"), ("gossip", "auto", "recalibrate"), ("gossip", "average", "average")])
def test_the_statistics_of_the_answer_are_those_asked_for(tmp_path, algorithm, asked, bn):
    """Over so few steps the running averages are still near their start, the measured ones are not."""
    status, output, errors = train("--algorithm", algorithm, "--steps", 2, "--batch", 32, "--lr", 0, "--bn", asked,
                                   "--out", tmp_path / "run", ranks=2)
    assert (status, errors) == (0, "")
    assert f"batch norm statistics: {bn}" in output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["bn"] == bn
    assert (0 < summary["recalibrate_s"] < summary["eval_s"]) == (bn == "recalibrate")
    own = model_of(tmp_path / "run")["layer3.0.bn2.running_var"].mean()
    start = resnet("resnet8", 10, (28, 28, 1), 32, "reference").state["layer3.0.bn2.running_var"].mean()
    assert (abs(own - start) < 0.25) == (bn != "recalibrate")


def test_a_slow_rank_is_slow_and_the_others_wait_for_it(tmp_path):
    start = time.monotonic()
    status, _, errors = train(*SMALL, "--slow-rank", "1:0.3", "--out", tmp_path / "run", ranks=2)
    assert (status, errors) == (0, "")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert time.monotonic() - start > summary["wall_s"] > 12 * 0.3
    assert summary["wait_s"] > 12 * 0.3 / 2 * 0.8            # the mean of one that waits and one that does not


def test_more_ranks_than_cores(tmp_path):
    status, _, errors = train("--steps", 20, "--out", tmp_path / "run", ranks=16, limit_s=120)
    assert status == 0, errors


def test_a_network_learns_the_real_images(tmp_path):
    """Guessing is right in 10 %; one epoch, 2 ranks."""
    assert train("--epochs", 1, "--batch", 32, "--out", tmp_path / "run", ranks=2, limit_s=120)[0] == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["accuracy"] > 0.5


# one rank fails

FAULTS = {
    "before training": "import dsgd_mpi.training.job as m; m.assemble = on_rank(m.assemble)",
    "in a gradient": "import dsgd_mpi.nn.model as m; m.Model.begin = on_rank(m.Model.begin, 3)",
    "in the data thread": "import dsgd_mpi.data.loader as m; m.Batches._filled = on_rank(m.Batches._filled, 3)",
    "in evaluation": "import dsgd_mpi.nn.model as m; m.Model.predictor = on_rank(m.Model.predictor)",
    "in another thread": """
        import threading, dsgd_mpi.training.loop as m
        def start(*args, train=m.train): threading.Thread(target=on_rank(lambda: None)).start(); return train(*args)
        import dsgd_mpi.training.job; dsgd_mpi.training.job.train = start""",
}
PROGRAM = """
    import os, time
    from dsgd_mpi.net.launch import launched
    def on_rank(f, call=0):
        calls = iter(range(10**9))
        def g(*args, **kwargs):
            if launched().rank == {rank} and next(calls) == call:
                open(os.path.join(os.path.dirname(__file__), "fault"), "w").write(str(time.time()))
                raise RuntimeError("a fault was put here")
            return f(*args, **kwargs)
        return g
    {fault}
    from dsgd_mpi.train import main
    main()
"""


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("where", FAULTS)
def test_one_rank_that_raises_ends_the_whole_job_with_its_message(tmp_path, where, rank):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM).format(rank=rank, fault=textwrap.dedent(FAULTS[where]).strip()))
    status, output, errors = run(program, "--steps", 8 if where == "in evaluation" else 100_000, "--batch", 4,
                                 "--out", tmp_path / "run", ranks=3, limit_s=30)
    ended = time.time()
    assert status not in (0, 75)
    assert ended - float((tmp_path / "fault").read_text()) < 10
    assert "a fault was put here" in errors, output + errors
    assert f"rank {rank} on " in errors


# bad input

@pytest.mark.parametrize(("options", "said"), [
    (("--algorithm", "parameter_server", "--on-nonfinite", "stop"), "no checkpoint was written before"),
    (("--algorithm", "gossip", "--on-nonfinite", "skip"), "updates were left out"),
    (("--algorithm", "gossip", "--set", "mode=push", "--on-nonfinite", "restore"), "after 3 restores; the")])
def test_a_run_that_diverges_ends_on_all_ranks_with_one_line_and_nothing_that_is_not_finite(tmp_path, options, said):
    status, _, errors = train("--lr", 1e9, "--schedule", "constant", "--warmup", 0, "--weight-decay", 1, "--steps", 60,
                              "--log-every", 1, "--quiet", "--out", tmp_path / "run", *options, ranks=2)
    assert status == 3, errors
    *restores, last = errors.splitlines()
    assert last.startswith("Error: rank ")
    assert said in last
    assert len(restores) == (3 if "restore" in options else 0)
    assert not (tmp_path / "run" / "model.h5").exists()
    for line in ((tmp_path / "run" / "metrics.jsonl").read_text() + "{}").splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "diverged"
    for path in (tmp_path / "run").rglob("*.h5"):
        with h5py.File(path) as file:
            assert np.isfinite(file["x"][()]).all()


def test_a_usage_error_under_mpirun_is_printed_once(tmp_path):
    for options in (("--model", "resnet9"), ("--set", "perod=2", "--algorithm", "gossip"), ("--steps", "none"),
                    ("--data", tmp_path / "missing.h5"), ("--batch", 9000), ("--lr", "-1"), ("--wrong",)):
        status, output, errors = train(*options, ranks=3)
        assert status == 2, (options, output, errors)
        assert errors.count("Error") == 1, errors
        assert "Traceback" not in errors


def test_a_problem_that_only_one_rank_has_is_told_with_its_number(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent("""
        import dsgd_mpi.training.job as job
        from dsgd_mpi.errors import UsageError
        from dsgd_mpi.net.launch import launched
        def prepare(*args, prepare=job.prepare):
            if launched().rank == 1: raise UsageError("this node has no data")
            return prepare(*args)
        job.prepare = prepare
        from dsgd_mpi.train import main
        main()"""))
    status, _, errors = run(program, *SMALL, ranks=3)
    assert status == 2
    assert errors.splitlines()[0] == "Error: ranks [1]: this node has no data"


def test_a_launcher_of_another_mpi_is_noticed(tmp_path):
    """Each process would train alone, four times the same."""
    status, _, errors = train("--out", tmp_path / "run", env={"MV2_COMM_WORLD_RANK": "0", "MV2_COMM_WORLD_SIZE": "4"})
    assert status == 2
    assert "the launcher started 4 ranks but MPI sees 1" in errors
    status, _, errors = train("--out", tmp_path / "run", env={"PALS_RANKID": "1"})    # rank 0 may not notice
    assert status == 2
    assert "the launcher started 2 ranks but MPI sees 1" in errors


@pytest.mark.parametrize(("version", "refused"), [
    ("MPICH Version:      5.0.2\nMPICH configure: --with-ucx=embedded", True),
    ("MPICH Version:      5.0.2\nMPICH configure: --with-pmix", False), ("Open MPI v5.0.11, package: x", False)])
def test_mpich_under_the_mpirun_of_open_mpi_is_told_in_one_line(version, refused):
    """MPICH itself ends the process with a stack of its own functions."""
    program = textwrap.dedent(f"""
        import sys
        from dsgd_mpi.net.mpi import library
        library.MPI.Get_library_version = lambda: {version!r}
        library.MPI.Init_thread = lambda: sys.exit(75)
        from dsgd_mpi.training.job import run
        from dsgd_mpi.config import Config
        sys.exit(run(Config()))""")
    status, _, errors = run("-c", program, env={"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"})
    assert (status, errors[:43]) == ((2, "Error: the launcher is Open MPI's mpirun or") if refused else (75, ""))
    assert errors.count("\n") == refused


@pytest.mark.parametrize(("options", "message"), [
    ((), None), (("--batch", 5000), "batch 5000 x 3 ranks"), (("--model", "resnet9"), "unknown model")])
def test_where_a_launcher_names_no_number_of_ranks_that_of_mpi_counts(tmp_path, options, message):
    """Each message once, and no folder for it; there are enough images for one rank of 5,000."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent("""
        from dsgd_mpi.net import launch
        launch.VARIABLES = {"MPICH": ("PMI_RANK", None), "Open MPI": ("OMPI_COMM_WORLD_RANK", None)}
        from dsgd_mpi.train import main
        main()"""))
    folder = tmp_path / "run"
    status, output, errors = run(program, *SMALL, "--slow-rank", "2:0.001", *options, "--out", folder, ranks=3)
    if message:
        assert (status, errors.count("Error"), errors.count(message)) == (2, 1, 1)
        assert not folder.exists()
    else:
        assert (status, errors) == (0, "")
        assert "3 on 1 node" in output


@pytest.mark.parametrize(("options", "message"), [
    (("--model", "resnet9"), "unknown model 'resnet9'; the choices are resnet8, resnet14"),
    (("--algorithm", "gosip"), "unknown algorithm 'gosip'"),
    (("--algorithm", "gossip", "--set", "perod=2"), "gossip has no option 'perod'; did you mean 'period'?"),
    (("--algorithm", "gossip", "--set", "period=two"), "gossip: period: expected an integer, found 'two'"),
    (("--algorithm", "gossip", "--set", "period=0"), "gossip: period: expected at least 1, found 0"),
    (("--algorithm", "gossip", "--set", "mode=pul"), "gossip: mode: expected one of pull, push, found 'pul'"),
    (("--set", "bucket"), "--set expects KEY=VALUE, found 'bucket'"),
    (("--batch", "20000"), "batch 20000 x 1 rank = 20000 images a step, but the training set holds 12000"),
    (("--data", "nowhere.h5"), "nowhere.h5"),
    (("--data", "fashion-minst"), "fashion-mnist"),
    (("--config", "nowhere.toml"), "nowhere.toml: cannot be read"),
    (("--resume", "nowhere"), "config.toml: cannot be read"),
    (("--slow-rank", "3:1"), "--slow-rank: expected a rank from 0 to 0, found 3"),
    (("--slow-rank", "0"), "--slow-rank: expected RANK:SECONDS, RANK:uniform:LEAST:MOST, "),
    (("--algorithm", "gradient_tracking", "--compress", "float16"), "--compress: gradient_tracking adds up what "),
    (("--algorithm", "dpsgd", "--steps-total", 9), "--steps-total: a step of dpsgd depends on other ranks; use "
     "--steps, or one of adpsgd, async_local, easgd, gosgd, gossip mode=push, gossip partner=independent, "
     "parameter_server"),
    (("--algorithm", "hierarchical", "--set", "between=gradient_tracking", "--compress", "float16"), "--compress: "
     "hierarchical adds up what rounding loses"),
    (("--algorithm", "parameter_server", "--set", "max_staleness=2", "--steps-total", 9), "a step of parameter_server "
     "max_staleness=2 depends on other ranks"),
    (("--algorithm", "adpsgd", "--steps-total", 9, "--steps", 9), "expected one of them, found 2"),
    (("--algorithm", "easgd", "--compress", "float16"), "easgd uses shared memory, which is not compressed"),
    (("--algorithm", "backup", "--dtype", "float16"), "backup cannot skip a step whose gradient overflows"),
    (("--device", "gpu"), "no GPU can be used"),
    (("--kernels", "onednn", "--dtype", "float64"), "float64"),
    (("--out", "/proc/nowhere"), "cannot be created"),
])
def test_bad_input_is_one_line_and_status_2(tmp_path, options, message):
    status, output, errors = train("--out", tmp_path / "run", *options)
    assert status == 2, output + errors
    line = errors.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    assert message in line


def test_a_run_is_not_overwritten(tmp_path):
    assert train(*SMALL, "--out", tmp_path / "run")[0] == 0
    before = (tmp_path / "run" / "model.h5").read_bytes()
    status, _, errors = train(*SMALL, "--out", tmp_path / "run")
    assert status == 2
    assert f"--resume {tmp_path / 'run'}" in errors
    assert (tmp_path / "run" / "model.h5").read_bytes() == before


def test_of_two_runs_in_one_folder_one_trains_and_the_other_says_who_has_it(tmp_path):
    folder = tmp_path / "run"
    first = Job("-m", "dsgd_mpi.train", "--steps", 100_000, "--batch", 4, "--out", folder, "--quiet")
    until((folder / "env.json").exists)
    for options in (("--resume", folder), ("--auto-resume", "--out", folder, "--steps", 100_000, "--batch", 4)):
        status, _, errors = train(*options)
        assert status == 2
        assert errors.startswith(f"Error: {folder} is in use by process {first.process.pid} on "), errors
        assert errors.count("\n") == 1
    first.process.kill()
    first.finish()
    status, _, errors = train("--out", folder, "--auto-resume", "--steps", 3)
    assert (status, "already holds another run" in errors) == (2, True)
    assert not (folder / "run.lock").exists()           # left by the killed run, taken over, released


def test_a_run_of_gossip_cannot_be_resumed_with_other_ranks(tmp_path):
    assert train(*SMALL, "--algorithm", "gossip", "--out", tmp_path / "run", ranks=3)[0] == 0
    status, _, errors = train("--resume", tmp_path / "run", "--steps", 20, ranks=2)
    assert status != 0
    assert "holds 3 different models, one per rank, but this run has 2 ranks; resume it with 3" in errors


# without MPI

def test_questions_are_answered_without_mpi(tmp_path):
    for module, *args in (("train", "--help"), ("train", "--dry-run"), ("train", "--print-config"),
                          ("train", "--algorithm", "list"), ("__main__", "data", "--help"),
                          ("__main__", "plot", "--help"), ("__main__", "train", "--help"), ("__main__", "--help")):
        program = ("import sys, runpy; sys.modules['mpi4py'] = None; "
                   f"sys.argv = ['dsgd', *{args!r}]; runpy.run_module('dsgd_mpi.{module}', run_name='__main__')")
        status, output, errors = run("-c", program)
        assert (status, errors) == (0, ""), (module, args, errors)
        assert output


def test_the_list_tells_of_each_algorithm_all_that_is_to_be_known():
    listed = train("--algorithm", "list")[1]
    for name in algorithms.names():
        found = algorithms.find(name)
        entry = f"\n{listed}".partition(f"\n{name}   --set ")[2].partition("--set")[0]
        assert all(f"{item.name}={item.default}" in entry for item in dataclasses.fields(found))
        assert "arXiv" in entry or "et al." in entry
        assert f"communication per step     {found.traffic}" in entry
        assert f"model evaluated and saved  {found.offers}" in entry
        assert "--steps-total  " in entry
    assert "with mode=push" in listed


@pytest.mark.parametrize(("options", "new"), [((), "sgp"), (("--set", "graph=exponential"), "sgp"),
                                              (("--set", "graph=random", "--set", "probability=0.5"), "gosgd")])
def test_an_algorithm_s_old_name_works_and_says_the_new_one(options, new):
    status, output, errors = train("--dry-run", "--algorithm", "push_sum", *options)
    assert status == 0
    assert "configuration OK: push_sum on 1 ranks" in output
    assert errors.strip().endswith(f"is now called {new}: use --algorithm {new}")
    assert errors.count("\n") == 1


def test_a_run_without_an_mpi_library_says_what_to_install(tmp_path):
    program = "import sys; sys.modules['mpi4py'] = None; from dsgd_mpi.train import main; main()"
    status, _, errors = run("-c", program, "--out", tmp_path / "run")
    assert status == 2
    assert "MPI could not be loaded" in errors
    assert "pip install mpich" in errors
