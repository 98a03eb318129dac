"""One rank's file of a checkpoint: how it is written, and whether it is whole and the state that this run needs.

    x           (size,) the flat vector: weights, then running statistics
    optimizer/  its state by name: v (parameters,) is SGD's momentum
    keeps/      the rest of the algorithm's state
    kernels/    the kernels' state: the loss scale in float16
    totals      JSON, a list: what each rank has counted whose file this is: its own rank, or all where one file is for
                all; the losses since the last evaluation are among it
    attributes  format, step, ranks, workers (ranks that train), algorithm, optimizer, seed, config (TOML), data (JSON),
                shared_out (whether steps are counted over all ranks together), course (images of a step, of an epoch,
                and of a step at the beginning; workers at the beginning; images drawn)

Format 2 had the totals of one rank, as an attribute, and neither workers, data nor course. Format 1 supported no
optimizer but SGD, and had its v next to x. Both can still be read. Nothing is believed of a
file before it was checked, and nothing of a run is changed before all of the file was.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dsgd_mpi.algorithms import Algorithm
from dsgd_mpi.arrays.flat import Array, beside, fill, finite, to_numpy
from dsgd_mpi.arrays.hdf5 import Memory, digest_if_same, place
from dsgd_mpi.arrays.strict import to_json
from dsgd_mpi.optim.api import Optimizer

FORMAT = 3
OLDER = 1, 2
READ_BYTES = 1 << 20                        # at a time, for a digest
MOST_RANKS = 1 << 20                        # that any run has had
ROOM_BYTES = 1 << 16                        # of a file, for all but large arrays


class Unfit(Exception):
    """Why a run cannot go on from a file."""


@dataclass
class State:
    """All of a rank that a checkpoint holds. `kernels`: their state, `Kernels.state`."""

    x: Array
    optimizer: Optimizer
    algorithm: Algorithm
    kernels: Mapping[str, Array]


@dataclass(frozen=True)
class Saved:
    """What a file holds, as NumPy arrays by their names in it; whole, but not yet known to fit a run."""

    step: int
    ranks: int
    about: dict[str, Any]                   # the other attributes
    totals: list[dict[str, Any]]
    arrays: dict[str, Array]


def image(memory: Memory, attributes: Mapping[str, Any], totals: list[dict[str, Any]], state: State) -> Array:
    """A file of a copy of the state, as it is to be written: uint8 (bytes,), in place of what the memory held before.

    OSError if a number in it is not finite.
    HDF5 copies once, as fast as memory allows, since nothing is in chunks; damage is found by the file's SHA-256.
    """
    arrays = {"x": state.x, **{f"optimizer/{name}": array for name, array in state.optimizer.state.items()},
              **{f"keeps/{name}": getattr(state.algorithm, name) for name in state.algorithm.keeps},
              **{f"kernels/{name}": array for name, array in state.kernels.items()}}
    text = to_json(totals).encode()
    memory.clear(ROOM_BYTES + len(text) + sum(getattr(array, "nbytes", 0) for array in arrays.values()))
    with h5py.File(memory, "w") as file:
        file.attrs.update({**attributes, "format": FORMAT, "optimizer": state.optimizer.name})
        file["totals"] = np.frombuffer(text, np.uint8)
        for name, array in arrays.items():
            values = np.asarray(to_numpy(array))
            if values.dtype.kind == "f" and not finite(values):
                raise OSError(f"{name} holds numbers that are not finite")
            file[name] = values
    return memory.content()


def write(path: Path, content: Array) -> str:
    """Writes an image to a file, whole or not at all, and reads it back; its SHA-256. OSError."""
    return place(path, content, partial(digest_if_same, content=content))


def digest(path: Path) -> str:
    """The SHA-256 of a file. OSError."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(READ_BYTES):
            found.update(part)
    return found.hexdigest()


def read(path: Path, step: int, expected: str | None = None) -> Saved:
    """All of a file in the folder of that step, whose SHA-256 is `expected` if that is known; Unfit says what is wrong.

    A file whose digest is right is as it was written. Of others, HDF5 may stumble over any byte, in many ways.
    """
    must_be_file(path)
    try:
        if expected and digest(path) != expected:
            raise OSError("it is not as it was written: its SHA-256 differs")
        with h5py.File(path, "r", locking=False) as file:
            return _content(file, step)
    except Unfit as why:
        raise Unfit(f"{path.name} {why}" if str(why).startswith("holds") else f"{path.name}: {why}") from None
    except FileNotFoundError:
        raise Unfit(f"{path.name} is missing") from None
    except Exception as error:              # of h5py: OSError, KeyError, RuntimeError, ValueError, TypeError ...
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise Unfit(f"{path.name} cannot be read back: {first}") from None


def must_be_file(path: Path) -> None:
    """Unfit if something else has that name: to open a pipe would wait for ever, and a device may have no end."""
    if os.path.lexists(path) and not path.is_file():
        raise Unfit(f"{path.name} is no file")


