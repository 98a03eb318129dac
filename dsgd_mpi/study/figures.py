"""What a study shows, one set of pictures for each of its facets (all axes but algorithm and ranks), as PNG and PDF.

    curves    accuracy and loss over epochs, images and time, on the most ranks
    target    time to the target accuracy against ranks, and where asynchronous and synchronous training cross
    scaling   images/s against ranks with the ideal line, and efficiency: weak, or strong where the total batch is fixed
    speedup   throughput x statistical efficiency = speed-up, each against ranks
    split     what a step's time goes to, by ranks
    spread    staleness of one-sided updates, and how far apart the ranks' models are: over time, and at the end

A method's throughput and efficiency are relative to all-reduce's, or the first algorithm's, on the fewest ranks:
throughput is images per second, statistical efficiency the images that all-reduce needed there to the target, divided
by its own. Their product is how much sooner it gets there. All figures are in study.csv, too.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from dsgd_mpi import algorithms
from dsgd_mpi.study.export import slug
from dsgd_mpi.study.plan import Study
from dsgd_mpi.study.results import Outcome, Result
from dsgd_mpi.study.style import COLOURS, DASHES, MARKERS, STYLE, canvas
from dsgd_mpi.study.table import Spread, of, to_target, write_table

SPLIT = {"compute": ("computing", COLOURS[0]), "wait": ("waiting: for ranks and data", COLOURS[1]),
         "data": ("loading images", COLOURS[4]), "other": ("one-sided calls, and the rest", COLOURS[2])}
BINS = 10                                   # of a histogram
OVER = {"epochs": "epoch", "images": "images", "seconds": "training_s"}


def draw_study(study: Study, outcomes: list[Outcome], folder: Path) -> list[Path]:
    """All pictures for which there are results; their paths."""
    from matplotlib import style

    folder.mkdir(parents=True, exist_ok=True)
    write_table(study, outcomes, folder / "study.csv")
    made = [folder / "study.csv"]
    done = [outcome for outcome in outcomes if outcome.results]
    key = lambda outcome: tuple(sorted(outcome.group.facet.items()))    # noqa: E731
    with style.context(["default", STYLE]):
        for facet, group in itertools.groupby(sorted(done, key=key), key=key):
            every = list(group)
            simulated = ", simulated" if every[0].group.cell.place else ""
            title = f"{study.name}{': ' if facet else ''}{', '.join(value for _, value in facet)}{simulated}"
            name = slug(*(value for _, value in facet))
            for what, draw in (("curves", curves), ("target", target), ("scaling", scaling), ("speedup", speedup),
                               ("split", split), ("spread", spread_of)):
                figure = draw(study, every)
                if figure is None:
                    continue
                made += saved(figure, title, folder / "-".join(part for part in (what, name) if part))
    return made


def saved(figure: Any, title: str, path: Path) -> list[Path]:
    """As PNG and PDF, under that name; their paths."""
    figure.suptitle(title, fontsize="medium", parse_math=False)
    made = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "pdf")]
    for each in made:
        figure.savefig(each, dpi=150, metadata={"CreationDate": None} if each.suffix == ".pdf" else None)
    return made


def by_label(outcomes: Iterable[Outcome]) -> list[tuple[str, list[Outcome]]]:
    """In the order of the file; fewer ranks first."""
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.group.label, []).append(outcome)
    return [(label, sorted(each, key=lambda outcome: outcome.group.ranks)) for label, each in found.items()]


def look(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)],
            "linestyle": DASHES[index // len(COLOURS) % len(DASHES)], "markersize": 5}


def legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    for text in figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False,
                              handlelength=3).get_texts():
        text.set_parse_math(False)


def synchronous(outcome: Outcome) -> bool:
    """Whether every step waits for all ranks."""
    way = outcome.group.cell.way
    return algorithms.build(way.name, {key: str(value) for key, value in way.given().items()}).one_model


def base_of(outcomes: list[Outcome]) -> Outcome:
    """All-reduce on the fewest ranks; or the first algorithm, if there is none."""
    pairs = by_label(outcomes)
    return next((each[0] for _, each in pairs if synchronous(each[0])), pairs[0][1][0])


def drawn(axes: Any, points: list[tuple[int, Spread]], **how: Any) -> None:
    """Against ranks, with the standard deviation where there are several runs."""
    known = [(ranks, each) for ranks, each in points if not math.isnan(each.mean)]
    if known:
        axes.errorbar([ranks for ranks, _ in known], [each.mean for _, each in known],
                      [0 if math.isnan(each.sd) else each.sd for _, each in known], capsize=2, **how)


def against_ranks(axes: Any, outcomes: list[Outcome], log: bool = True) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
    ranks = sorted({outcome.group.ranks for outcome in outcomes})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(each) for each in ranks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("ranks")
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.6g}"))


def curves(study: Study, outcomes: list[Outcome]) -> Any:
    most = max(outcome.group.ranks for outcome in outcomes)
    shown = [outcome for outcome in outcomes if outcome.group.ranks == most]
    if not any(result.rows or result.curve["step"] for outcome in shown for result in outcome.results):
        return None
    figure, axes = canvas(2, 3, 6.4)
    for index, outcome in enumerate(shown):
        for number, result in enumerate(outcome.results):
            label = outcome.group.label if number == 0 else None
            plain = {"color": look(index)["color"], "linestyle": look(index)["linestyle"], "linewidth": 1.2}
            points, curve = result.points(), result.curve
            columns = {"epochs": [at.epochs for at in points], "images": [at.images for at in points],
                       "seconds": [at.seconds for at in points]}
            per_epoch = result.summary["images"] / (result.summary.get("epochs") or math.nan)
            losses = {"epochs": curve["epoch"], "images": [each * per_epoch for each in curve["epoch"]],
                      "seconds": curve["training_s"]}
            for panel, over in enumerate(OVER):
                axes[0][panel].plot(columns[over], [100 * (row["accuracy"] or 0) for row in result.rows], label=label,
                                    marker=look(index)["marker"], markersize=3, **plain)
                axes[1][panel].plot(losses[over], curve["loss"], **plain)
                axes[1][panel].set_xlabel(over if over != "seconds" or not outcome.group.cell.place
                                          else "simulated seconds")
    for row in axes:                        # few ticks: numbers of images are long
        row[1].locator_params(axis="x", nbins=4)
        row[1].xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.10g}k" if value else "0")
    axes[0][0].set_ylabel("test accuracy, %")
    axes[1][0].set_ylabel("training loss")
    axes[0][1].set_title(f"on {most} ranks", fontsize="medium")
    legend(figure, axes[0][0])
    return figure


def target(study: Study, outcomes: list[Outcome]) -> Any:
    if study.target is None or not any(result.reached(study.target) for each in outcomes for result in each.results):
        return None
    figure, ((axes,),) = canvas(1, 1, 4.6)
    for index, (label, each) in enumerate(by_label(outcomes)):
        drawn(axes, [(outcome.group.ranks, to_target(study, outcome, lambda at: at.seconds)) for outcome in each],
              label=label, **look(index))
    against_ranks(axes, outcomes)
    axes.set_ylabel(f"{'simulated ' if outcomes[0].group.cell.place else ''}seconds to {study.target:.0%}")
    for ranks, _ in crossings(study, outcomes):     # times fall with ranks, so there is room above, to the right
        axes.axvline(ranks, color=COLOURS[6], linewidth=0.8, linestyle=":")
        axes.annotate(f" synchronous and\n asynchronous cross at {ranks:.0f}", (ranks, 0.98), va="top",
                      xycoords=("data", "axes fraction"), fontsize="small")
    legend(figure, axes)
    return figure


def crossings(study: Study, outcomes: list[Outcome]) -> list[tuple[float, float]]:
    """(ranks, seconds) where the fastest asynchronous and the fastest synchronous method take equally long.

    On straight lines between the numbers of ranks, in logarithms of both.
    """
    best: dict[bool, dict[int, float]] = {True: {}, False: {}}
    for outcome in outcomes:
        seconds = to_target(study, outcome, lambda at: at.seconds).mean
        kind, ranks = best[synchronous(outcome)], outcome.group.ranks
        if not math.isnan(seconds):
            kind[ranks] = min(kind.get(ranks, math.inf), seconds)
    found, both = [], sorted(best[True].keys() & best[False].keys())
    lead = {ranks: math.log(best[True][ranks] / best[False][ranks]) for ranks in both}
    for low, high in itertools.pairwise(both):
        if lead[low] * lead[high] < 0:
            part = lead[low] / (lead[low] - lead[high])
            at = [math.log(value) for value in (low, high, best[True][low], best[True][high])]
            found.append((math.exp(at[0] + part * (at[1] - at[0])), math.exp(at[2] + part * (at[3] - at[2]))))
    return found


def scaling(study: Study, outcomes: list[Outcome]) -> Any:
    """Each method relative to itself on the fewest ranks, as `plot` shows run folders."""
    ranks = sorted({outcome.group.ranks for outcome in outcomes})
    if len(ranks) < 2:
        return None
    figure, axes = canvas(1, 2, 4.4)
    best = max(of(outcome, lambda each: each.images_per_s).mean for outcome in outcomes
               if outcome.group.ranks == ranks[0])
    for index, (label, each) in enumerate(by_label(outcomes)):
        rates = [(outcome.group.ranks, of(outcome, lambda each: each.images_per_s)) for outcome in each]
        first = rates[0][1].mean / rates[0][0]
        drawn(axes[0][0], rates, label=label, **look(index))
        drawn(axes[0][1], [(at, scaled(rate, 100 / at / first)) for at, rate in rates], **look(index))
    axes[0][0].plot(ranks, [best * each / ranks[0] for each in ranks], color="0.5", linewidth=0.8, label="ideal")
    axes[0][1].axhline(100, color="0.5", linewidth=0.8)
    for panel, log in zip(axes[0], (True, False), strict=True):
        against_ranks(panel, outcomes, log)
    batches = {outcome.group.cell.config.batch for outcome in outcomes}
    totals = {outcome.group.cell.config.batch * outcome.group.ranks for outcome in outcomes}
    kind = f"weak scaling: {batches.pop()} images a rank" if len(batches) == 1 else \
        f"strong scaling: {totals.pop()} images in total" if len(totals) == 1 else "scaling"
    axes[0][0].set_title(kind, fontsize="medium")
    axes[0][0].set_ylabel("images/s")
    axes[0][1].set_ylabel("efficiency, %")
    axes[0][1].set_ylim(bottom=0)
    legend(figure, axes[0][0])
    return figure


def speedup(study: Study, outcomes: list[Outcome]) -> Any:
    base = base_of(outcomes)
    images, seconds = (to_target(study, base, what).mean for what in (lambda at: at.images, lambda at: at.seconds))
    if math.isnan(images):
        return None
    rate = of(base, lambda each: each.images_per_s).mean
    panels: dict[str, Callable[[Outcome], Spread]] = {
        "throughput": lambda outcome: scaled(of(outcome, lambda each: each.images_per_s), 1 / rate),
        "statistical efficiency": lambda outcome: inverse(to_target(study, outcome, lambda at: at.images), images),
        "speed-up to the target": lambda outcome: inverse(to_target(study, outcome, lambda at: at.seconds), seconds)}
    figure, (axes,) = canvas(1, 3, 4.2)
    ranks = sorted({outcome.group.ranks for outcome in outcomes})
    for panel, (name, value) in zip(axes, panels.items(), strict=True):
        for index, (label, each) in enumerate(by_label(outcomes)):
            drawn(panel, [(outcome.group.ranks, value(outcome)) for outcome in each], label=label, **look(index))
        if name != "statistical efficiency":
            panel.plot(ranks, [each / base.group.ranks for each in ranks], color="0.5", linewidth=0.8, label="ideal")
        against_ranks(panel, outcomes)
        panel.set_title(name, fontsize="medium")
    axes[0].set_ylabel(f"relative to {base.group.label} on {base.group.ranks} ranks")
    legend(figure, axes[0])
    return figure


def scaled(value: Spread, times: float) -> Spread:
    return Spread(value.mean * times, value.sd * times, value.n)


def inverse(value: Spread, of_: float) -> Spread:
    """of_ / value, its deviation to first order."""
    return Spread(of_ / value.mean, of_ * value.sd / value.mean**2, value.n)


def split(study: Study, outcomes: list[Outcome]) -> Any:
    pairs = by_label(outcomes)
    columns = min(4, len(pairs))
    figure, axes = canvas(-(-len(pairs) // columns), columns, 1.2 + 2.6 * -(-len(pairs) // columns))
    panels = [panel for row in axes for panel in row]
    for panel in panels[1:]:
        panel.sharey(panels[0])
    for panel, (label, each) in zip(panels, pairs, strict=False):
        place, bottom = range(len(each)), [0.0] * len(each)
        for key, (told, colour) in SPLIT.items():
            heights = [1000 * of(outcome, lambda result, key=key: result.split()[key]).mean     # type: ignore[misc]
                       for outcome in each]
            panel.bar(place, heights, bottom=bottom, color=colour, width=0.7, label=told)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        panel.set_xticks(place, [str(outcome.group.ranks) for outcome in each])
        panel.set_title(label, fontsize="medium", parse_math=False)
        panel.set_xlabel("ranks")
    for panel in panels[len(pairs):]:
        panel.set_visible(False)
    axes[0][0].set_ylabel("ms a step")
    legend(figure, panels[0])
    return figure


def spread_of(study: Study, outcomes: list[Outcome]) -> Any:
    """On the most ranks on which the methods were run."""
    most = max(outcome.group.ranks for outcome in outcomes)
    shown = [(index, each[-1]) for index, (_, each) in enumerate(by_label(outcomes)) if each[-1].group.ranks == most]
    stale = [(index, outcome, staleness(outcome.results)) for index, outcome in shown]
    apart = [(index, outcome) for index, outcome in shown if any(distances(result) for result in outcome.results)]
    ends = [(index, at_the_end(outcome.results)) for index, outcome in apart]
    parts = [part for part, shown_at_all in (
        (partial(draw_staleness, stale, most), any(found for *_, found in stale)),
        (partial(draw_distances, apart), apart),
        (partial(draw_ends, ends, most), any(found for _, found in ends))) if shown_at_all]
    if not parts:
        return None
    figure, (axes,) = canvas(1, len(parts), 3.8)
    for part, panel in zip(parts, axes, strict=True):
        part(panel)
    handles = {label: handle for panel in axes
               for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def draw_staleness(stale: list[tuple[int, Outcome, Counter[int]]], ranks: int, panel: Any) -> None:
    for index, outcome, counts in stale:
        if counts:
            total, values = counts.total(), sorted(counts)
            panel.step(values, [counts[value] / total for value in values], where="mid", label=outcome.group.label,
                       color=look(index)["color"])
    panel.set(xlabel=f"updates by others since the read,\n{ranks} ranks", ylabel="share of updates", ylim=(0, None))


def draw_distances(apart: list[tuple[int, Outcome]], panel: Any) -> None:
    for index, outcome in apart:
        for number, result in enumerate(outcome.results):
            panel.plot([at.epochs for at in result.points()], distances(result), label=outcome.group.label
                       if number == 0 else None, **{**look(index), "markersize": 3})
    panel.set(xlabel="epochs", ylabel="distance from the mean model", yscale="log")


def draw_ends(ends: list[tuple[int, list[float]]], ranks: int, panel: Any) -> None:
    furthest = max(max(found) for _, found in ends if found)
    for index, found in ends:
        if found:
            panel.hist(found, BINS, range=(0, furthest), weights=[1 / len(found)] * len(found), histtype="step",
                       linewidth=1.5, color=look(index)["color"])
    panel.set(xlabel=f"distance from the mean model\nat the end, {ranks} ranks", ylabel="share of ranks",
              ylim=(0, None))


def staleness(results: Iterable[Result]) -> Counter[int]:
    found: Counter[int] = Counter()
    for result in results:
        found.update({int(stale): count for stale, count in (result.summary.get("staleness_counts") or {}).items()})
    return found


def distances(result: Result) -> list[float]:
    """Of each evaluation; none of a method that keeps one model."""
    found = [row.get("consensus_distance") or 0.0 for row in result.rows]
    return found if any(each > 1e-6 for each in found) else []


def at_the_end(results: Iterable[Result]) -> list[float]:
    """Each rank's distance from the mean model at the last evaluation, of all runs."""
    return [each for result in results for each in result.summary.get("rank_consensus_distance") or ()
            if each is not None]
