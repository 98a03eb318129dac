"""`doctor`: what this machine can train with, whether it works, and what to do if it does not.

Alone it needs no MPI: whatever could hang or crash is asked in a process of its own, with a time limit. Under mpirun or
srun it starts MPI as a run would, and measures it.
"""

from __future__ import annotations

import os
import platform
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from dsgd_mpi import __version__
from dsgd_mpi.arrays.cache import cache_folder
from dsgd_mpi.doctor import machine
from dsgd_mpi.doctor.hang import DONE, HangGuard
from dsgd_mpi.doctor.report import Report
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.gpu import aware
from dsgd_mpi.net.launch import MPI_WAY_OUT, VARIABLES, launched

GIB = 2**30
LEAST_SHARED = GIB // 4                     # bytes in /dev/shm: a few ranks with a middling model
LONGEST_TMPDIR = 60                         # letters
SHARED_MEMORY = Path("/dev/shm")
LEAST_FREE = GIB                            # bytes: a few checkpoints of the largest models
PACKAGES = ("numpy", "mpi4py", "h5py", "click", "rich", "cffi")
PIP = f"{sys.executable} -m pip install"
HDF5 = "import h5py; print(h5py.version.hdf5_version, 'with MPI' if h5py.get_config().mpi else 'without MPI')"
PROBE = "dsgd_mpi.net.mpi.probe"
OURS = "Error: "                            # how a usage error is shown
SURVEY_S = 180.0                            # for all programs that are queried, each with its own limit
VOLATILE = ("tmpfs", "ramfs")
HANGS = ("All ranks must be able to reach each other: was each started by the launcher of its own MPI library, and may "
         "the hosts talk to each other over the network interface that MPI has chosen (UCX_NET_DEVICES, FI_TCP_IFACE)?")


@click.command(context_settings={"max_content_width": 120})
@click.option("--out", type=click.Path(path_type=Path), default="runs", show_default=True, envvar="DSGD_OUT",
              help="Where run folders will be: the file system to check.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=5.0, show_default=True,
              help="How long the self-test under a launcher takes.")
@click.option("--limit", type=click.FloatRange(min=1), default=60.0, show_default=True,
              help="Seconds after which MPI is considered hung.")
def doctor(out: Path, seconds: float, limit: float) -> None:
    """Report what this machine can train with, and any problems.

    Alone, on a login node too, it needs no MPI. Under mpirun or srun it adds a table of the hosts and measures the
    network between them. The exit status is 1 if something is wrong.
    """
    rank, size, by = launched()
    report = Report(talking=rank == 0)
    if by:
        with HangGuard(HANGS, rank == 0) as guard:
            if rank == 0:                   # before MPI starts: not every MPI lets its ranks start programs
                guard.stage("the look at this host", SURVEY_S)
                survey(report, out)
            else:
                limit += SURVEY_S           # for which the first message waits for rank 0
            sys.exit(examine(report, max(size or 0, rank + 1), out, seconds, partial(guard.stage, limit_s=limit)))
    survey(report, out)
    question_mpi(report, limit)
    sys.exit(report.end())


# without a launcher: what needs no MPI, and MPI in another process

def survey(report: Report, out: Path) -> None:
    computing, why = machine.probe("dsgd_mpi.kernels.probe")
    libraries = computing[0] if computing else {name: {"error": why} for name in ("onednn", "cupy", "cudnn")}
    report.section(f"dsgd_mpi {__version__} on {platform.node()}", software(report, libraries))
    report.section("GPUs", accelerators(report, libraries))
    report.section("SLURM", machine.slurm().items() or [("SLURM", "none on PATH here")])
    report.section("run folders", folders(report, machine.place(out)))
    report.section("shared memory", shared_memory(report, machine.place(SHARED_MEMORY)))
    report.section("places", places(report))
    settings = {key: value for key, value in sorted(os.environ.items()) if key.startswith(machine.SETTINGS)}
    if settings:
        report.section("settings in the environment", settings.items())


