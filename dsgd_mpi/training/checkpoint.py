"""Checkpoints: a folder for each, with an HDF5 file per rank that holds a model of its own; complete or absent.

    checkpoint-000001234/rank0.h5       x      (size,) the flat vector: weights, then running statistics
                         rank1.h5 ...   optimizer/ its state by name: v (parameters,) is SGD's momentum
                                        keeps/ the rest of the algorithm's state
                                        kernels/ the kernels' state: the loss scale in float16
                                        attributes: format, step, ranks, algorithm, optimizer, seed, config (TOML),
                                                    totals (JSON), shared_out (whether steps are counted over all
                                                    ranks together)

Format 1, which can still be read, supported no optimizer but SGD, and had its v next to x.

Each file is written under a temporary name, read back and renamed; so is the folder, once all files are complete. One
that holds a number that is not finite is not written, and not read if it is found.
Random numbers need no state: every draw is a pure function of the seed, the rank and the step, and so is the position
in the data. A run that is resumed at step k draws what it would have drawn.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dsgd_mpi.algorithms import Algorithm
from dsgd_mpi.arrays.flat import Array, beside, fill, to_numpy
from dsgd_mpi.arrays.hdf5 import atomic, read_finite
from dsgd_mpi.arrays.strict import to_json
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.api import Host
from dsgd_mpi.optim.api import Optimizer

FORMAT = 2
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
        if self.host.rank == 0:
            self._partial(step).mkdir(exist_ok=True)
        self.host.settle()                  # the folder exists
        written = True
        if self.host.rank == 0 or not algorithm.replicated:
            attributes = {**self.header, "format": FORMAT, "step": step, "ranks": self.host.size,
                          "optimizer": optimizer.name, "totals": to_json(totals)}
            written = self._write(self._partial(step) / self._name(algorithm), attributes, x, optimizer, algorithm)
        complete = self._all(written)
        if self.host.rank == 0:
            self._conclude(step, complete)

    def restore(self, x: Array, optimizer: Optimizer, algorithm: Algorithm,
                required: bool = True) -> tuple[int, dict[str, Any]]:
        """Collective: loads the newest checkpoint that all ranks can read back in full; a warning for any newer one.

        Overwrites x and the state of the optimizer, the algorithm and the kernels; kernel state that the file does not
        hold (another dtype wrote it) is left as it is. Returns the step to continue with and the totals so far.
        UsageError if there is none, or if its number of ranks (unless all are alike), network or optimizer differs.
        If none is `required` and none was ever completed, returns step 0 and overwrites nothing.
        """
        steps = np.full(64, -1)
        found = self._steps()[-len(steps):]
        steps[: len(found)] = found
        self.host.broadcast(steps)          # all try the same ones, whatever each sees in the folder
        if not required and steps[0] < 0:
            return 0, {}
        for step in steps[steps >= 0][::-1]:
            path = self._path(int(step)) / self._name(algorithm)
            if self._all(_reads_back(path)):
                return self._read(path, x, optimizer, algorithm)
        raise UsageError(f"{self.folder}: no complete checkpoint to resume from; expected folders checkpoint-STEP")

    def newest(self) -> int | None:
        """The step of the newest one, as this rank sees the folder; None if there is none."""
        return max(self._steps(), default=None)

    def _steps(self) -> list[int]:
        return sorted(int(path.name.partition("-")[2]) for path in self.folder.glob("checkpoint-*"))

    def _path(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step:09d}"

    def _partial(self, step: int) -> Path:
        return self.folder / f".checkpoint-{step:09d}.part"

    def _name(self, algorithm: Algorithm) -> str:
        return f"rank{0 if algorithm.replicated else self.host.rank}.h5"

    def _all(self, fine: bool) -> bool:
        """Collective: whether it is so on all ranks."""
        return bool(self.host.mean(np.array([float(fine)])).wait()[0] == 1)

    def _write(self, path: Path, attributes: dict[str, Any], x: Array, optimizer: Optimizer,
               algorithm: Algorithm) -> bool:
        try:
            with atomic(path, read_finite) as file:
                file.attrs.update(attributes)
                file.create_dataset("x", data=to_numpy(x), chunks=True, fletcher32=True)
                for name, array in optimizer.state.items():
                    file.create_dataset(f"optimizer/{name}", data=to_numpy(array), chunks=True, fletcher32=True)
                for name in algorithm.keeps:
                    file[f"keeps/{name}"] = to_numpy(getattr(algorithm, name))
                for name, array in self.state.items():
                    file[f"kernels/{name}"] = to_numpy(array)
        except OSError as error:
            log.warning("no checkpoint at step %d: %s; the run continues", attributes["step"], error)
            return False
        return True

    def _conclude(self, step: int, complete: bool) -> None:
        if not complete:
            shutil.rmtree(self._partial(step), ignore_errors=True)
            return
        shutil.rmtree(self._path(step), ignore_errors=True)     # of an earlier run to the same step
        os.replace(self._partial(step), self._path(step))
        for old in self._steps()[: -self.kept]:
            shutil.rmtree(self._path(old))

    def _read(self, path: Path, x: Array, optimizer: Optimizer, algorithm: Algorithm) -> tuple[int, dict[str, Any]]:
        with h5py.File(path, "r", locking=False) as file:
            ranks = int(file.attrs["ranks"])
            if not algorithm.replicated and ranks != self.host.size:
                raise UsageError(f"{path.parent}: holds {ranks} different models, one per rank, but this run has "
                                 f"{self.host.size} ranks; resume it with {ranks}")
            if file["x"].shape != x.shape:
                raise UsageError(f"{path}: holds a network of {file['x'].size} elements; this run's has {x.size}")
            if file.attrs.get("shared_out", False) != self.header.get("shared_out", False):
                raise UsageError(f"{path.parent}: counts the steps of {_counted(file.attrs)}, but this run those of "
                                 f"{_counted(self.header)}; use --steps-total if and only if the run began with it")
            before = file.attrs.get("optimizer", "sgd")
            if before != optimizer.name:
                raise UsageError(f"{path.parent}: expected the state of {optimizer.name}, found that of {before}; "
                                 f"resume with --optimizer {before}")
            fill(x, file["x"][()])
            for name, array in optimizer.state.items():
                fill(array, file[name if file.attrs["format"] == 1 else f"optimizer/{name}"][()])
            for name in algorithm.keeps:
                kept = file["keeps"][name][()]
                setattr(algorithm, name, beside(x, kept) if kept.shape else kept)
            for name, array in self.state.items():
                if f"kernels/{name}" in file:
                    fill(array, file[f"kernels/{name}"][()])
            return int(file.attrs["step"]), json.loads(file.attrs["totals"])


def _counted(about: Any) -> str:
    """Whose steps a run counts, by its header."""
    return "all ranks together" if about.get("shared_out", False) else "each rank"


def _reads_back(path: Path) -> bool:
    try:
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs.get("format") not in (1, FORMAT):
                raise OSError(f"expected checkpoint format {FORMAT} or 1, found {file.attrs.get('format')}")
            read_finite(file)
    except OSError as error:
        log.warning("%s cannot be read back: %s", path, error)
        return False
    return True
