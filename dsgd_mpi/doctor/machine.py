"""What this machine and its tools report: launchers, GPUs, SLURM, file systems. No query can hang."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

TOOL_S = 10.0                               # for a tool that only has to answer
LAUNCH_S = 60.0                             # for two processes to start, even on a slow file system
# what a launcher sets for its ranks: a program that starts MPI afresh must not take itself for one of them
RANK_PREFIXES = ("PMI_", "PMI2_", "PMIX_", "OMPI_COMM_", "OMPI_UNIVERSE", "HYDI_", "HYDRA_", "PALS_", "MPI_LOCAL",
                 "SLURM_PROCID")
SETTINGS = ("MPICH_", "MPIR_", "OMPI_MCA_", "PRTE_MCA_", "UCX_", "FI_", "I_MPI_", "MPI4PY_", "NCCL_", "OMP_", "DSGD_",
            "CUDA_VISIBLE_DEVICES")


class Answer(NamedTuple):
    status: int                             # 124: it took too long; 127: there is no such program
    output: str
    errors: str

    @property
    def why(self) -> str:
        """The last line of the error output."""
        lines = [line for line in (self.errors or self.output).splitlines() if any(map(str.isalpha, line))]
        return lines[-1].strip() if lines else f"status {self.status}"


def ask(*words: str | Path, limit_s: float = TOOL_S, env: dict[str, str] | None = None) -> Answer:
    """Runs a program. After a timeout it is killed with all its children, and not waited for: a driver may block it."""
    with in_memory("output") as output, in_memory("errors") as errors:
        try:
            process = subprocess.Popen([*map(str, words)], stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
                                       env=env, start_new_session=True)
        except OSError as error:
            return Answer(127, "", f"{words[0]}: {error.strerror}")
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
            return Answer(124, "", f"no answer within {limit_s:g} s")
        for file in (output, errors):
            file.seek(0)
        return Answer(status, output.read(), errors.read())


def in_memory(name: str) -> IO[str]:
    """A file of text for a program's output: there may be no folder for temporary files."""
    return open(os.memfd_create(name), "w+", encoding="utf-8", errors="replace")


def probe(module: str, *launcher: str | Path, limit_s: float = LAUNCH_S) -> tuple[list[dict[str, Any]], str]:
    """What a module of the package prints as lines of JSON, in separate processes; else why there is nothing."""
    answer = python("-m", module, launcher=launcher, limit_s=limit_s)
    facts = [json.loads(line) for line in answer.output.splitlines() if line.startswith("{")]
    return (facts, "") if facts and not answer.status else ([], explained(answer))


def python(*words: str, launcher: Sequence[str | Path] = (), limit_s: float = LAUNCH_S) -> Answer:
    """Runs this Python again, outside the MPI job that this process may be part of."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(RANK_PREFIXES)}
    return ask(*launcher, sys.executable, *words, limit_s=limit_s, env=env)


def explained(answer: Answer) -> str:
    """What went wrong with a Python program: an error's last line, or the beginning of what MPI has printed."""
    if answer.status < 0:
        return f"it was killed by {signal.Signals(-answer.status).name}"
    if answer.status == 124 or "Traceback" in answer.errors:
        return answer.why
    return textwrap.shorten(answer.errors.replace("-" * 10, ""), 500) or f"status {answer.status}"


def launchers() -> list[Path]:
    """The candidate mpiruns, first the one that a shell would find; no file twice."""
    found = [Path(path) for path in (shutil.which("mpirun"), shutil.which("mpiexec")) if path][:1]
    beside = Path(sys.executable).parent / "mpirun"
    if beside.exists() and beside.resolve() not in [path.resolve() for path in found]:
        found.append(beside)
    return found


def on_path(tool: Path) -> bool:
    """Whether a shell would find this one by name."""
    found = shutil.which(tool.name)
    return found is not None and Path(found).resolve() == tool.resolve()


