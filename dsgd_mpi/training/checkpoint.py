"""Checkpoints: a folder for each, with a file per rank that holds a model of its own; complete or absent.

    checkpoint-000001234/rank0.h5, rank1.h5 ...     one for all ranks where their models are always the same
                         SHA256SUMS                 of these files, as sha256sum writes it

Each file is written under a temporary name, read back and renamed; so is the folder, once all files are complete.
Random numbers need no state: every draw is a pure function of the seed, the rank and the step, and so is the position
in the data. A run that is resumed at step k draws what it would have drawn.

Whatever else lies in the run's folder or in that of a checkpoint is not ours: it is neither read nor deleted.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dsgd_mpi.algorithms import Algorithm
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.api import Host
from dsgd_mpi.optim.api import Optimizer
from dsgd_mpi.training import rankfile
from dsgd_mpi.training.rankfile import Saved, State, Unfit

SUMS = "SHA256SUMS"
OURS = re.compile(r"rank\d+\.h5|\.rank\d+\.h5\.\w+\.part|" + SUMS)
log = logging.getLogger("dsgd_mpi")


class Checkpoints:
    """The checkpoints of one run, in its folder; the last `kept` of them are retained.

    `header`: attributes of every file. `state`: the kernels', `Kernels.state`.
    """

    def __init__(self, host: Host, folder: Path, header: dict[str, Any], state: Mapping[str, Array] | None = None,
                 kept: int = 2) -> None:
        self.host, self.folder, self.header, self.state, self.kept = host, folder, header, state or {}, kept

    def save(self, step: int, x: Array, optimizer: Optimizer, algorithm: Algorithm, totals: dict[str, Any]) -> None:
        """Collective, after `step` steps. If it fails (a full disk), it is lost with a warning; the run continues."""
        algorithm.rest(x)
        part = partial(self.folder, step)
        begun = self.host.allgather(self.host.rank != 0 or self._try(step, begin, part))[0]     # the folder exists
        sums = None
        if begun and (self.host.rank == 0 or not algorithm.replicated):
            attributes = {**self.header, "step": step, "ranks": self.host.size}
            sums = self._try(step, rankfile.write, part / file_name(self._file(algorithm)), attributes, totals,
                             State(x, optimizer, algorithm, self.state))
        everyone = self.host.allgather(sums)
        if self.host.rank == 0:
            written = everyone[:1] if algorithm.replicated else everyone
            if not all(written) or not self._try(step, conclude, self.folder, step, written):
                with suppress(OSError):
                    remove(part)
                return
            for old in [each for each in steps_in(self.folder) if each <= step][: -self.kept]:
                with suppress(OSError):
                    remove(path_of(self.folder, old))

    def restore(self, x: Array, optimizer: Optimizer, algorithm: Algorithm,
                required: bool = True) -> tuple[int, dict[str, Any]]:
        """Collective: loads the newest checkpoint from which all ranks can go on; a warning says why not a newer one.

        Overwrites x and the state of the optimizer, the algorithm and the kernels, once all ranks have checked all of
        theirs; kernel state that the file does not hold (another dtype wrote it) is left as it is. Returns the step to
        continue with and the totals so far. UsageError tells of each why it cannot be used, if none can. If none is
        `required` and none was ever completed, returns step 0 and overwrites nothing.
        """
        state = State(x, optimizer, algorithm, self.state)
        found: list[int] = self.host.allgather(steps_in(self.folder))[0]    # all try the same, whatever each sees
        reasons: dict[str, str] = {}
        for step in reversed(found):
            saved, reason = self._examined(step, state)
            wrong = self.host.allgather(reason)
            if not any(wrong):
                assert saved
                if reasons and self.host.rank == 0:
                    log.warning("resumed from step %d, since newer checkpoints cannot be used: %s", step, told(reasons))
                rankfile.put_back(saved, state)
                return saved.step, saved.totals
            rank = next(rank for rank, each in enumerate(wrong) if each)
            reasons[path_of(self.folder, step).name] = wrong[rank] or ""
        if reasons:
            raise UsageError(f"{self.folder}: no checkpoint to resume from: {told(reasons)}")
        if required:
            raise UsageError(f"{self.folder}: no complete checkpoint to resume from; expected folders checkpoint-STEP")
        return 0, {}

    def _examined(self, step: int, state: State) -> tuple[Saved | None, str | None]:
        """This rank's file of a checkpoint, or why it cannot be used."""
        try:
            saved = read(self.folder, step, self._file(state.algorithm))
            rankfile.check(saved, state, self.header, self.host.size)
        except Unfit as reason:
            return None, str(reason)
        return saved, None

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
    """Of the checkpoints in a run's folder, ascending: folders, no links, of a name that we give, with a rank's file.

    OSError is told as an empty folder.
    """
    found = []
    with suppress(OSError):
        for path in folder.iterdir():
            name = re.fullmatch(r"checkpoint-(\d{9,})", path.name)
            if (name and path == path_of(folder, int(name[1])) and path.is_dir() and not path.is_symlink()
                    and any(path.glob("rank*.h5"))):
                found.append(int(name[1]))
    return sorted(found)


def read(folder: Path, step: int, rank: int) -> Saved:
    """What a rank's file holds, once it is known to be as it was written; Unfit."""
    path = path_of(folder, step)
    return rankfile.read(path / file_name(rank), step, digests(path).get(file_name(rank)))


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of a checkpoint's files by name; of older versions, none. Unfit if the list of them is damaged."""
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


def conclude(folder: Path, step: int, sums: list[str]) -> bool:
    """Makes a whole checkpoint of its files, in the place of an earlier one of the same step."""
    part, path = partial(folder, step), path_of(folder, step)
    text = "".join(f"{each}  {file_name(rank)}\n" for rank, each in enumerate(sums))
    with open(part / SUMS, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if path.is_dir() and not path.is_symlink():
        remove(path)
    if os.path.lexists(path):
        make_way(path)
    os.replace(part, path)
    return True


def make_way(path: Path) -> None:
    """Renames what is not ours but has a name that we need."""
    names = (path.with_name(f"{path.name}.other{count or ''}") for count in range(10**6))
    other = next(name for name in names if not os.path.lexists(name))
    os.rename(path, other)
    log.warning("%s was in the way of a checkpoint; it is now %s", path, other.name)


def remove(path: Path) -> None:
    """A checkpoint's folder; it stays if there is something in it that is not ours."""
    for each in path.iterdir():
        if OURS.fullmatch(each.name):
            each.unlink()
    with suppress(OSError):
        path.rmdir()


def told(reasons: Mapping[str, str]) -> str:
    """Of each checkpoint why it cannot be used; equal reasons once."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
