"""A SLURM of one's own: munged, slurmctld and one slurmd a node, all on this machine and below one temporary folder.

    python -m tests.support.cluster --nodes 4 bash    # a shell with SLURM_CONF set: for sbatch and the rest; ends all

Each node has 8 cores and 8 GPUs, in name only: so 16 nodes of 8 ranks run on two cores. Needs root, since slurmd starts
jobs for their users, and Debian's packages, which `install` fetches. Partition `urgent` preempts `batch`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.support import debian

PROGRAMS = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}    # by package
CORES = GPUS = 8                            # of a node
START_S, STOP_S = 60, 30

CONF = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.sock,cred_expire=10
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
MpiDefault=pmi2
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
OverTimeLimit=0
KillWait=10
MinJobAge=86400
MessageTimeout=60
FirstJobId={job}
ReturnToService=2
NodeName=DEFAULT CPUs={cores} RealMemory=64000 Gres=gpu:{gpus}
NodeName=node[1-{nodes}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}]
PartitionName=batch Nodes=ALL Default=YES MaxTime=UNLIMITED DefaultTime=10 PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=UNLIMITED DefaultTime=10 PriorityTier=2 PreemptMode=OFF
"""


def install() -> None:
    """Fetches what is missing, without starting anything. Unavailable says why it cannot."""
    if os.geteuid() != 0:
        raise debian.Unavailable("a private SLURM needs root")
    if missing := [package for program, package in PROGRAMS.items() if not shutil.which(program)]:
        debian.install("a private SLURM", missing)


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    for first in range(20000 + os.getpid() % 100 * 100, 60000, 100):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
    raise debian.Unavailable(f"no {count} free ports in a row")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Cluster:
    """`with Cluster(4) as cluster:` SLURM's commands find it by cluster.env."""

    def __init__(self, nodes: int) -> None:
        self.nodes, self.daemons = nodes, []
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))       # short: a socket's path has 107 characters at most
        ours = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "DSGD_"))}
        self.env = {**ours, "SLURM_CONF": str(self.folder / "slurm.conf"),
                    # MPICH's addresses over UCX make lines too long for SLURM's PMI-1, which takes 1,024 bytes
                    "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "lo"}

    def __enter__(self) -> Cluster:
        try:
            self._configure()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if len(self.daemons) > 1:
            self._end_jobs()
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(STOP_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
        for pid in self._left_over():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, *words: object, limit_s: float = 60) -> str:
        """What one of SLURM's commands prints; CalledProcessError with its errors."""
        done = subprocess.run(list(map(str, words)), env=self.env, text=True, capture_output=True, timeout=limit_s)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, words))}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def lose(self, node: str) -> None:
        """As if it were switched off: its slurmd, and all that this has started, by SIGKILL."""
        name, ranks = f"SLURMD_NODENAME={node}".encode(), []
        for pid in self._left_over():
            with suppress(OSError):
                if name in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    ranks.append(pid)
        parents = set(map(parent_of, ranks))
        keepers = [pid for pid in parents if b"slurmstepd" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        daemon = next(each for each in self.daemons if each.args[-1] == node)
        for pid in [daemon.pid, *keepers, *ranks]:      # those first that would tell of the others
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _configure(self) -> None:
        port = free_ports(self.nodes + 1)
        job = time.time_ns() % 60_000_000 + 1       # what another cluster's MPI left under its number is not met
        host = socket.gethostname().partition(".")[0]
        self.folder.chmod(0o755)
        (self.folder / "slurm.conf").write_text(CONF.format(
            host=host, folder=self.folder, nodes=self.nodes, cores=CORES, gpus=GPUS, job=job, port=port, first=port + 1,
            last=port + self.nodes))
        for number in range(GPUS):          # a GPU is a character device: these are further names of /dev/null
            os.mknod(self.folder / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n")
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o400)

    def _start(self) -> None:
        at = self.folder
        self._daemon("munged", "--foreground", "--force", f"--key-file={at}/munge.key", f"--socket={at}/munge.sock",
                     f"--pid-file={at}/munged.pid", f"--log-file={at}/munged.log", f"--seed-file={at}/munged.seed")
        self._daemon("slurmctld", "-D")
        for number in range(1, self.nodes + 1):
            (at / f"spool.node{number}").mkdir()
            self._daemon("slurmd", "-D", "-N", f"node{number}")
        end = time.monotonic() + START_S
        while self._idle() < self.nodes:
            if time.monotonic() > end:
                logs = "".join(f"{path.name}:\n{path.read_text()[-2000:]}\n" for path in sorted(at.glob("*.log")))
                raise RuntimeError(f"{self._idle()} of {self.nodes} nodes came up in {START_S} s\n{logs}")
            time.sleep(0.2)

    def _daemon(self, *words: str) -> None:
        self.daemons.append(subprocess.Popen(words, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                             stderr=subprocess.DEVNULL, cwd=self.folder, start_new_session=True))

    def _idle(self) -> int:
        try:
            return len(self.ask("sinfo", "-h", "-N", "-p", "batch", "-t", "idle", "-o", "%N").split())
        except RuntimeError:                # slurmctld does not answer yet
            return 0

    def _left_over(self) -> list[int]:
        """Of what the jobs started: all that runs with our SLURM_CONF."""
        ours, found = f"SLURM_CONF={self.env['SLURM_CONF']}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if ours in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def _end_jobs(self) -> None:
        """Before the daemons go: what a job has started would outlive them."""
        end = time.monotonic() + STOP_S
        with suppress(RuntimeError):        # the controller may be gone
            while (jobs := self.ask("squeue", "-h", "-a", "-o", "%A").split()) and time.monotonic() < end:
                self.ask("scancel", "--quiet", *set(jobs))
                time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs a command in a private SLURM.")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    try:
        install()
    except debian.Unavailable as reason:
        sys.exit(f"Error: {reason}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))       # so that the cluster ends, too
    with Cluster(chosen.nodes) as cluster:
        return subprocess.run(chosen.command or ["bash"], env=cluster.env).returncode


if __name__ == "__main__":
    sys.exit(main())
