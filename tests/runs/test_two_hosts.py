"""Two hosts on one machine, joined by a network of their own: what one-sided additions wait for between hosts."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

from tests.support.jobs import MPIRUN

pytestmark = pytest.mark.alone

NAMES = "dsgd-host1", "dsgd-host2"
ADDRESSES = "10.77.0.1", "10.77.0.2"
LAUNCH = """#!/bin/sh
# called as ssh would be: [options] host command...
while [ "${1#-}" != "$1" ]; do shift; done
name=dsgd-host${1##*.}; shift
exec ip netns exec "$name" unshare -u sh -c "hostname $name; $*"
"""
PROGRAM = """
    import json, sys, time
    import numpy as np
    from dsgd_mpi.net.mpi.host import MpiHost
    from dsgd_mpi.nn import resnet
    host = MpiHost()
    model = resnet("resnet8", 10, (28, 28, 1), 16, seed=host.rank)
    images, labels = np.zeros((16, 28, 28, 1), "float32"), np.zeros(16, int)
    model.loss_and_gradient(images, labels)
    shared = host.share(np.zeros(75_000, "float32"))
    found = {}
    for polls in (True, False):
        host.settle()
        if host.rank == 0:
            time.sleep(0.2)
            times = []
            for _ in range(25 if polls else 1):
                start = time.perf_counter()
                shared.add(1, np.ones(75_000, "float32"))
                times.append(time.perf_counter() - start)
            found["polled" if polls else "not polled"] = sorted(times)[len(times) // 2]
        else:
            end = time.perf_counter() + 2
            while time.perf_counter() < end:
                model.loss_and_gradient(images, labels, between=host.progress if polls else None)
    host.settle()
    calls = []
    start = time.perf_counter()
    model.loss_and_gradient(images, labels, between=lambda: calls.append(0))
    step = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(10_000):
        host.progress()
    found["polling"] = (time.perf_counter() - start) / 10_000 * len(calls) / step
    found["hosts"] = host.allgather(__import__("platform").node())
    if host.rank == 0:
        open(sys.argv[1], "w").write(json.dumps(found))
    host.close()
"""

# the second host has a file system of its own where runs are to be
DOCTOR = """
    import os, platform, sys
    words = [sys.executable, "-m", "dsgd_mpi", "doctor", "--seconds", "0.5", "--out", sys.argv[1]]
    mount = f"mount -t tmpfs none {sys.argv[1]} && exec " + " ".join(words)
    if platform.node() == "dsgd-host2":
        words = ["unshare", "-m", "sh", "-c", mount]
    os.execvp(words[0], words)
"""


def command(*words):
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def hosts(tmp_path):
    """Starts a program on both hosts, one rank on each."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2's ip")
    if "openmpi" in sys.prefix or not MPIRUN:
        pytest.skip("the launcher is spoken to as MPICH's hydra")
    launcher = tmp_path / "launch"
    launcher.write_text(LAUNCH)
    launcher.chmod(0o755)
    try:
        for name in NAMES:
            command("ip", "netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace can be made here: {error.stderr.decode().strip()}")
    try:
        command("ip", "link", "add", "dsgd-v1", "type", "veth", "peer", "name", "dsgd-v2")
        for number, (name, address) in enumerate(zip(NAMES, ADDRESSES, strict=True), start=1):
            command("ip", "link", "set", f"dsgd-v{number}", "netns", name)
            command("ip", "-n", name, "addr", "add", f"{address}/24", "dev", f"dsgd-v{number}")
            command("ip", "-n", name, "link", "set", f"dsgd-v{number}", "up")
            command("ip", "-n", name, "link", "set", "lo", "up")
        yield lambda *program: subprocess.run(
            ["ip", "netns", "exec", NAMES[0], MPIRUN, "-localhost", ADDRESSES[0], "-launcher", "ssh", "-launcher-exec",
             str(launcher), "-hosts", ",".join(ADDRESSES), "-n", "2", "-ppn", "1", sys.executable, *map(str, program)],
            capture_output=True, text=True, timeout=60)
    finally:
        for name in NAMES:
            command("ip", "netns", "del", name)


def test_an_addition_does_not_wait_for_the_end_of_a_computation_on_another_host(hosts, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    job = hosts(program, tmp_path / "found")
    assert job.returncode == 0, job.stdout + job.stderr
    found = json.loads((tmp_path / "found").read_text())
    assert found["hosts"][0] != found["hosts"][1] == NAMES[1]
    assert found["polled"] < 0.02, found
    assert found["not polled"] > 0.5, found     # else there was nothing to help with
    assert found["polling"] < 0.02, found
    print(found)


def test_the_doctor_lists_both_hosts_and_finds_that_they_share_no_folder(hosts, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(DOCTOR))
    (tmp_path / "runs").mkdir()
    job = hosts(program, tmp_path / "runs")
    assert job.returncode == 1, job.stdout + job.stderr
    first = platform.node()                 # where MPICH starts ranks without the launcher that gives a name
    for name in (first, NAMES[1]):
        assert re.search(rf"^  {name} +1 ", job.stdout, re.MULTILINE), job.stdout
    assert f"{tmp_path / 'runs'} of {first} is not seen by {NAMES[1]}" in job.stdout
    assert "1 thing is wrong" in job.stdout
    assert not list((tmp_path / "runs").iterdir())
