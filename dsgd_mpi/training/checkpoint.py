"""Checkpoints: a folder for each, with a file per rank that holds a model of its own; complete or absent.

    checkpoint-000001234/rank0.h5, rank1.h5 ...     one for all ranks where their models are always the same
                         SHA256SUMS                 of these files, as sha256sum writes it

Each file is written under a temporary name, read back and renamed; so is the folder, once all files are complete. That
is done by threads, from a copy, while the run goes on (`writing`). One that holds a number that is not finite is not
written, and not read if it is found.
Random numbers need no state: every draw is a pure function of the seed, the rank and the step, and so is the position
in the data. A run that is resumed at step k draws what it would have drawn.

Whatever else lies in the run's folder or in that of a checkpoint is not ours: it is neither read nor deleted.
"""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dsgd_mpi.algorithms import Algorithm
from dsgd_mpi.arrays.flat import Array, fill
from dsgd_mpi.arrays.hdf5 import Memory
from dsgd_mpi.data import Course
from dsgd_mpi.errors import UsageError
from dsgd_mpi.files import moved_away, regular
from dsgd_mpi.net.api import Host
from dsgd_mpi.optim.api import Optimizer
from dsgd_mpi.training import rankfile
from dsgd_mpi.training.rankfile import Saved, State, Unfit
from dsgd_mpi.training.resume import Consent, course_of, refusal, shared_among
from dsgd_mpi.training.writing import NOTE, Sums, Writing

SUMS = "SHA256SUMS"
MOST_TOLD = 300                             # characters of a reason
OURS = re.compile(rf"rank\d+\.h5({re.escape(NOTE)})?|\.rank\d+\.h5\.\w+\.part|{SUMS}")
log = logging.getLogger("dsgd_mpi")


