"""Checkpoints: one HDF5 file for the whole run at one step, written so that it is whole or not there at all.

    /rank0/x            (size,) the flat vector: weights, then running statistics
    /rank0/v            (parameters,) momentum
    /rank0/keeps/NAME   what the algorithm keeps beside them
    /rank1/...          only where the ranks hold different models
    attributes          format, step, ranks, algorithm, seed, config (TOML), totals (JSON)

Random numbers need no state: every draw is a pure function of the seed, the rank and the step, and so is the place in
the data. So a run that goes on from step k draws what it would have drawn.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dsgd_mpi.algorithms import Algorithm
from dsgd_mpi.errors import UsageError
from dsgd_mpi.flat import Array
from dsgd_mpi.hdf5 import atomic
from dsgd_mpi.net.api import Host
from dsgd_mpi.sgd import LocalSgd

FORMAT = 1
log = logging.getLogger("dsgd_mpi")


class Checkpoints:
    """The checkpoints in one folder; the last `kept` of them stay."""

    def __init__(self, folder: Path, header: dict[str, Any], kept: int = 2) -> None:
        self.folder, self.header, self.kept = folder, header, kept

    def files(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("checkpoint-*.h5"))

    def save(self, host: Host, step: int, x: Array, sgd: LocalSgd, algorithm: Algorithm,
             totals: dict[str, float]) -> None:
        """Everyone, after `step` steps. The root writes; a full disk costs this checkpoint, not the run."""
        algorithm.rest(x)
        arrays = _gathered(host, x, sgd, algorithm)
        if host.rank != 0:
            for _ in arrays:
                pass
            return
        path = self.folder / f"checkpoint-{step:09d}.h5"
        try:
            with atomic(path) as file:
                file.attrs.update(self.header, format=FORMAT, step=step, ranks=host.size, totals=json.dumps(totals))
                for name, array in arrays:
                    checked = {"chunks": True, "fletcher32": True} if array.ndim else {}
                    file.create_dataset(name, data=array, **checked)
        except OSError as error:
            for _ in arrays:                # the other ranks wait to hand theirs over
                pass
            log.warning("checkpoint at step %d could not be written: %s; the run goes on", step, error)
            return
        for old in self.files()[: -self.kept]:
            old.unlink()

    def newest(self) -> Path | None:
        """The newest that reads back whole; a warning for each newer one that does not."""
        for path in reversed(self.files()):
            try:
                _read_all(path)
                return path
            except OSError as error:
                log.warning("%s is damaged (%s); trying the one before", path, error)
        return None


def restore(path: Path, host: Host, x: Array, sgd: LocalSgd, algorithm: Algorithm) -> tuple[int, dict[str, float]]:
    """Overwrites x, the momentum and what the algorithm keeps; the step to go on with, and the totals so far.

    UsageError if the file is of another number of ranks (unless all ranks are alike) or another network.
    """
    with h5py.File(path, "r", locking=False) as file:
        ranks = int(file.attrs["ranks"])
        if not algorithm.replicated and ranks != host.size:
            raise UsageError(f"{path}: holds {ranks} different models, one a rank, and this run has {host.size} ranks; "
                             f"resume it with {ranks}")
        group = file["rank0" if algorithm.replicated else f"rank{host.rank}"]
        if group["x"].shape != x.shape:
            raise UsageError(f"{path}: holds a network of {group['x'].size} numbers; this one has {x.size}")
        group["x"].read_direct(x)
        group["v"].read_direct(sgd.v)
        for name in algorithm.keeps:
            setattr(algorithm, name, group["keeps"][name][()])
        return int(file.attrs["step"]), json.loads(file.attrs["totals"])


def _gathered(host: Host, x: Array, sgd: LocalSgd, algorithm: Algorithm) -> Iterator[tuple[str, Array]]:
    """On the root: name and content of each dataset, valid until the next; every rank takes part in each."""
    parts = {"x": x, "v": sgd.v, **{f"keeps/{name}": np.asarray(getattr(algorithm, name)) for name in algorithm.keeps}}
    for name, array in parts.items():
        own = np.atleast_1d(array)
        every = [own] if algorithm.replicated else host.gather_arrays(own)
        for rank, theirs in enumerate(every):
            if host.rank == 0:
                yield f"rank{rank}/{name}", theirs.reshape(array.shape)


def _read_all(path: Path) -> None:
    """OSError if anything in the file cannot be read or does not match its checksum."""
    with h5py.File(path, "r", locking=False) as file:
        if file.attrs.get("format") != FORMAT:
            raise OSError(f"expected checkpoint format {FORMAT}, found {file.attrs.get('format')}")

        def read(name: str, item: h5py.Dataset | h5py.Group) -> None:
            if isinstance(item, h5py.Dataset):
                item[()]

        file.visititems(read)
