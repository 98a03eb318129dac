"""Contestants in processes of their own, which take turns: none shares threads, memory or libraries with another.

Each round gives every contestant one turn, so that whatever else the machine does, it does to all of them alike.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAUSE_S = 0.02                              # after a turn: until the threads that it leaves behind have gone to sleep
PACKAGES = ("numpy", "mpi4py", "mpich", "torch", "onednn-cpu-gomp", "cupy-cuda12x", "cupy-cuda13x",
            "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cudnn-frontend")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Work = Mapping[str, Callable[[], object]]
Make = Callable[..., tuple[Work, list[float]]]


class Contestant:
    """A process that makes its work by `make(*args)`, and then does it, piece by piece, whenever it is asked to.

    `make` returns the pieces by name, and numbers by which the contestants can be compared. `threads`: of OpenMP.
    """

    def __init__(self, name: str, threads: int, make: Make, *args: Any, blas: int = 1) -> None:
        self.name, self.threads = name, threads
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, make, args), daemon=False)
        with environment(threads, blas):
            self.process.start()
        theirs.close()
        self.failure, self.check = self.ask()

    def ask(self, *request: Any) -> Any:
        if request:
            self.pipe.send(request)
        try:
            return self.pipe.recv()
        except EOFError:
            return "its process ended", []

    def time(self, piece: str, times: int) -> float:
        """Seconds for one of `times` in a row.

        With one thread they are the processor's, which other work on the machine hardly changes; else the clock's.
        """
        time.sleep(PAUSE_S)
        passed, computed = self.ask(piece, times)
        return float(computed if self.threads == 1 else passed)

    def result(self, piece: str) -> Any:
        """What a piece returns."""
        return self.ask(piece, 0)

    def peak_bytes(self) -> int:
        """The most memory that it has held since its work was first done, beyond what it held before it was made."""
        return int(self.ask("peak", 0))

    def stop(self) -> None:
        self.pipe.close()
        self.process.join()


@contextmanager
def environment(threads: int, blas: int) -> Any:
    """That of a process to be started: threads of OpenMP and MKL, and of NumPy's OpenBLAS."""
    before = dict(os.environ)
    os.environ.update({name: str(blas if "OPENBLAS" in name else threads) for name in THREAD_VARIABLES})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def serve(pipe: Connection, make: Make, args: tuple[Any, ...]) -> None:
    """The other end of a Contestant."""
    try:
        before: list[int] = []
        work, check = make(*args, lambda: before.append(memory("VmRSS")))
        Path("/proc/self/clear_refs").write_text("5")           # the peak starts anew
        for piece in work.values():
            piece()
    except Exception as reason:             # whatever it is, it goes into the table
        return pipe.send((f"{type(reason).__name__}: {reason}".splitlines()[0], []))
    pipe.send((None, check))
    try:
        while True:
            name, times = pipe.recv()
            if name == "peak":
                pipe.send(memory("VmHWM") - before[0])
            else:
                pipe.send(clocked(work[name], times) if times else work[name]())
    except EOFError:
        return None


def clocked(work: Callable[[], object], times: int) -> tuple[float, float]:
    """Seconds that pass, and seconds that processors work, for one of `times`."""
    start, computed = time.perf_counter(), time.process_time()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times, (time.process_time() - computed) / times


def memory(what: str) -> int:
    """Bytes that this process holds, by their name in /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def take_turns(contestants: list[Contestant], piece: str, rounds: int, times: int,
               limit_s: float = 60) -> dict[str, list[float]]:
    """Contestant -> seconds, one sample a round; fewer rounds, but three at least, where `limit_s` would be passed."""
    samples: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    start = time.monotonic()
    for done in range(rounds):
        if done >= 3 and time.monotonic() - start > limit_s:
            break
        for contestant in contestants:
            samples[contestant.name].append(contestant.time(piece, times))
    return samples


def summary(samples: list[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    low, middle, high = np.percentile(samples, [25, 50, 75])
    return float(middle), float(low), float(high)


def ratio(theirs: list[float], ours: list[float]) -> float:
    """How many times as long theirs takes: the median over the rounds, each with itself compared."""
    return float(np.median(np.divide(theirs, ours)))


def gemm(size: int, started: Callable[[], None]) -> tuple[Work, list[float]]:
    """The product of two square matrices by NumPy's library: what the machine can do at best."""
    a, b, c = np.random.default_rng(0).random((3, size, size), np.float32)
    started()
    return {"gemm": lambda: np.matmul(a, b, out=c)}, []


def gemm_peak(threads: int, size: int = 2048) -> float:
    """Best GFLOP/s of single-precision matrix products."""
    contestant = Contestant("gemm", threads, gemm, size, blas=threads)
    best = min(contestant.time("gemm", 2) for _ in range(8))
    contestant.stop()
    return 2 * size**3 / best / 1e9


def about() -> dict[str, Any]:
    """Machine, versions, commit and command: what a result must say of itself."""
    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", str(HERE), *args], capture_output=True, text=True).stdout.strip()

    return {
        "machine": processor(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform(terse=True),
        "python": platform.python_version(), "load": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version for name in PACKAGES if (version := installed(name))},
        "commit": git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else ""),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def installed(package: str) -> str | None:
    """Its version, if it is there."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def processor() -> str:
    """Name and vector instructions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    said = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in said.items()}
    widest = [name for name in ("amx_tile", "avx512f", "avx2") if name in fields["flags"].split()]
    return f"{fields['model name']} ({widest[0] if widest else 'no AVX'})"


def save(name: str, result: dict[str, Any]) -> Path:
    """Writes a result beside the others; one of the same name is replaced."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**about(), **result}, indent=1) + "\n")
    return path