class Checkpoints:
    """The checkpoints of one run, in its folder; the last `kept` of them are retained, and the best with `keep_best`.

    `header`: attributes of every file. `state`: the kernels', `Kernels.state`. `course`: what steps mean in images.
    `resumed`: the attributes and the ranks of the checkpoint that was restored.
    """

    def __init__(self, host: Host, folder: Path, header: dict[str, Any], state: Mapping[str, Array] | None = None,
                 course: Course | None = None, kept: int = 2, keep_best: bool = False) -> None:
        self.host, self.folder, self.header, self.state, self.kept = host, folder, header, state or {}, kept
        self.course, self.keep_best = course, keep_best
        self.resumed: tuple[dict[str, Any], int] | None = None
        self.writing: Writing | None = None     # the same on all ranks
        self.memory = Memory()              # of the copy that is written; fresh pages would cost more than the copy

    def save(self, step: int, x: Array, optimizer: Optimizer, algorithm: Algorithm, totals: dict[str, Any]) -> None:
        """Collective, after `step` steps: copies the state, which is written in the background, and returns.

        It waits for the checkpoint before: two are never written at once. If one fails (a full disk), it is lost with a
        warning; the run continues.
        """
        self.finish()
        algorithm.rest(x)
        part, content = partial(self.folder, step), None
        news = self.host.allgather([self.host.rank != 0 or self._try(step, begin, part), totals])
        if not news[0][0]:                  # there is no folder
            return
        if self.host.rank == 0 or not algorithm.replicated:
            attributes = {**self.header, "step": step, "ranks": self.host.size}
            if self.course:
                now = self.course
                attributes["course"] = [now.batch, now.epoch, now.first, now.workers, now.drawn(step)]
            counted = [each for _, each in news] if algorithm.replicated else [totals]
            content = self._try(step, rankfile.image, self.memory, attributes, counted,
                                State(x, optimizer, algorithm, self.state))
        files = 1 if algorithm.replicated else self.host.size
        self.writing = Writing(step, part, content, [file_name(rank) for rank in range(files)], self._file(algorithm),
                               (lambda sums: self._conclude(step, sums)) if self.host.rank == 0 else None)
        self.writing.start()

    def finish(self) -> None:
        """Collective: returns on rank 0 once the checkpoint that is being written, if any, is complete or lost.

        Others return once their own file is. What has failed in the thread, but for the file system, is raised here.
        """
        writing, self.writing = self.writing, None
        if not writing:
            return
        what = f"the writing of the checkpoint of step {writing.step} to {self.folder}"
        self.host.until(writing.written.is_set, what)
        if len(writing.names) > 1:
            writing.told.put(self.host.allgather(writing.sum))
        self.host.until(writing.over, what)
        if writing.error:
            raise writing.error

    def abandon(self) -> None:
        """A rank has died, and may not have written its part: a checkpoint that is not whole yet is lost."""
        writing, self.writing = self.writing, None
        if writing:
            writing.told.put([None])
            self.host.until(writing.over, f"the writing of the checkpoint of step {writing.step}")

    def _conclude(self, step: int, sums: Sums) -> None:
        """On rank 0, in the thread: the checkpoint is whole, or gone."""
        if all(sums) and self._try(step, conclude, self.folder, step, sums):
            self._thin_out(step)
        else:
            with suppress(OSError):
                remove(partial(self.folder, step))

    def restore(self, x: Array, optimizer: Optimizer, algorithm: Algorithm,
                required: bool = True, consent: Consent | None = None) -> tuple[int, dict[str, Any]]:
        """Collective: loads the newest checkpoint from which all ranks can go on; a warning says why not a newer one.

        Overwrites x and the state of the optimizer, the algorithm and the kernels, once all ranks have checked all of
        theirs; kernel state that the file does not hold (another dtype wrote it) is left as it is. Returns the step to
        continue with and the totals so far. UsageError tells of each why it cannot be used, if none can. If none is
        `required` and none was ever completed, returns step 0 and overwrites nothing.
        """
        self.finish()
        state, consent = State(x, optimizer, algorithm, self.state), consent or Consent()
        mean = consent.mean and not algorithm.replicated
        found: list[int] = self.host.allgather(steps_in(self.folder))[0]    # all try the same, whatever each sees
        reasons: dict[str, str] = {}
        for step in reversed(found):
            saved, reason = self._examined(step, state, consent) if not mean or self.host.rank == 0 else (None, None)
            wrong = self.host.allgather(reason)
            if not any(wrong):
                if reasons and self.host.rank == 0:
                    log.warning("resumed from step %d, since newer checkpoints cannot be used: %s", step, told(reasons))
                return self._taken(step, saved, state, mean)
            rank = next(rank for rank, each in enumerate(wrong) if each)
            reasons[path_of(self.folder, step).name] = wrong[rank] or ""
        if reasons:
            raise UsageError(f"{self.folder}: no checkpoint to resume from: {told(reasons)}")
        if required:
            raise UsageError(f"{self.folder}: no complete checkpoint to resume from; expected folders checkpoint-STEP")
        return 0, {}

    def _thin_out(self, step: int) -> None:
        """Keeps the last whole ones, up to that step: newer ones, which could not be used, are not counted."""
        for part in self.folder.glob(".checkpoint-*.part"):     # of a run that was killed
            if re.fullmatch(r"\.checkpoint-\d{9,}\.part", part.name) and part.is_dir() and not part.is_symlink():
                with suppress(OSError):
                    remove(part)
        best = best_of(self.folder) if self.keep_best else None
        for old in [each for each in steps_in(self.folder) if each <= step][: -self.kept]:
            if old != best:
                with suppress(OSError):
                    remove(path_of(self.folder, old))

    def part_of(self, step: int, algorithm: Algorithm) -> Path:
        """This rank's file of a checkpoint."""
        return path_of(self.folder, step) / file_name(self._file(algorithm))

    def newest(self) -> int | None:
        """Collective: the step of the newest one, as rank 0 sees the folder; None if there is none."""
        found: int | None = self.host.allgather(max(steps_in(self.folder), default=None))[0]
        return found

    def _examined(self, step: int, state: State, consent: Consent) -> tuple[Saved | None, str | None]:
        """This rank's file of a checkpoint, or the mean of all, or why it cannot be used."""
        try:
            saved = read(self.folder, step, self._file(state.algorithm))
            self._allowed(saved, state, consent)
            if consent.mean and not state.algorithm.replicated:
                return mean_of(self.folder, saved, state), None
            rankfile.check(saved, state)
        except Unfit as reason:
            return None, " ".join(str(reason).split())[:MOST_TOLD]      # one line, whatever a file holds
        return saved, None

    def _allowed(self, saved: Saved, state: State, consent: Consent) -> None:
        """Unfit if the rules do not let this run go on from a checkpoint."""
        try:
            reason = refusal(saved.about, saved.ranks, self.header, self.host.size, state.algorithm.replicated, consent)
            if self.course:
                course_of(saved.about, saved.step, saved.ranks, 0, self.course.epoch)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            reason = f"its attributes are damaged: {error}"
        if reason:
            raise Unfit(reason)

    def _taken(self, step: int, saved: Saved | None, state: State, mean: bool) -> tuple[int, dict[str, Any]]:
        """Collective: the state becomes that of a checkpoint which all ranks have checked."""
        about, ranks, totals = self.host.allgather(saved and [saved.about, saved.ranks, saved.totals])[0]
        if mean:
            if saved:
                fill(state.x, saved.arrays["x"])
            self.host.broadcast(state.x)
        else:
            assert saved
            rankfile.put_back(saved, state)
        self.resumed = about, ranks
        if mean or (state.algorithm.replicated and ranks != self.host.size):
            every = totals if len(totals) == ranks else totals * ranks      # an older version noted those of one
            return step, shared_among(every, self.host.size)[self.host.rank]
        own = saved.totals if saved else totals
        return step, own[self.host.rank] if len(own) > 1 else own[0]

    def _file(self, algorithm: Algorithm) -> int:
        return 0 if algorithm.replicated else self.host.rank

    def _try(self, step: int, act: Any, *args: Any) -> Any:
        """What it returns; None, with a warning, if the file system refuses."""
        try:
            return act(*args)
        except OSError as error:
            log.warning("no checkpoint at step %d: %s; the run continues", step, error)
            return None


