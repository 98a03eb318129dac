"""Long drills, by `make soak`, and by `make soak MPI=openmpi` for the other MPI: no hang, no loss, no leak."""

import os
import random
import signal
import time

import pytest

from dsgd_mpi import algorithms
from tests.support.jobs import Job, pids, train, until
from tests.support.left import steps_of

pytestmark = pytest.mark.soak
RUNS, KILLS = 200, 16


@pytest.mark.parametrize("way", algorithms.independent())
def test_two_hundred_runs_of_what_waits_for_nobody_all_end(tmp_path, way):
    name, *options = way.split()
    words = [word for option in options for word in ("--set", option)]
    for number in range(RUNS):
        status, _, errors = train("--steps", 30, "--batch", 4, "--threads", 1, "--quiet", "--seed", number,
                                  "--algorithm", name, *words, "--out", tmp_path / str(number), ranks=4, limit_s=120)
        assert (status, errors) == (0, ""), (number, errors)


@pytest.mark.parametrize("name", ["allreduce", "gossip", "easgd", "parameter_server"])
def test_a_job_that_is_killed_while_it_saves_goes_on_from_its_newest_checkpoint(tmp_path, name):
    """Killed whole, at random moments, with a checkpoint at every step."""
    draw = random.Random(1)
    folder, steps = tmp_path / "run", 2000
    words = ("--algorithm", name, "--steps", steps, "--batch", 4, "--threads", 1, "--quiet", "--log-every", 1,
             "--checkpoint-every", 1, "--auto-resume", "--out", folder)
    for _ in range(KILLS):
        before = reached(folder)
        job = Job("-m", "dsgd_mpi.train", *words, ranks=2)
        until(lambda before=before: reached(folder) > before + 3)
        time.sleep(draw.random())
        for pid in pids(str(folder)):
            os.kill(pid, signal.SIGKILL)
        assert job.finish()[0] != 0
        assert steps_of(folder) == sorted(set(steps_of(folder)))
    last = reached(folder) + 5
    status, _, errors = train("--resume", folder, "--steps", last, "--quiet", ranks=2)
    assert status == 0, errors
    assert steps_of(folder) == list(range(1, last + 1))


def reached(folder):
    """The last step that was logged."""
    return max(steps_of(folder), default=0) if (folder / "metrics.jsonl").exists() else 0


def resident_kb(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


@pytest.mark.parametrize("name", algorithms.names())
def test_memory_does_not_grow_over_three_thousand_steps(tmp_path, name):
    folder = tmp_path / "run"
    job = Job("-m", "dsgd_mpi.train", "--algorithm", name, "--steps", 4000, "--batch", 4, "--threads", 1, "--quiet",
              "--log-every", 50, "--eval-every", 1000, "--out", folder, ranks=2)
    sizes = []
    for step in (1000, 3900):
        until(lambda step=step: reached(folder) >= step, 600)
        sizes.append(max(map(resident_kb, pids(str(folder)))))
    assert job.finish(120)[0] == 0
    assert sizes[1] < 1.02 * sizes[0] + 2000, sizes
