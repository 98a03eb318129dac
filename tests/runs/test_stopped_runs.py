"""How whole runs are stopped, go on, and share a folder."""

import json
import os
import shutil
import signal
import time

import pytest

from dsgd_mpi.data.formats import write
from tests.support import ROOT
from tests.support.data_samples import content
from tests.support.jobs import Job, pids, train, until
from tests.support.left import SMALL, model_of, progress_of, same, steps_of


@pytest.mark.parametrize("ranks", [1, 4])
def test_stopped_and_resumed_equals_never_stopped_to_the_bit(tmp_path, small, ranks):
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    assert train(*SMALL, *small, "--out", whole, ranks=ranks)[0] == 0
    assert train(*SMALL, *small, "--out", halved, "--checkpoint-every", 5, ranks=ranks)[0] == 0   # at 0, too, at first
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


def test_a_lengthened_run_is_from_then_on_the_long_one_and_whatever_its_end_lacks_is_made(tmp_path, small):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(*SMALL, *small, "--schedule", "constant", "--out", whole)[0] == 0
    assert train(*SMALL, *small, "--schedule", "constant", "--steps", 6, "--out", run)[0] == 0
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
def test_a_signal_to_one_rank_stops_all_at_one_step_and_the_run_goes_on_from_there(tmp_path, small, number, options):
    folder = tmp_path / "run"
    job = Job("-m", "dsgd_mpi.train", *small, "--steps", 400, "--batch", 4, "--log-every", 1, "--out", folder,
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
def test_ctrl_c_and_a_terminal_that_is_closed_save_the_run(tmp_path, small, number):
    folder, program = tmp_path / "run", tmp_path / "program.py"
    program.write_text("import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
                       "signal.signal(signal.SIGHUP, signal.SIG_DFL)\nfrom dsgd_mpi.train import main\nmain()")
    job = Job(program, *small, "--steps", 4000, "--batch", 4, "--log-every", 1, "--quiet", "--out", folder,
              env={"PYTHONPATH": str(ROOT)})
    until(lambda: (folder / "metrics.jsonl").exists() and len(steps_of(folder)) > 5)
    os.kill(job.process.pid, number)
    assert job.finish() == (75, "", "")
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"


def test_a_requeued_run_goes_on_from_its_newest_checkpoint_or_anew_where_there_is_none(tmp_path, small):
    again = ("--auto-resume", "--out", tmp_path / "run", *SMALL, *small, "--checkpoint-every", 5)
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


def test_a_run_is_not_overwritten(tmp_path, small):
    assert train(*SMALL, *small, "--out", tmp_path / "run")[0] == 0
    before = (tmp_path / "run" / "model.h5").read_bytes()
    status, _, errors = train(*SMALL, *small, "--out", tmp_path / "run")
    assert status == 2
    assert f"--resume {tmp_path / 'run'}" in errors
    assert (tmp_path / "run" / "model.h5").read_bytes() == before


def test_of_two_runs_in_one_folder_one_trains_and_the_other_says_who_has_it(tmp_path, small):
    folder = tmp_path / "run"
    first = Job("-m", "dsgd_mpi.train", *small, "--steps", 100_000, "--batch", 4, "--out", folder, "--quiet")
    until((folder / "env.json").exists)
    for options in (("--resume", folder), ("--auto-resume", "--out", folder, *small, "--steps", 100_000, "--batch", 4)):
        status, _, errors = train(*options)
        assert status == 2
        assert errors.startswith(f"Error: {folder} is in use by process {first.process.pid} on "), errors
        assert errors.count("\n") == 1
    first.process.kill()
    first.finish()
    status, _, errors = train("--out", folder, "--auto-resume", "--steps", 3)
    assert (status, "already holds another run" in errors) == (2, True)
    assert not (folder / "run.lock").exists()           # left by the killed run, taken over, released


def test_a_run_of_gossip_cannot_be_resumed_with_other_ranks(tmp_path, small):
    assert train(*SMALL, *small, "--algorithm", "gossip", "--out", tmp_path / "run", ranks=3)[0] == 0
    status, _, errors = train("--resume", tmp_path / "run", "--steps", 20, ranks=2)
    assert status != 0
    assert "holds 3 different models, one per rank, but this run has 2 ranks; resume it with 3" in errors