def _content(file: h5py.File, step: int) -> Saved:
    about = {key: value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
             for key, value in file.attrs.items()}
    if about.get("format") not in (*OLDER, FORMAT):
        raise Unfit(f"expected checkpoint format {FORMAT}, or {' or '.join(map(str, OLDER))}, "
                    f"found {about.get('format')}")
    found, ranks = _whole(about, "step"), _whole(about, "ranks")
    if found != step:
        raise Unfit(f"holds step {found}, but is in the folder of step {step}")
    if not 1 <= _whole({"workers": ranks, **about}, "workers") <= ranks <= MOST_RANKS:
        raise Unfit(f"attributes ranks and workers are damaged: {ranks} and {about.get('workers')}")
    course = about.get("course", [1] * 5)
    if not (isinstance(course, list) and len(course) == 5 and all(isinstance(each, int) for each in course)
            and min(course) >= 0 < min(course[:4]) and course[1] >= course[2]):
        raise Unfit(f"attribute course is damaged: {course!r}")
    arrays: dict[str, Array] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "biuf":
            if item.nbytes > max(file.id.get_filesize(), READ_BYTES):
                raise Unfit(f"dataset {name} of {item.shape} is larger than the file")
            arrays["optimizer/v" if about["format"] == 1 and name == "v" else name] = item[()]

    file.visititems(visit)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise Unfit(f"dataset {name} holds numbers that are not finite")
    text = about.get("totals") if about["format"] in OLDER else arrays.pop("totals", None)
    if text is None:
        raise Unfit("totals are missing")
    totals = json.loads(text if isinstance(text, str) else text.astype(np.uint8).tobytes())
    totals = [totals] if about["format"] in OLDER else totals
    if not isinstance(totals, list) or len(totals) not in (1, ranks) or not all(map(_is_record, totals)):
        raise Unfit(f"totals are no record of a run: {to_json(totals)[:40]}")
    return Saved(found, ranks, about, totals, arrays)


def _whole(about: Mapping[str, Any], name: str) -> int:
    """An attribute that is a whole number, not negative."""
    value = about.get(name)
    if not isinstance(value, int) or value < 0:
        raise Unfit(f"attribute {name} is missing" if value is None else
                    f"attribute {name}: expected a whole number, at least 0, found {value!r}")
    return int(value)


def _is_record(totals: Any) -> bool:
    """Whether it is what a rank counts, as `Record.totals` gives it, or as an older version did: a part of that."""
    if not isinstance(totals, dict):
        return False
    stale, losses = totals.get("staleness_counts", {}), totals.get("line_losses", [])
    epoch_loss = totals.get("epoch_loss", [0.0, 0])
    others = ("staleness_counts", "line_losses", "epoch_loss", "dead")
    counts = [value for key, value in totals.items() if key not in others and (key, value) != ("peak_lr", None)]
    return (isinstance(stale, dict) and all(re.fullmatch(r"\d{1,18}", key) for key in stale)
            and isinstance(losses, list) and isinstance(epoch_loss, list) and len(epoch_loss) == 2
            and isinstance(totals.get("dead", []), list)
            and all(map(_is_number, (*losses, *epoch_loss, *stale.values(), *counts)))
            and min((0, epoch_loss[1], *stale.values(), *counts)) >= 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and isfinite(value)


def check(saved: Saved, state: State) -> None:
    """Unfit unless a file holds all of the state, each array in its shape."""
    algorithm, own, about = state.algorithm, state.optimizer, saved.about
    shape = saved.arrays["x"].shape if "x" in saved.arrays else None
    if shape and shape != state.x.shape:
        raise Unfit(f"it holds a network of {saved.arrays['x'].size} elements; this run's has {state.x.size}")
    name = about.get("optimizer", "sgd")
    if name != own.name:
        raise Unfit(f"expected the state of {own.name}, found that of {name}; resume with --optimizer {name}")
    for name, array in {"x": state.x, **{f"optimizer/{name}": array for name, array in own.state.items()}}.items():
        _check_shape(saved, name, array.shape)
    for name in algorithm.keeps:
        kept = saved.arrays.get(f"keeps/{name}")
        if kept is None or kept.ndim != np.ndim(getattr(algorithm, name)):
            raise Unfit(f"dataset keeps/{name} is missing" if kept is None else
                        f"dataset keeps/{name} has another shape, {kept.shape}")
    for name, array in state.kernels.items():
        if f"kernels/{name}" in saved.arrays:
            _check_shape(saved, f"kernels/{name}", array.shape)


def _check_shape(saved: Saved, name: str, shape: tuple[int, ...]) -> None:
    found = saved.arrays.get(name)
    if found is None:
        raise Unfit(f"dataset {name} is missing")
    if found.shape != shape:
        raise Unfit(f"dataset {name}: expected the shape {shape}, found {found.shape}")


def put_back(saved: Saved, state: State) -> None:
    """Overwrites the state by what a file that was checked holds; kernel state that it does not hold is left alone."""
    fill(state.x, saved.arrays["x"])
    for name, array in state.optimizer.state.items():
        fill(array, saved.arrays[f"optimizer/{name}"])
    for name in state.algorithm.keeps:
        kept = saved.arrays[f"keeps/{name}"]
        setattr(state.algorithm, name, beside(state.x, kept) if kept.shape else kept)
    for name, array in state.kernels.items():
        if f"kernels/{name}" in saved.arrays:
            fill(array, saved.arrays[f"kernels/{name}"])
