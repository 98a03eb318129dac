"""Contestants in separate processes, which take turns: none shares threads, memory or libraries with another.

Each round gives every contestant one turn, so that whatever else the machine does affects all of them alike.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

PAUSE_S = 0.02                              # after a turn: until the threads that it leaves behind have gone to sleep
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Work = Mapping[str, Callable[[], object]]
Make = Callable[..., tuple[Work, list[float]]]


class Failed(Exception):
    """A contestant cannot go on, in one line. It drops out and the others continue."""


class Contestant:
    """A process that sets up its work by `make(*args)` and then does it, piece by piece, on request.

    `make` returns the pieces by name, and numbers by which the contestants can be compared. `threads`: of OpenMP.
    `failure`: why it cannot go on, if so; to ask it for anything then is Failed.
    """

    def __init__(self, name: str, threads: int, make: Make, *args: Any, blas: int = 1) -> None:
        self.name, self.threads = name, threads
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, make, args), daemon=False)
        with environment(threads, blas):
            self.process.start()
        theirs.close()
        self.failure: str | None = None
        self.check: list[float] = []
        with suppress(Failed):
            self.check = self.reply()

    def ask(self, *request: Any) -> Any:
        if self.failure:
            raise Failed(f"{self.name}: {self.failure}")
        with suppress(OSError):             # of a process that has ended: there is no reply then
            self.pipe.send(request)
        return self.reply()

    def reply(self) -> Any:
        try:
            self.failure, value = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(10)
            self.failure = f"its process ended with status {self.process.exitcode}"
        if self.failure:
            raise Failed(f"{self.name}: {self.failure}")
        return value

    def time(self, piece: str, times: int) -> float:
        """Seconds for one of `times` in a row.

        With one thread, CPU time, which other work on the machine hardly affects; otherwise wall-clock time.
        """
        time.sleep(PAUSE_S)
        passed, computed = self.ask(piece, times)
        return float(computed if self.threads == 1 else passed)

    def result(self, piece: str) -> Any:
        """What a piece returns."""
        return self.ask(piece, 0)

    def peak_bytes(self) -> int:
        """Its peak memory since its work was first done, less what it held before that was set up."""
        return int(self.ask("peak", 0))

    def stop(self) -> None:
        self.pipe.close()
        self.process.join()

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()


@contextmanager
def environment(threads: int, blas: int) -> Any:
    """The environment of a process to be started: threads of OpenMP and MKL, and of NumPy's OpenBLAS."""
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
        return pipe.send((in_a_line(reason), None))
    pipe.send((None, check))
    while True:
        try:
            name, times = pipe.recv()
        except EOFError:
            return None
        try:
            value = (memory("VmHWM") - before[0] if name == "peak" else
                     clocked(work[name], times) if times else work[name]())
        except Exception as reason:
            return pipe.send((in_a_line(reason), None))
        pipe.send((None, value))


def in_a_line(reason: Exception) -> str:
    return f"{type(reason).__name__}: {reason}".splitlines()[0]


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


def compare(contestant: Contestant, first: Contestant, limits: list[float]) -> None:
    """The contestant fails, with both numbers, where one is farther, relatively, from the first's than its limit."""
    if contestant.failure:
        return
    for found, expected, limit in zip(contestant.check, first.check, limits, strict=True):
        if not abs(found - expected) <= limit * abs(expected):      # not a number is too far
            contestant.failure = (f"disagrees: {found:.6g} where {first.name} has {expected:.6g}, "
                                  f"{limit:.0e} of which is allowed")
            return


def take_turns(contestants: list[Contestant], piece: str, rounds: int, times: int,
               limit_s: float = 60) -> dict[str, list[float]]:
    """Contestant -> seconds, one sample a round; fewer rounds, but three at least, where `limit_s` would be passed.

    One that fails drops out.
    """
    samples: dict[str, list[float]] = {contestant.name: [] for contestant in contestants if not contestant.failure}
    start = time.monotonic()
    for done in range(rounds):
        if done >= 3 and time.monotonic() - start > limit_s:
            break
        for contestant in contestants:
            if contestant.name in samples:
                try:
                    samples[contestant.name].append(contestant.time(piece, times))
                except Failed:
                    del samples[contestant.name]
    return samples


