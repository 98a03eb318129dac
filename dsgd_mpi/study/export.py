"""A study in forms that other programs read.

    extrap*.txt     Extra-P's text format: a step's parts in seconds against ranks, an algorithm a region
    values.txt      `name: value` lines, for programs that search for a figure by its name
    runs.csv        ranks, global batch, images/s, epochs and minutes to the target, as MLPerf tables list them
"""

from __future__ import annotations

import csv
import itertools
import math
import re
from pathlib import Path

from dsgd_mpi.study.plan import Study
from dsgd_mpi.study.results import Outcome
from dsgd_mpi.study.table import row_of

PARTS = ("compute", "wait", "data", "other")
FIGURES = ("accuracy", "epochs", "steps", "seconds", "images_per_s", "compute_s", "wait_s", "data_s", "other_s")
COLUMNS = ("algorithm", "of", "ranks", "global_batch", "images_per_s", "epochs_to_target", "minutes_to_target", "runs")


def slug(*words: str) -> str:
    """Of a file or a figure."""
    return "-".join(part for word in words if (part := re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-")))


def facet_of(outcome: Outcome) -> str:
    return ", ".join(outcome.group.facet.values())


def extrap(outcomes: list[Outcome]) -> str:
    """Of one facet. A region without a result on some number of ranks is left out: the format has no gaps.

    The measure of a point is a line of DATA, the runs with several seeds its repetitions.
    """
    ranks = sorted({outcome.group.ranks for outcome in outcomes})
    lines = ["# seconds of a step, the mean over ranks", "PARAMETER ranks", f"POINTS {' '.join(map(str, ranks))}"]
    by_label: dict[str, dict[int, Outcome]] = {}
    for outcome in outcomes:
        if outcome.results:
            by_label.setdefault(outcome.group.label, {})[outcome.group.ranks] = outcome
    for part in ("step", *PARTS):
        for label, known in by_label.items():
            if len(known) < len(ranks):
                continue
            lines += [f"METRIC {part}_s", f"REGION {slug(label)}"]
            for each in ranks:
                splits = [result.split() for result in known[each].results]
                values = [sum(split.values()) if part == "step" else split[part] for split in splits]
                lines.append("DATA " + " ".join(f"{value:.9g}" for value in values))
    return "\n".join(lines) + "\n"


def values(study: Study, outcomes: list[Outcome]) -> str:
    """Names are STUDY.ALGORITHM.RANKS[.FACET].FIGURE; what is not known has no line."""
    lines = []
    for outcome in outcomes:
        row = row_of(study, outcome)
        name = ".".join(part for part in (study.name, slug(row["algorithm"]), str(row["ranks"]),
                                          slug(facet_of(outcome))) if part)
        lines.append(f"{name}.n: {row['n']}")
        lines += [f"{name}.{key}: {row[key]:.6g}" for key in FIGURES if not math.isnan(row[key])]
    return "\n".join(lines) + "\n"


def write_all(study: Study, outcomes: list[Outcome], folder: Path) -> list[Path]:
    """The paths of what was written. OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / "values.txt", folder / "runs.csv"]
    made[0].write_text(values(study, outcomes), encoding="utf-8")
    with open(made[1], "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for outcome in outcomes:
            row = row_of(study, outcome)
            found = (row["images_per_s"], row["epochs"], row["seconds"] / 60)
            writer.writerow((row["algorithm"], row["of"], row["ranks"], outcome.group.cell.config.batch * row["ranks"],
                             *("" if math.isnan(each) else f"{each:.6g}" for each in found), row["n"]))
    for facet, group in itertools.groupby(sorted(outcomes, key=facet_of), key=facet_of):
        path = folder / f"{slug('extrap', facet)}.txt"
        path.write_text(extrap(list(group)), encoding="utf-8")
        made.append(path)
    return made
