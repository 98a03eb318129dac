"""How throughput grows with the number of ranks, and its fraction of ideal linear scaling.

Each kind of run (an algorithm with its settings) is measured against itself on the fewest ranks that it ran on, of
weak scaling: a rank's batch stays as it is.
"""

from __future__ import annotations

import csv
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

from dsgd_mpi.study.style import COLOURS, DASHES, MARKERS, STYLE, WIDTH


class Rate(NamedTuple):
    """One run."""

    label: str
    ranks: int
    images_per_s: float


class Scaled(NamedTuple):
    """Repeated runs, averaged."""

    label: str
    ranks: int
    runs: int
    images_per_s: float                     # the mean
    least: float
    most: float
    efficiency: float                       # images/s per rank, relative to those on the fewest ranks


def scaled(rates: list[Rate]) -> list[Scaled]:
    """Sorted by label and ranks."""
    found = []
    for label, alike in groupby(sorted(rates), key=lambda rate: rate.label):
        base = None
        for ranks, group in groupby(alike, key=lambda rate: rate.ranks):
            values = [rate.images_per_s for rate in group]
            mean = sum(values) / len(values)
            base = base or mean / ranks
            found.append(Scaled(label, ranks, len(values), mean, min(values), max(values), mean / ranks / base))
    return found


def write_scaling(found: list[Scaled], path: Path) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Scaled._fields)
        writer.writerows(found)


def draw_scaling(found: list[Scaled], title: str, path: Path) -> None:
    """Images/s, with bars from the slowest to the fastest repetition, next to efficiency, both against ranks."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # log-in nodes have no display
    from matplotlib.figure import Figure

    kinds = [(label, list(points)) for label, points in groupby(found, key=lambda each: each.label)]
    columns = max(1, min(4, len(kinds), int(13 * WIDTH) // (max(len(label) for label, _ in kinds) + 9)))
    with style.context(["default", STYLE]):
        figure = Figure((WIDTH, 4.2 + 0.22 * -(-(len(kinds) + 1) // columns)), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2)
        lines = [draw_kind(points, panels, index) for index, (_, points) in enumerate(kinds)]
        lines.append(draw_ideal(found, panels))
        set_axes(found, panels)
        texts = [figure.suptitle(title, fontsize="medium")]
        texts += figure.legend(lines, [*(fill(label or "images/s", 100) for label, _ in kinds), "ideal"],
                               loc="outside lower center", ncols=columns, frameon=False, handlelength=3).get_texts()
        for text in texts:
            text.set_parse_math(False)
        figure.savefig(path, format="png")


def draw_kind(points: list[Scaled], panels: Any, index: int) -> Any:
    """One kind of run into both panels; a line for the legend."""
    look = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 5,
            "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}
    ranks = [point.ranks for point in points]
    below = [point.images_per_s - point.least for point in points]
    above = [point.most - point.images_per_s for point in points]
    panels[1].plot(ranks, [100 * point.efficiency for point in points], **look)
    return panels[0].errorbar(ranks, [point.images_per_s for point in points], (below, above), capsize=3, **look)


def draw_ideal(found: list[Scaled], panels: Any) -> Any:
    """From the fastest on the fewest ranks on."""
    fewest, most = min(each.ranks for each in found), max(each.ranks for each in found)
    start = max(each.images_per_s for each in found if each.ranks == fewest)
    panels[1].axhline(100, color="grey", linestyle="--", linewidth=1, zorder=1)
    return panels[0].plot([fewest, most], [start, start * most / fewest], color="grey", linestyle="--", linewidth=1,
                          zorder=1)[0]


def set_axes(found: list[Scaled], panels: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ticks = sorted({each.ranks for each in found})
    for panel, label in zip(panels, ("images/s", "efficiency (%)"), strict=True):
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks, list(map(str, ticks)))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel("ranks")
        panel.set_ylabel(label)
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    panels[0].yaxis.set_minor_locator(NullLocator())
    panels[1].set_ylim(bottom=0)