def path_of(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step:09d}"


def partial(folder: Path, step: int) -> Path:
    return folder / f".checkpoint-{step:09d}.part"


def file_name(rank: int) -> str:
    return f"rank{rank}.h5"


def steps_in(folder: Path) -> list[int]:
    """Of the checkpoints in a run's folder, ascending: folders, no links, of a name that we give, with a rank's file
    or the list of them, or that may not be looked into.

    OSError is told as an empty folder.
    """
    found = []
    with suppress(OSError):
        for path in folder.iterdir():
            name = re.fullmatch(r"checkpoint-(\d{9,})", path.name)
            if (name and path == path_of(folder, int(name[1])) and path.is_dir() and not path.is_symlink()
                    and (any(path.glob("rank*.h5")) or os.path.lexists(path / SUMS)
                         or not os.access(path, os.R_OK | os.X_OK))):
                found.append(int(name[1]))
    return sorted(found)


def best_of(folder: Path) -> int | None:
    """The step of the checkpoint whose model was found most accurate, by summary.csv; the first of equal ones.

    None if no checkpoint is of a step at which the run was evaluated.
    """
    accuracies: dict[int, float] = {}
    path = folder / "summary.csv"
    with suppress(OSError, csv.Error), open(path, newline="", encoding="utf-8", opener=regular) as file:
        for row in csv.DictReader(file):
            with suppress(KeyError, TypeError, ValueError):
                accuracies[int(row["step"])] = float(row["accuracy"])
    there = [step for step in steps_in(folder) if step in accuracies]
    return max(there, key=lambda step: accuracies[step], default=None)


def read(folder: Path, step: int, rank: int) -> Saved:
    """What a rank's file holds, once it is known to be as it was written; Unfit."""
    path = path_of(folder, step)
    return rankfile.read(path / file_name(rank), step, digests(path).get(file_name(rank)))


def mean_of(folder: Path, first: Saved, state: State) -> Saved:
    """The mean of the models of a checkpoint that were trained, in place of rank 0's `first`; Unfit."""
    servers = first.ranks - int(first.about.get("workers", first.ranks))
    total, totals = 0.0, []
    for rank in range(first.ranks):
        saved = read(folder, first.step, rank)
        if "x" not in saved.arrays or saved.arrays["x"].shape != state.x.shape:
            raise Unfit(f"{file_name(rank)}: expected a network of {state.x.size} elements")
        totals += saved.totals
        if rank >= servers:
            total = total + saved.arrays["x"].astype(np.float64) / (first.ranks - servers)
    return replace(first, arrays={"x": total}, totals=totals)


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of a checkpoint's files by name; of older versions, none. Unfit if the list of them is damaged."""
    rankfile.must_be_file(path / SUMS)
    try:
        lines = (path / SUMS).read_text("ascii").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Unfit(f"{SUMS} cannot be read: {error}") from None
    found = [re.fullmatch(r"([0-9a-f]{64})  (rank\d+\.h5)", line) for line in lines]
    if not all(found) or not found:
        raise Unfit(f"{SUMS} is damaged")
    sums = {each[2]: each[1] for each in found if each}
    if missing := [name for name in map(file_name, range(len(found))) if name not in sums]:
        raise Unfit(f"{SUMS} is damaged: it does not name {missing[0]}")
    return sums


def begin(part: Path) -> bool:
    """An empty folder of that name, whatever was there: a killed run's, or somebody else's."""
    if part.is_dir() and not part.is_symlink():
        remove(part)
    if os.path.lexists(part):
        make_way(part)
    part.mkdir()
    return True


def conclude(folder: Path, step: int, sums: Sums) -> bool:
    """Makes a whole checkpoint of its files, in the place of an earlier one of the same step."""
    part, path = partial(folder, step), path_of(folder, step)
    text = "".join(f"{each}  {file_name(rank)}\n" for rank, each in enumerate(sums))
    with open(part / SUMS, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    named = {SUMS, *map(file_name, range(len(sums)))}
    for each in list(part.iterdir()):       # notes, and what a rank that died meanwhile has left
        if OURS.fullmatch(each.name) and each.name not in named:
            each.unlink(missing_ok=True)
    if path.is_dir() and not path.is_symlink():
        remove(path)
    if os.path.lexists(path):
        make_way(path)
    os.replace(part, path)
    return True


def make_way(path: Path) -> None:
    """Renames what is not ours but has a name that we need."""
    log.warning("%s was in the way of a checkpoint; it is now %s", path, moved_away(path).name)


def remove(path: Path) -> None:
    """A checkpoint's folder; it stays if there is something in it that is not ours."""
    for each in path.iterdir():
        if OURS.fullmatch(each.name) and (each.is_file() or each.is_symlink()):
            each.unlink()
    with suppress(OSError):
        path.rmdir()


def told(reasons: Mapping[str, str]) -> str:
    """Of each checkpoint why it cannot be used; equal reasons once."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