def family(launcher: Path) -> str | None:
    """Which MPI it belongs to, by its version output."""
    answer = ask(launcher, "--version")
    version = answer.output + answer.errors
    for name, words in {"MPICH": ("HYDRA", "mpich"), "Open MPI": ("Open MPI", "OpenRTE", "prte", "PRRTE"),
                        "Intel MPI": ("Intel(R) MPI",)}.items():
        if any(word in version for word in words):
            return name
    return None


def gpus() -> list[str]:
    """The GPUs that this process may see, by name: from the driver's files, which answer at once and cannot hang."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    names = [line.partition(":")[2].strip() for file in files for line in file.read_text("utf-8").splitlines()
             if line.startswith("Model")]
    devices = len(list(Path("/dev").glob("nvidia[0-9]*")))      # in a job, those allocated to it
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = min([devices] + ([len([part for part in visible.split(",") if part])] if visible is not None else []))
    return (names + ["NVIDIA GPU"] * devices)[:count]


class Place(NamedTuple):
    """A folder, existing or to be created, and its file system."""

    path: Path
    nearest: Path                           # the innermost folder that exists
    kind: str
    mount: str
    source: str
    size: int                               # bytes
    free: int
    writable: bool


def place(path: Path) -> Place:
    path = path.absolute()
    nearest = next(folder for folder in (path, *path.parents) if folder.is_dir())
    kind, mount, source = mounted(nearest.resolve())
    usage = shutil.disk_usage(nearest)
    return Place(path, nearest, kind, mount, source, usage.total, usage.free, writable(nearest))


def writable(folder: Path) -> bool:
    """By trying, since permissions do not tell everything."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"doctor")
    except OSError:
        return False
    return True


def mounted(folder: Path) -> tuple[str, str, str]:
    """Type, mount point and source of a folder's file system; the last of those mounted there counts."""
    found = ("unknown", "/", "unknown")
    for line in Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
        source, mount, kind, *_ = line.split()
        mount = mount.encode().decode("unicode_escape")         # a blank is written \\040
        if folder.is_relative_to(mount) and len(mount) >= len(found[1]):
            found = kind, mount, source
    return found


def stripes(folder: Path) -> str | None:
    """Over how many servers Lustre spreads a new file of this folder."""
    answer = ask("lfs", "getstripe", "-d", "-c", folder)
    return answer.output.strip() or None if answer.status == 0 else None


def slurm() -> dict[str, str]:
    """SLURM's version, its partitions, and the job that this is part of. Empty without SLURM."""
    version = ask("sinfo", "--version")
    if version.status:
        return {}
    partitions = ask("sinfo", "-h", "-o", "%P %D nodes x %c cores, %G, up to %l")
    kinds = ask("srun", "--mpi=list")
    found = {"version": version.output.strip(),
             "partitions": "; ".join(partitions.output.strip().splitlines()) if not partitions.status
             else f"the controller does not answer: {partitions.why}",
             "srun --mpi": ", ".join(dict.fromkeys(word for word in (kinds.output + kinds.errors).split()
                                                   if word.startswith(("pmi", "cray", "none"))))}
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        left = ask("squeue", "-h", "-j", job, "-o", "%L")
        cores = os.environ.get("SLURM_CPUS_PER_TASK")
        found["job"] = ", ".join([f"{job} on {os.environ.get('SLURM_JOB_NODELIST', '?')}",
                                  *([f"{cores} cores a task"] if cores else []), f"{left.output.strip() or '?'} left"])
    return found


def here() -> dict[str, Any]:
    """A rank's facts for the table of hosts; from files, since not every MPI lets its ranks start programs."""
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text("utf-8").splitlines())
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
              if line.startswith("model name")]
    return {"host": platform.node(), "cpu": models[0] if models else platform.machine(), "gpus": gpus(),
            "cores": sorted(os.sched_getaffinity(0)), "cores_there": os.cpu_count() or 1,
            "memory_gib": int(memory["MemAvailable"].split()[0]) / 2**20}



def sized(count: int) -> str:
    return f"{count / 2**20:g} MiB" if count >= 2**20 else f"{count} bytes"


def timed(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"
