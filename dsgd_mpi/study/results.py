"""A cell's small file: what was run, its summary, a row for each evaluation, and a curve of at most `CURVE` points.

They are all that tables and pictures of a study need, so a study is resumed from them, without its run folders.
"""

from __future__ import annotations

import csv
import json
import math
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dsgd_mpi.arrays.strict import to_json
from dsgd_mpi.errors import UsageError
from dsgd_mpi.files import read_text, regular
from dsgd_mpi.study.plan import Cell, Group, Study

CURVE = 40                                  # points of the curve of training losses
DIGITS = 6                                  # of a figure that is kept
LEFT_OUT = ("rank_steps", "staleness_counts", "rank_consensus_distance")    # of a row: the summary has the last
ENDS = ("finished", "diverged")             # of a run that has a result


@dataclass(frozen=True)
class Reached:
    """When a run reached the target accuracy, on the straight line between two evaluations."""

    epochs: float
    steps: float
    images: float
    seconds: float


class Result:
    """What is known of a finished cell."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.config, self.summary = content["config"], content["summary"]
        self.rows, self.curve = content["rows"], content["metrics"]

    @property
    def diverged(self) -> bool:
        return bool(self.summary["status"] == "diverged")

    @property
    def accuracy(self) -> float:
        """At the end; 0 of a run that diverged or does not learn."""
        return 0.0 if self.diverged else self.summary.get("accuracy") or 0.0

    @cached_property
    def training_s(self) -> float:
        """Without evaluations, as `plot` counts it."""
        return (self.summary.get("wall_s") or 0.0) - (self.summary.get("eval_s") or 0.0)

    @property
    def images_per_s(self) -> float:
        """Of all ranks, each at its own speed: who waits for nobody does not wait for the slowest's end."""
        if every := self.summary.get("rank_images_per_s"):
            return float(sum(every))
        return (self.summary.get("images") or 0) / self.training_s if self.training_s else math.nan

    def points(self) -> list[Reached]:
        """Of each evaluation."""
        return [Reached(row["epoch"], row["step"], row["images"], row["wall_s"] - row["eval_s"]) for row in self.rows]

    def reached(self, target: float) -> Reached | None:
        """None if it never did."""
        before, low = Reached(0, 0, 0, 0), 0.0
        for row, point in zip(self.rows, self.points(), strict=True):
            accuracy = row["accuracy"] or 0.0
            if accuracy >= target:
                part = (target - low) / (accuracy - low)
                return Reached(*(old + part * (new - old) for old, new in zip(
                    vars(before).values(), vars(point).values(), strict=True)))
            before, low = point, accuracy
        return None

    def split(self) -> dict[str, float]:
        """Seconds of a step, the mean over ranks: computing; blocked on others, which is communication that nothing
        hides, and waiting; loading data; and the rest. nan if no step was counted.

        What a run counts as waiting includes that of evaluations, which is no part of a step: at most what is left.
        """
        steps = self.summary.get("steps") or math.nan
        compute, wait, data = ((self.summary.get(f"{key}_s") or 0.0) for key in ("compute", "wait", "data"))
        left = max(0.0, self.training_s - compute - data)
        parts = {"compute": compute, "wait": min(wait, left), "data": data, "other": max(0.0, left - wait)}
        return {key: value / steps for key, value in parts.items()}


def file_of(study: Study, cell: Cell) -> Path:
    return study.results / f"{cell.name}.json"


def load(study: Study, cell: Cell) -> Result | None:
    """None if there is none yet, or if it is of a run with other defaults than today's. UsageError if it is damaged."""
    path = file_of(study, cell)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        result = Result(content)
        now = json.loads(to_json(cell.resolved()))
        return result if all(result.config.get(key, now[key]) == now[key] for key in now) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise UsageError(f"{path}: cannot be read or is damaged; remove it, and the study runs that cell again"
                         ) from None


def gather(cell: Cell, folder: Path) -> dict[str, Any] | None:
    """From a run folder; None if there is no finished run in it."""
    try:
        summary = json.loads(read_text(folder / "summary.json"))
        if summary["status"] not in ENDS:
            return None
        rows: list[dict[str, Any]] = []
        if (folder / "summary.csv").exists():
            with open(folder / "summary.csv", encoding="utf-8", newline="", opener=regular) as file:
                rows = [{key: short(number(value)) for key, value in row.items() if key not in LEFT_OUT}
                        for row in csv.DictReader(file)]
        lines = [json.loads(line) for line in read_text(folder / "metrics.jsonl").splitlines()]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None
    return {"config": cell.resolved(), "summary": short(summary), "rows": rows, "metrics": thinned(lines)}


def number(value: str) -> float | int | None:
    """Of a CSV; None where it is empty."""
    if not value:
        return None
    found = float(value)
    return int(found) if found.is_integer() and "." not in value else found


def short(value: Any) -> Any:
    """Figures with `DIGITS` digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: short(each) for key, each in value.items()}
    return [short(each) for each in value] if isinstance(value, list) else value


def thinned(lines: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Columns of at most `CURVE` points: the mean loss of as many lines each, and where the last of them was."""
    found: dict[str, list[Any]] = {"step": [], "epoch": [], "training_s": [], "loss": []}
    size = max(1, math.ceil(len(lines) / CURVE))
    for begin in range(0, len(lines), size):
        some = lines[begin : begin + size]
        losses = [line["loss"] for line in some if line["loss"] is not None]
        if losses:
            last = some[-1]
            for key, value in (("step", last["step"]), ("epoch", last["epoch"]),
                               ("training_s", last["wall_s"] - last["eval_s"]), ("loss", sum(losses) / len(losses))):
                found[key].append(short(value))
    return found


def write(study: Study, cell: Cell, content: dict[str, Any]) -> None:
    """A line for each part, so that a difference can be read; complete, or not there. OSError."""
    path = file_of(study, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = []
    for key, value in content.items():
        rows = ",\n  ".join(to_json(row) for row in value) if key == "rows" else ""
        parts.append(f' "{key}": ' + (f"[{rows}]" if key == "rows" else to_json(value)))
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def reader(study_: Study) -> Callable[[Cell], float | None]:
    """The accuracy of cells, each file read once it is there."""
    known: dict[str, float] = {}

    def accuracy(cell: Cell) -> float | None:
        if cell.hash not in known and (result := load(study_, cell)) is not None:
            known[cell.hash] = result.accuracy
        return known.get(cell.hash)
    return accuracy


@dataclass
class Outcome:
    """What is known of a group: one result for each seed that is done."""

    group: Group
    lr: float | None                        # None: the best is not known yet
    at_edge: bool
    results: list[Result]


def outcomes(study: Study) -> list[Outcome]:
    """Of all groups."""
    known: dict[str, Result | None] = {}

    def of(cell: Cell) -> Result | None:
        if cell.hash not in known:
            known[cell.hash] = load(study, cell)
        return known[cell.hash]

    def accuracy(cell: Cell) -> float | None:
        result = of(cell)
        return None if result is None else result.accuracy
    found = []
    for group in study.groups:
        choice = study.choice(group, accuracy) if study.rates else None
        cells = study.cells(group, accuracy) or []
        lr = choice.lr if choice else None if study.rates else group.cell.config.lr
        found.append(Outcome(group, lr, bool(choice and choice.at_edge), [result for cell in cells
                                                                          if (result := of(cell)) is not None]))
    return found
