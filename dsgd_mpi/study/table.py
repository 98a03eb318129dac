"""What a study says, as a table: for each group of runs that differ in their seed, means with their spread.

The spread is the sample's standard deviation; n is the number of runs. Times are those of training,
without evaluations.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from rich.table import Table

from dsgd_mpi.study.plan import Study
from dsgd_mpi.study.results import Outcome, Reached, Result

COLUMNS = ("algorithm", "ranks", "of", "n", "lr", "at_edge", "diverged", "accuracy", "accuracy_sd", "reached", "epochs",
           "epochs_sd", "steps", "steps_sd", "images", "seconds", "seconds_sd", "images_per_s", "images_per_s_sd",
           "compute_s", "wait_s", "data_s", "other_s", "simulated")


class Spread(NamedTuple):
    """Of some numbers: their mean, standard deviation (nan of one) and count."""

    mean: float
    sd: float
    n: int


def spread(values: Iterable[float]) -> Spread:
    found = list(values)
    return Spread(mean(found) if found else math.nan, stdev(found) if len(found) > 1 else math.nan, len(found))


def of(outcome: Outcome, what: Callable[[Result], float]) -> Spread:
    return spread(what(result) for result in outcome.results)


def to_target(study: Study, outcome: Outcome, what: Callable[[Reached], float]) -> Spread:
    """Over the runs that reached the target."""
    if study.target is None:
        return spread([])
    found = [result.reached(study.target) for result in outcome.results]
    return spread(what(each) for each in found if each)


def row_of(study: Study, outcome: Outcome) -> dict[str, Any]:
    """One line of the table; nan where there is nothing to say."""
    accuracy, rate = of(outcome, lambda each: each.accuracy), of(outcome, lambda each: each.images_per_s)
    epochs, steps, images, seconds = (to_target(study, outcome, what) for what in (
        lambda at: at.epochs, lambda at: at.steps, lambda at: at.images, lambda at: at.seconds))
    split = {f"{key}_s": of(outcome, lambda each, key=key: each.split()[key]).mean      # type: ignore[misc]
             for key in ("compute", "wait", "data", "other")}
    return {"algorithm": outcome.group.label, "ranks": outcome.group.ranks, "of": ", ".join(
                outcome.group.facet.values()),
            "n": len(outcome.results), "lr": math.nan if outcome.lr is None else outcome.lr, "at_edge": outcome.at_edge,
            "diverged": sum(each.diverged for each in outcome.results),
            "accuracy": accuracy.mean, "accuracy_sd": accuracy.sd, "reached": epochs.n,
            "epochs": epochs.mean, "epochs_sd": epochs.sd, "steps": steps.mean, "steps_sd": steps.sd,
            "images": images.mean, "seconds": seconds.mean, "seconds_sd": seconds.sd,
            "images_per_s": rate.mean, "images_per_s_sd": rate.sd, **split,
            "simulated": outcome.group.cell.place is not None}


def table_of(study: Study, outcomes: list[Outcome]) -> Table:
    """For reading."""
    simulated = any(outcome.group.cell.place for outcome in outcomes)
    target = f" to {study.target:.0%}" if study.target else ""
    table = Table(title=f"{study.name}{': simulated' if simulated else ''}; mean +- standard deviation over n runs",
                  title_justify="left")
    for heading in ("algorithm", "ranks", "of"):
        table.add_column(heading, overflow="fold")
    for heading in ("n", "rate", "accuracy", f"epochs{target}", f"steps{target}",
                    f"{'simulated s' if simulated else 's'}{target}", "images/s", "compute", "wait", "data"):
        if target or heading not in ("epochs", "steps", "simulated s", "s"):
            table.add_column(heading, justify="right")
    edges = 0
    for outcome in outcomes:
        row = row_of(study, outcome)
        edges += row["at_edge"]
        whole = sum(row[f"{key}_s"] for key in ("compute", "wait", "data", "other"))
        part = [f"{row[f'{key}_s'] / whole:.0%}" if whole > 0 else "-" for key in ("compute", "wait", "data")]
        n = f"{row['n']}" + (f" ({row['diverged']} diverged)" if row["diverged"] else "")
        reached = [told(row, key) + (f" ({row['reached']} of {row['n']})" if 0 < row["reached"] < row["n"] else "")
                   for key in ("epochs", "steps", "seconds")] if study.target else []
        table.add_row(row["algorithm"], str(row["ranks"]), row["of"], n, "-" if math.isnan(row["lr"]) else
                      f"{row['lr']:g}{' (edge)' if row['at_edge'] else ''}", told(row, "accuracy", 100, "%"), *reached,
                      told(row, "images_per_s"), *part)
    if edges:
        table.caption = f"edge: the best of the rates of {edges} groups is the lowest or highest of those tried"
    return table


def told(row: dict[str, Any], key: str, times: float = 1, unit: str = "") -> str:
    """mean +- sd with as many digits as they are worth."""
    middle, sd = times * row[key], times * row[f"{key}_sd"]
    if math.isnan(middle):
        return "-"
    if math.isnan(sd):
        return f"{digits(middle, abs(middle) / 100)}{unit}"
    return f"{digits(middle, sd)} +- {digits(sd, sd)}{unit}"


def digits(value: float, sd: float) -> str:
    """Two of the standard deviation, at most four after the point."""
    places = min(4, max(0, 1 - math.floor(math.log10(sd)))) if sd > 0 else 1
    return f"{value:,.{places}f}"


def write_table(study: Study, outcomes: list[Outcome], path: Path) -> None:
    """All figures as CSV; what is not known is empty."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for outcome in outcomes:
            writer.writerow({key: "" if isinstance(value, float) and math.isnan(value) else value
                             for key, value in row_of(study, outcome).items()})
