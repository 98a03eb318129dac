"""When a run must stop so that it is saved before its batch job ends."""

import math
import time

import pytest

from dsgd_mpi.training.deadline import BatchJob, batch_job, clock


def job(seconds, restarts=0):
    return BatchJob("7", "gossip-128", "node[1-16]", restarts, time.time() + seconds)


@pytest.mark.parametrize(("left", "margin", "early"), [(86_400, 120, 120), (600, 120, 60), (60, 120, 6), (600, 20, 20)])
def test_the_stop_is_early_by_the_margin_or_a_tenth_of_what_is_left(left, margin, early):
    assert job(left).deadline(margin) == pytest.approx(time.time() + left - early, abs=1)


def test_there_is_no_stop_without_a_limit_or_a_margin():
    assert job(600).deadline(0) == job(math.inf).deadline(120) == math.inf


def test_a_job_is_described_with_what_is_left_of_it(monkeypatch):
    assert job(3 * 3600 + 125.5).described() == "7 (gossip-128) on node[1-16], 03:02:05 left"
    assert job(math.inf, 2).described() == "7 (gossip-128, restart 2) on node[1-16], no time limit known"
    assert job(-5).described().endswith("00:00:00 left")
    assert clock(86400 + 3661) == "1-01:01:01"


def test_the_job_is_what_slurm_says_it_is(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert batch_job() is None
    for key, value in (("ID", "7"), ("NAME", "a"), ("NODELIST", "n[1-2]"), ("END_TIME", "1000")):
        monkeypatch.setenv(f"SLURM_JOB_{key}", value)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert batch_job() == BatchJob("7", "a", "n[1-2]", 3, 1000.0)


def test_where_nobody_knows_the_end_there_is_none(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    found = batch_job()
    assert found
    assert found.end == math.inf


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "UTC"])
@pytest.mark.parametrize("end", [1_792_888_200, 1_792_891_800, 1_800_000_000])     # 02:30 twice, in Berlin
def test_what_squeue_prints_is_understood_in_every_zone(monkeypatch, tmp_path, zone, end):
    squeue = tmp_path / "squeue"
    squeue.write_text(f'#!/bin/sh\n[ "$SLURM_TIME_FORMAT" = standard ] && date -d @{end} +%Y-%m-%dT%H:%M:%S\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        for given in ("", "junk", "nan", "0"):
            monkeypatch.setenv("SLURM_JOB_END_TIME", given)
            monkeypatch.setenv("SLURM_RESTART_COUNT", given)
            assert batch_job()[3:] == (0, end)
    finally:
        monkeypatch.undo()
        time.tzset()