def software(report: Report, libraries: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Python", f"{platform.python_version()}, {sys.executable}"
    versions = {name: version_of(name) for name in PACKAGES}
    yield "packages", ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        report.wrong(f"packages are missing: {', '.join(missing)}", f"{PIP} {' '.join(missing)}")
    yield "HDF5", hdf5()
    yield "oneDNN", libraries["onednn"].get("answer") or "none"
    if "error" in libraries["onednn"] and not on_gpus(libraries):
        report.wrong(f"no oneDNN, and training on CPUs is many times slower without: {libraries['onednn']['error']}",
                     f"{PIP} onednn-cpu-gomp, or set DSGD_ONEDNN to the path of a libdnnl.so of version 3")
    yield "cuDNN", libraries["cudnn"].get("answer") or f"none ({libraries['cudnn']['error']})"


def on_gpus(libraries: dict[str, Any]) -> bool:
    """Whether there are GPUs here that can be trained on."""
    return bool(machine.gpus()) and "answer" in libraries["cupy"]


def version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def hdf5() -> str:
    answer = machine.python("-c", HDF5)     # in another process: an h5py built with MPI starts MPI
    return f"{answer.output.strip()} (none is needed: each rank opens its own handle)" if answer.output else answer.why


def accelerators(report: Report, libraries: dict[str, Any]) -> Iterator[tuple[str, str]]:
    names = machine.gpus()
    yield "found", counted(names) if names else "none on this host"
    driver = machine.ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if driver.status != 127:
        yield "driver", driver.output.split("\n")[0] if driver.status == 0 else f"nvidia-smi fails: {driver.why}"
    cupy = libraries["cupy"].get("answer")
    yield "CuPy", (f"{cupy['version']}, CUDA {cupy['runtime']}, driver's CUDA {cupy['driver']}, sees "
                   f"{counted(cupy['devices'])}") if cupy else f"none ({libraries['cupy']['error']})"
    if cupy and cupy["devices"]:
        no = aware.refusal(aware.command("cupy"))
        yield "GPU-aware MPI", f"no, {no}: messages go through host memory" if no else "yes, a trial has shown"
    if names and not cupy:
        report.note(f"CuPy cannot use the GPUs of this host ({libraries['cupy']['error']}): ranks compute on the CPU; "
                    "pip install 'dsgd_mpi[cuda12]' or, for a driver of CUDA 13, 'dsgd_mpi[cuda13]'")
    elif names and "error" in libraries["cudnn"]:
        report.note(f"cuDNN is missing ({libraries['cudnn']['error']}): convolutions on GPUs are our own, which are "
                    "slower; pip install 'dsgd_mpi[cuda12]' or 'dsgd_mpi[cuda13]'")


def counted(names: list[str]) -> str:
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"


def folders(report: Report, place: machine.Place) -> Iterator[tuple[str, str | None]]:
    yield "--out", str(place.path) + ("" if place.path == place.nearest else f" (to be made in {place.nearest})")
    yield "file system", f"{place.kind}, {place.source} on {place.mount}"
    yield "free", f"{place.free / GIB:,.1f} GiB; a quota may leave you less"
    if place.kind == "lustre":
        yield "stripe count", machine.stripes(place.nearest)
    if not place.writable:
        report.wrong(f"{place.nearest} cannot be written to", "choose another --out, where you may write")
    if place.free < LEAST_FREE:
        report.wrong(f"{place.mount} has {place.free / GIB:.2f} GiB left, less than checkpoints of a large model take "
                     f"({LEAST_FREE / GIB:.0f} GiB)", "make room there, or choose another --out")
    if place.kind in VOLATILE:
        report.note(f"{place.path} lies in this host's memory ({place.kind}): a run there is lost when the host "
                    "restarts, and other hosts cannot see it")


def shared_memory(report: Report, place: machine.Place) -> Iterator[tuple[str, str]]:
    yield str(place.path), f"{place.free / 2**20:,.0f} MiB free of {place.size / 2**20:,.0f}"
    if place.free < LEAST_SHARED:
        report.note(f"{place.path} has {place.free / 2**20:,.0f} MiB free: ranks on one node talk through it, and "
                    "one-sided algorithms keep models there, so that many ranks or large models are refused; "
                    "docker run --shm-size=8g or --ipc=host, or mount it larger")


def places(report: Report) -> Iterator[tuple[str, str]]:
    """Folders for what is temporary and for what can be made again."""
    try:
        temporary = tempfile.gettempdir()
    except OSError:
        temporary = "none that can be written to"
        report.wrong("there is no folder for temporary files, which MPI and this report need",
                     "set TMPDIR to a folder where you may write")
    given = os.environ.get("TMPDIR")
    yield "temporary", temporary
    if given and Path(given) != Path(temporary):
        report.note(f"TMPDIR is {given}, which is not there or cannot be written to: {temporary} is used, and MPI may "
                    "not start")
    if len(given or "") > LONGEST_TMPDIR:
        report.note(f"TMPDIR has {len(given or '')} letters: the sockets that Open MPI makes there may have 107 with "
                    "their names; set it to a shorter one, such as /tmp, if MPI does not start")
    cache = machine.place(cache_folder())
    yield "cache", f"{cache.path}" + ("" if cache.writable else ", which cannot be made or written to")
    if not cache.writable:
        report.note(f"{cache.path} cannot be written to: nothing is kept there between runs; set XDG_CACHE_HOME to a "
                    "folder where you may write, and DSGD_DATA_DIR for data sets")


def question_mpi(report: Report, limit_s: float) -> None:
    """MPI alone and under its launcher, each in a separate process."""
    found, why = machine.probe(PROBE, limit_s=limit_s)
    tools = machine.launchers()
    report.section("MPI", [*(library(found[0]) if found else [("library", "none that works")]),
                           ("launcher", "; ".join(map(launcher, tools)) or "no mpirun on PATH")])
    if found:
        judge_launchers(report, tools, found[0]["library"], limit_s)
    elif why.startswith(OURS):              # it has a way out of its own
        problem, _, remedy = why.removeprefix(OURS).partition("; ")
        report.wrong(f"MPI does not start: {problem}", remedy)
    else:
        report.wrong(f"MPI does not start: {why}", MPI_WAY_OUT + ". Where MPI starts under its launcher only, "
                     "ask inside a job: srun python -m dsgd_mpi doctor")


def library(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "library", f"{facts['library']}, {facts['path']}"
    yield "found", facts["found"]
    yield "GPU-aware", {True: "yes, says MPIX_Query_cuda_support", False: "no, says MPIX_Query_cuda_support",
                        None: "not known: the library has no MPIX_Query_cuda_support"}[facts["cuda"]]


def launcher(tool: Path) -> str:
    return f"{tool}, {machine.family(tool) or 'of an unknown MPI'}"


def judge_launchers(report: Report, tools: list[Path], library: str, limit_s: float) -> None:
    """Starts two ranks with the first; if that fails, with the next, so as to say which to use."""
    failures: list[tuple[str, str]] = []
    for tool in tools:
        failure = fails(tool, library, limit_s)
        if failure is None:
            call = f"call {tool}, or put its folder first on PATH"
            failures = [(problem, call) for problem, _ in failures]
            if not failures and not machine.on_path(tool):
                report.note(f"mpirun is not on PATH: {call}")
            break
        failures.append(failure)
    for problem, remedy in failures:
        report.wrong(problem, remedy)
    if not tools and machine.ask("srun", "--version").status:
        report.wrong("there is neither mpirun nor srun", "load the module of your cluster's MPI, or pip install mpich")


def fails(tool: Path, library: str, limit_s: float) -> tuple[str, str] | None:
    """Why two ranks cannot be started with it, and what to do; None if they can."""
    found, why = machine.probe(PROBE, tool, "-n", "2", limit_s=limit_s)
    family = machine.family(tool)
    if [facts["size"] for facts in found] == [2, 2]:
        return None
    if found or (family and not library.startswith(family)):
        return (f"{tool} does not belong to {library}: " + ("each of 2 ranks found itself alone" if found else why),
                "use the mpirun of that library: load its module, or pip install mpich for both")
    return f"{tool} does not start ranks: {why}", f"see all that it says: {tool} -n 2 {sys.executable} -m {PROBE}"


# under a launcher: MPI in this process, as in a run

def examine(report: Report, ranks: int, out: Path, seconds: float, stage: Callable[[str], None]) -> int:
    """Collective: hosts, verbs, and the report's end; the exit status, the same on all ranks."""
    stage("the start of MPI")
    from dsgd_mpi.net.start import started_mpi
    from dsgd_mpi.training.job import fail
    try:
        host = started_mpi(ranks)
    except UsageError as unusable:
        problem, _, remedy = unusable.message.partition("; ")
        report.wrong(problem, remedy)
        status = report.end()
        return status if report.talking or ranks == 1 else 0        # a launcher would end rank 0 before it has spoken
    try:
        stage("the first message between all ranks")
        hosts(report, host, out)
        try:
            measure(report, host, seconds, stage)
        except UsageError as problem:       # on all ranks
            report.wrong(*problem.message.split("; ", 1))
        stage("the end of MPI")
        worst: int = max(host.allgather(report.end()))
        host.close()
        return worst
    except BaseException as failure:
        stage(DONE)                         # it is reported below
        fail(host, failure)
        raise                               # never reached: the job is gone


def hosts(report: Report, host: Any, out: Path) -> None:
    """Collective: what each host has, and whether all have the same."""
    from dsgd_mpi.net.mpi.probe import facts
    own = {**machine.here(), **facts(host), "dsgd_mpi": __version__, "python": platform.python_version()}
    ranks = host.allgather(own)
    by = " and ".join(rank for rank, _ in VARIABLES.values() if rank in os.environ)
    report.section("MPI", [*library(own), ("launcher", f"{host.size} processes, ranks from {by}")])
    names = list(dict.fromkeys(each["host"] for each in ranks))
    on = {name: [each for each in ranks if each["host"] == name] for name in names}
    report.table("hosts", ("host", "ranks", "cores", "free memory", "GPUs", "processor"),
                 ((name, len(each), len(shared_cores(each)), f"{each[0]['memory_gib']:.0f} GiB",
                   counted(each[0]["gpus"]), each[0]["cpu"]) for name, each in on.items()))
    for what in ("dsgd_mpi", "python", "library", "path"):
        values = {each[what]: each["host"] for each in ranks}
        if len(values) > 1:
            report.wrong(f"{what} is not the same on all hosts: " + ", ".join(f"{value} on {name}" for value, name in
                         values.items()), "give all hosts one environment: the same modules, and one shared folder")
    for name, each in on.items():
        judge_cores(report, name, each)
    if len(names) > 1:
        judge_sharing(report, host, out, ranks)


def shared_cores(ranks: list[dict[str, Any]]) -> set[int]:
    return set().union(*(each["cores"] for each in ranks))


def judge_cores(report: Report, name: str, ranks: list[dict[str, Any]]) -> None:
    """More ranks than cores is slow; all ranks on one of many cores is an unintended binding by the launcher."""
    used, there = len(shared_cores(ranks)), ranks[0]["cores_there"]
    if used < len(ranks) <= there:
        report.wrong(f"{name}: {len(ranks)} ranks are bound to {used} of its {there} cores",
                     "let each have its own: srun --cpus-per-task=N, Open MPI --bind-to none, MPICH -bind-to none")
    elif used < len(ranks):
        report.note(f"{name}: {len(ranks)} ranks share {used} cores and take turns: figures say nothing about speed")


def judge_sharing(report: Report, host: Any, out: Path, ranks: list[dict[str, Any]]) -> None:
    """Collective: whether all hosts see what rank 0 writes where run folders will be."""
    token = machine.place(out).nearest / f".doctor-{secrets.token_hex(8)}"
    with suppress(OSError):
        if host.rank == 0:
            token.touch()
    seen = host.allgather(Path(host.allgather(str(token))[0]).exists())
    if host.rank == 0:
        token.unlink(missing_ok=True)
    blind = list(dict.fromkeys(each["host"] for each, sees in zip(ranks, seen, strict=True) if not sees))
    if blind and seen[0]:
        report.wrong(f"{token.parent} of {ranks[0]['host']} is not seen by {', '.join(blind)}",
                     "choose an --out on a file system that all hosts share")


def measure(report: Report, host: Any, seconds: float, stage: Callable[[str], None]) -> None:
    """Collective: each verb with large and with small messages."""
    from dsgd_mpi.doctor.selftest import selftest
    names = host.allgather(platform.node())
    timings = list(selftest(host, seconds, stage))
    report.table(f"self-test of {seconds:g} s, all {host.size} ranks at once",
                 ("verb", "size", "turns", "time", "rate", "slowest", "slowest rank"),
                 ((each.verb, machine.sized(each.bytes), each.turns, machine.timed(each.median_s),
                   f"{each.bytes_per_s / 1e9:.3f} GB/s" if each.bytes > 1000 else "",
                   machine.timed(each.slowest_s), f"rank {each.slowest_rank} on {names[each.slowest_rank]}")
                  for each in timings))
