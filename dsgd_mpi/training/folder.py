"""The run folder: created or found by rank 0, and claimed, so that no two runs ever write into one.

A claim is the file `run.lock`, linked into place whole, as only one of several processes can (on NFS and Lustre too).
It names its holder and is touched while the run lives. One that was left behind is taken over:

    of a process of this machine        as soon as that process is gone: after kill -9, too
    of this SLURM job before a requeue  at once
    of any other machine                once it has not been touched for `SILENT_S`
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from dsgd_mpi import algorithms
from dsgd_mpi.arrays.strict import to_json
from dsgd_mpi.config import FIELDS, OF_A_START, Config, from_toml
from dsgd_mpi.errors import UsageError
from dsgd_mpi.files import read_text
from dsgd_mpi.training.build import optimizer_of
from dsgd_mpi.training.output import write_whole

LOCK = "run.lock"
BEAT_S = 20.0                               # between two touches
SILENT_S = 180.0                            # after which a holder on another machine counts as gone: 9 touches missed
TAKING_S = 10.0                             # how long another process is waited for that takes the same claim over
OF_OPTIMIZER = ("optimizer", "set_optimizer", "momentum", "weight_decay")


class Holder(NamedTuple):
    """Who holds a claim. `machine` is the same where process ids mean the same: one boot, one PID namespace."""

    host: str
    machine: str
    pid: int
    started: str | None                     # by the kernel's clock: another process may have the same id later
    job: str | None                         # the batch system's number
    restarts: int
    since: str

    def described(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


class Claim:
    """This process's claim on a folder, which exists, until `release` or the end of `with`. UsageError if it is held.

    If it is lost meanwhile, since this process was stopped for long and another has taken it over, the thread that
    touches it raises UsageError.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.holder, self.ended = folder, own(), threading.Event()
        self.made = False                   # whether the folder was made for this run
        acquire(folder / LOCK, self.holder, folder)
        threading.Thread(target=self._beat, daemon=True).start()

    def release(self) -> None:
        self.ended.set()
        with suppress(OSError):
            if read(self.folder / LOCK) == self.holder:
                (self.folder / LOCK).unlink()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self.made and kind and issubclass(kind, UsageError):
            self.unmake()
        self.release()

    def unmake(self) -> None:
        """Removes what a refused run has left in the folder made for it, if it has not trained yet."""
        lines = self.folder / "metrics.jsonl"
        if any(self.folder.glob("checkpoint-*")) or (lines.exists() and lines.stat().st_size):
            return
        with suppress(OSError):
            for name in ("config.toml", "env.json", "metrics.jsonl", LOCK):
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()

    def _beat(self) -> None:
        while not self.ended.wait(BEAT_S):
            with suppress(OSError):         # a file server that is away for a while
                holder = read(self.folder / LOCK)
                if holder and holder != self.holder and not self.ended.is_set():
                    raise UsageError(f"{self.folder} was taken over by {holder.described()}, while this run did not "
                                     "move; it ends here and leaves the folder to that one")
                os.utime(self.folder / LOCK)


def inherited(folder: Path, dead: list[tuple[str, int]]) -> Claim:
    """The claim of another process of this job, one of those that have died, by host and process: free at once."""
    holder = read(folder / LOCK)
    if holder and (holder.host, holder.pid) in dead:
        (folder / LOCK).unlink(missing_ok=True)
    return Claim(folder)


def claimed(config: Config, rank: int, ranks: int) -> Claim | None:
    """On rank 0, the run folder, made for `ranks` ranks or found, with a claim on it; None on others. UsageError."""
    if rank != 0:
        return None
    if config.resume:
        return Claim(Path(config.resume))
    if config.out:
        return prepared(config, Path(config.out))
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.algorithm}-{config.model}-{ranks}"
    return prepared(config, fresh(Path("runs"), name))


def fresh(parent: Path, name: str) -> Path:
    """A new folder of this name; name-2, name-3 ... if there is one: another run may begin in the same second."""
    with writing(parent / name):
        parent.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            folder = parent / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue
    raise AssertionError("never reached")


def prepared(config: Config, folder: Path) -> Claim:
    """A claim on a folder that holds config.toml of this run: new, or to be resumed."""
    with writing(folder):
        if (folder / "config.toml").exists() and not config.auto_resume:
            raise UsageError(f"{folder} already holds a run; continue it with --resume {folder}, or choose another "
                             "--out")
        folder.mkdir(parents=True, exist_ok=True)
    try:
        claim = Claim(folder)
        try:
            begin(config, folder, claim)
        except BaseException:
            claim.release()
            raise
    except BaseException:
        with suppress(OSError):
            folder.rmdir()                  # only if there is nothing in it
        raise
    return claim