def summary(samples: list[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    low, middle, high = np.percentile(samples, [25, 50, 75])
    return float(middle), float(low), float(high)


def quartiles(samples: list[float], digits: int = 2, width: int = 0, unit: str = "") -> str:
    """Median and quartiles of seconds, as text in milliseconds."""
    middle, low, high = (1e3 * value for value in summary(samples))
    return f"{middle:{width}.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def ratio(theirs: list[float], ours: list[float]) -> float:
    """How many times as long theirs takes: the median over rounds, each compared within itself."""
    return float(np.median(np.divide(theirs, ours)))


def timing(name: str, seconds: Mapping[str, list[float]], ours: str, width: int = 20) -> str:
    """A contestant's median and quartiles as text, and how many times ours that is."""
    against = f"   {ratio(seconds[name], seconds[ours]):5.2f} times ours" if ours in seconds and name != ours else ""
    return f"  {name:{width}} {quartiles(seconds[name], width=8, unit=' ms')}{against}"


def usable(dtypes: str) -> list[str]:
    """Which of the comma-separated dtypes our kernels support on this machine; prints why not for the others."""
    from dsgd_mpi.errors import UsageError
    from dsgd_mpi.kernels.load import load

    found = []
    for dtype in dtypes.split(","):
        try:
            load("onednn", dtype)
            found.append(dtype)
        except UsageError as reason:
            print(f"{dtype}: {reason.message}")
    return found


GEMM = 4096, 1024, 1024                     # rows, columns of the one matrix, columns of the other


def gemm(dtype: str, started: Callable[[], None]) -> tuple[Work, list[float]]:
    """A product of matrices that fit into the caches, by oneDNN (as a 1x1 convolution) and by NumPy's BLAS."""
    from dsgd_mpi.kernels.api import Arrays, Convolution, Tensor
    from dsgd_mpi.kernels.cpu.onednn import OneDNN

    started()
    rows, inner, columns = GEMM
    k, rng = OneDNN(dtype), np.random.default_rng(0)
    a, b = rng.random((rows, inner), np.float32), rng.random((inner, columns), np.float32)
    x, y = (Tensor(k.empty((1, rows // 32, 32, width))) for width in (inner, columns))
    k.put(a.reshape(x.value.shape), x.value)
    w = Tensor(b.T.reshape(columns, inner, 1, 1).copy())
    operation: Any = k.bind(Convolution(columns, window=1), Arrays(x, [w], y))
    operation.forward(True)
    work: dict[str, Callable[[], object]] = {"oneDNN": operation.output()[-1]}
    if dtype == "float32":
        c = np.empty((rows, columns), np.float32)
        work["NumPy"] = lambda: np.matmul(a, b, out=c)
    return work, []


def gemm_peak(threads: int, dtype: str = "float32") -> float:
    """Best GFLOP/s of matrix products: what the machine is capable of."""
    rows, inner, columns = GEMM
    pieces = ("oneDNN", "NumPy") if dtype == "float32" else ("oneDNN",)
    with Contestant("gemm", threads, gemm, dtype, blas=threads) as contestant:
        best = min(contestant.time(piece, 2) for piece in pieces for _ in range(8))
    return 2e-9 * rows * inner * columns / best


def copy(size: int, started: Callable[[], None]) -> tuple[Work, list[float]]:
    started()
    a, b = np.ones((2, size), np.uint8)
    return {"copy": lambda: np.copyto(b, a)}, []


def copy_peak(size: int = 1 << 28) -> float:
    """Best GB/s read and written by one thread that copies more memory than the caches hold."""
    with Contestant("copy", 1, copy, size) as contestant:
        return 2e-9 * size / min(contestant.time("copy", 1) for _ in range(8))
