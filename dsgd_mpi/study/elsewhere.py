"""What the runs of a study would take on other clusters: `plot --study LEARNED --speeds TIMED`.

    time to the target = images to the target, from a study that learns / images per second, from one that times steps

relative to all-reduce's on as many ranks. It takes for granted that the images needed are the same there: so they are
for methods that wait for all ranks; for others staleness follows the ranks' speeds, which differ little where all are
slowed alike.
"""

from __future__ import annotations

import csv
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

from dsgd_mpi.errors import UsageError
from dsgd_mpi.study.export import facet_of, slug
from dsgd_mpi.study.figures import against_ranks, by_label, drawn, legend, look, saved, synchronous
from dsgd_mpi.study.plan import Study
from dsgd_mpi.study.results import Outcome
from dsgd_mpi.study.style import STYLE, canvas
from dsgd_mpi.study.table import Spread, of, to_target

COLUMNS = ("of", "cluster", "algorithm", "ranks", "images_to_target", "images_per_s", "time_relative_to_all_reduce")
ACROSS = 3                                  # panels


@dataclass(frozen=True)
class Point:
    """Of one algorithm on one cluster."""

    cluster: str
    outcome: Outcome                        # that has learned
    images: Spread
    images_per_s: float
    relative: Spread                        # time to the target, all-reduce's being 1


def points(study: Study, learned: list[Outcome], timed: list[Outcome]) -> list[Point]:
    """Of one facet of what was learned; where all-reduce and the method have reached the target and were timed."""
    speeds = {(each.group.label, each.group.ranks, facet_of(each)): of(each, lambda result: result.images_per_s).mean
              for each in timed if each.results}
    clusters = list(dict.fromkeys(facet for *_, facet in speeds))
    images = {(each.group.label, each.group.ranks): to_target(study, each, lambda at: at.images) for each in learned}
    base = next((each.group.label for each in learned if synchronous(each)), "")
    found = []
    for cluster, outcome in itertools.product(clusters, learned):
        label, ranks = outcome.group.label, outcome.group.ranks
        own, usual = (speeds.get((name, ranks, cluster), math.nan) for name in (label, base))
        needed, reference = images[label, ranks], images.get((base, ranks), Spread(math.nan, math.nan, 0))
        times = usual / own / reference.mean
        if not math.isnan(needed.mean * times):
            found.append(Point(cluster, outcome, needed, own,
                               Spread(needed.mean * times, needed.sd * times, needed.n)))
    return found


def draw(study: Study, learned: list[Outcome], timed: list[Outcome], folder: Path) -> list[Path]:
    """A picture for each facet of what was learned, a panel for each cluster; their paths. UsageError, OSError."""
    from matplotlib import style

    folder.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    rows = []
    for facet, group in itertools.groupby(sorted(learned, key=facet_of), key=facet_of):
        found = points(study, list(group), timed)
        clusters = list(dict.fromkeys(each.cluster for each in found))
        if not found:
            continue
        rows += [(facet, each.cluster, each.outcome.group.label, each.outcome.group.ranks, f"{each.images.mean:.6g}",
                  f"{each.images_per_s:.6g}", f"{each.relative.mean:.4g}") for each in found]
        high = -(-len(clusters) // ACROSS)
        with style.context(["default", STYLE]):
            figure, axes = canvas(high, min(ACROSS, len(clusters)), 1.2 + 3.0 * high)
            panels = [panel for row in axes for panel in row]
            for panel, cluster in zip(panels, clusters, strict=False):
                here = {id(each.outcome): each for each in found if each.cluster == cluster}
                for index, (label, outcomes) in enumerate(by_label(each.outcome for each in found
                                                                   if each.cluster == cluster)):
                    drawn(panel, [(each.group.ranks, here[id(each)].relative) for each in outcomes], label=label,
                          **look(index))
                panel.axhline(1, color="0.5", linewidth=0.8)
                against_ranks(panel, [each.outcome for each in found])
                panel.set_title(cluster, fontsize="medium", parse_math=False)
            for panel in panels[len(clusters):]:
                panel.set_visible(False)
            for row in axes:
                row[0].set_ylabel(f"time to {study.target:.0%},\nall-reduce being 1")
            legend(figure, panels[0])
            made += saved(figure, f"{study.name}{': ' if facet else ''}{facet}, simulated",
                          folder / slug("elsewhere", facet))
    if not made:
        raise UsageError(f"--speeds: expected results of algorithms that {study.name} has too, under the same labels, "
                         "on as many ranks; found none")
    with open(folder / "elsewhere.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return [*made, folder / "elsewhere.csv"]
