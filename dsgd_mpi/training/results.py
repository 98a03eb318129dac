"""What becomes of a run's folder when the run is resumed: its configuration, and what a finished run still lacks.

`config.toml` is what is being run: a run that is lengthened says so there, and a later `--resume` without options goes
on to the new end. A run may be killed between its last checkpoint and its results; resumed, it makes what is missing.
"""

from __future__ import annotations

import csv
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py

from dsgd_mpi.config import OF_A_START, Config
from dsgd_mpi.files import read_text, regular
from dsgd_mpi.training.output import write_whole
from dsgd_mpi.training.rankfile import must_be_file

log = logging.getLogger("dsgd_mpi")


def keep_config(folder: Path, config: Config) -> None:
    """Makes config.toml what is being run, at once or not at all; a file system that refuses gets a warning."""
    path = folder / "config.toml"
    text = replace(config, out=str(folder), resume=None, resume_as="same", **OF_A_START).to_toml()
    try:
        if read_text(path, errors="replace") != text:
            write_whole(path, text)
    except OSError as error:
        log.warning("%s does not tell what is run now: %s", path, error)


def lacking(folder: Path, step: int) -> tuple[list[str], dict[str, Any]]:
    """Which results a run lacks whose last checkpoint is of `step`, its end; and its row of summary.csv, or {}."""
    row, summary = row_of(folder, step), summary_of(folder)
    finished = summary.get("status") == "finished" and summary.get("steps") == step
    lacks = {"summary.csv": not row, "summary.json": not finished,
             "model.h5": model_step(folder / "model.h5", step if finished else None) != step}
    return [name for name, missing in lacks.items() if missing], row


def row_of(folder: Path, step: int) -> dict[str, Any]:
    """The row of summary.csv of that step; {} if there is none."""
    try:
        with open(folder / "summary.csv", newline="", encoding="utf-8", opener=regular) as file:
            rows = [row for row in csv.DictReader(file) if row.get("step") == str(step)]
            return {key: value_of(text) for key, text in rows[-1].items() if key} if rows else {}
    except (OSError, ValueError, csv.Error):
        return {}


def value_of(text: Any) -> Any:
    """A number if a cell is one, None if it is empty."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text


def summary_of(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(folder / "summary.json"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def model_step(path: Path, before: int | None) -> int | None:
    """The step whose model a file holds; `before` for those of older versions, which do not say; None if damaged."""
    try:
        must_be_file(path)
        with h5py.File(path, "r", locking=False) as file:
            return int(file.attrs["step"]) if "step" in file.attrs else before
    except Exception:                       # of h5py, for a file that is none or is damaged: many
        return None