def begin(config: Config, folder: Path, claim: Claim) -> None:
    """Writes config.toml of a new run, or finds that of this very run. UsageError if it is another's."""
    file = folder / "config.toml"
    if not file.exists():                   # looked for again: now nobody else can write it
        with writing(folder):
            write_whole(file, replace(config, out=str(folder), **OF_A_START).to_toml())
        claim.made = True
    elif not (config.auto_resume and same_run(config, folder)):
        raise UsageError(f"{folder} already holds {'another' if config.auto_resume else 'a'} run; continue it with "
                         f"--resume {folder}, or choose another --out")


def same_run(config: Config, folder: Path) -> bool:
    """Whether the run in a folder differs only in where and how it runs.

    Optimizers are compared as built: an option that is not given equals its default. So does --bn auto what it means.
    """
    there = Config(**from_toml(folder / "config.toml"))
    if any(getattr(config, key) != getattr(there, key) for key, item in FIELDS.items()
           if item.metadata["group"] in ("Experiment", "Schedule") and key not in (*OF_OPTIMIZER, "bn")):
        return False
    algorithm = algorithms.build(config.algorithm, config.algorithm_options())
    return (optimizer_of(config, algorithm) == optimizer_of(there, algorithm)
            and config.statistics(algorithm.one_model) == there.statistics(algorithm.one_model))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """UsageError for what a file system refuses."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{folder} cannot be created ({error.strerror}); choose another --out") from None


# claims

def acquire(path: Path, me: Holder, folder: Path) -> None:
    """Makes `path` a claim of this process. UsageError if it is held, or if nothing can be written there."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with suppress(FileNotFoundError):       # asked once: another process may remove it at any time
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UsageError(f"{path}: expected the claim of a run, or nothing, found what is no file; move it away")
    try:
        part.write_text(to_json(me._asdict()) + "\n", encoding="utf-8")
        end = time.monotonic() + TAKING_S
        while not placed(part, path):
            if not left_behind(path, me, now=part.stat().st_mtime):     # the file server's clock
                holder = read(path)
                if holder or time.monotonic() > end:
                    if not holder:
                        raise UsageError(f"{path}: expected the claim of a run, found what cannot be read as one; "
                                         "remove it if no run uses the folder")
                    raise UsageError(f"{folder} is in use by {holder.described()}; wait until that run has ended, or "
                                     "choose another folder by --out")
                time.sleep(0.05)            # it is gone, or just being written
            else:
                take_away(path, me, folder, end)
    except OSError as error:
        raise UsageError(f"{folder}: the run cannot be claimed ({error.strerror}); expected a folder that exists and "
                         "can be written to") from None
    finally:
        with suppress(OSError):
            part.unlink()


def placed(part: Path, path: Path) -> bool:
    """Gives a written file this name too, unless something has it."""
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError:                         # a file system without links: created exclusively, then written
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(part.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    return True


def take_away(path: Path, me: Holder, folder: Path, end: float) -> None:
    """Removes a claim that was left behind. Only the holder of a second claim, on that, may do so."""
    taking = path.with_name(f"{path.name}.taking")
    try:
        acquire(taking, me, folder)
    except UsageError:
        if time.monotonic() > end:
            raise
        time.sleep(0.05)                    # another process is taking it over now
        return
    try:
        if left_behind(path, me, now=taking.stat().st_mtime):           # still: that one may have been quicker
            path.unlink()
    finally:
        taking.unlink()


def left_behind(path: Path, me: Holder, now: float) -> bool:
    """Whether a claim's holder is gone for certain, or has been silent for too long. False if there is no claim."""
    holder = read(path)
    if holder and holder.job and holder.job == me.job and holder.restarts < me.restarts:
        return True
    if holder and holder.machine == me.machine:
        return started(holder.pid) != holder.started
    try:
        return abs(now - path.stat().st_mtime) > SILENT_S       # in the future: no one alive has touched it
    except FileNotFoundError:
        return False


def read(path: Path) -> Holder | None:
    """None if there is no claim, or none that can be understood."""
    try:
        found: Any = json.loads(read_text(path))
        holder = Holder(**found)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return holder if isinstance(holder.pid, int) and isinstance(holder.restarts, int) else None


def own() -> Holder:
    """This process."""
    job = next((os.environ[name] for name in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID") if os.environ.get(name)), None)
    parts = [os.environ.get(name) for name in ("SLURM_ARRAY_TASK_ID", "SLURM_CLUSTER_NAME")]
    restarts = os.environ.get("SLURM_RESTART_COUNT", "")
    return Holder(platform.node(), machine(), os.getpid(), started(os.getpid()),
                  job and " ".join([job, *filter(None, parts)]), int(restarts) if restarts.isdecimal() else 0,
                  time.strftime("%Y-%m-%d %H:%M:%S %z"))


def machine() -> str:
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def started(pid: int) -> str | None:
    """When a process of this machine started, in ticks of the kernel's clock; None if it is gone, or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()        # the name before may hold blanks
    return None if state in "ZX" else fields[18]
