"""`plot`: loss and accuracy of runs over epochs (or images) and over time, in one picture, as in Jin et al. 2016.

Runs on several numbers of ranks get a second picture (`scaling`).

Whether a method is better is two questions: what it learns from as much data, and what it learns in as much time.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from dsgd_mpi import algorithms
from dsgd_mpi.config import FIELDS, Config, from_toml
from dsgd_mpi.errors import UsageError
from dsgd_mpi.files import read_text
from dsgd_mpi.study import elsewhere, plan
from dsgd_mpi.study.export import write_all
from dsgd_mpi.study.figures import draw_study
from dsgd_mpi.study.results import Outcome, outcomes
from dsgd_mpi.study.scaling import Rate, draw_scaling, scaled, write_scaling
from dsgd_mpi.study.style import COLOURS, DASHES, MARKERS, STYLE, WIDTH, require_matplotlib

COLUMNS = ("run", "label", "kind", "step", "epoch", "images", "images_applied", "training_s", "value")
OVER = {"epochs": "epoch", "images": "images", "images-applied": "images_applied"}      # axis, and its column


class Point(NamedTuple):
    """A value at one moment of a run. Time is that of training, in seconds: without evaluations, but with the averaging
    that makes the model to be evaluated. Old runs counted that as evaluation.

    Images are those of all ranks so far: whose gradients were computed, and whose were applied; nan: not known.
    """

    step: int
    epoch: float
    training_s: float
    images_per_s: float
    value: float
    images: float = math.nan
    images_applied: float = math.nan


@dataclass
class Run:
    """What a run folder holds of one run, finished or not."""

    folder: Path
    config: Config
    ranks: int | None                       # None: not known
    status: str                             # finished, stopped (on request), diverged, or unfinished (killed, going on)
    options: dict[str, Any]                 # the algorithm's, defaults included
    losses: list[Point]                     # of rank 0's share of the training set
    accuracies: list[Point]                 # 0 to 1, on the test set
    label: str = ""

    def last(self) -> Point:
        """The newest evaluation, or the newest line if there was none."""
        return (self.accuracies or self.losses)[-1]


@click.command()
@click.argument("runs", nargs=-1, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--study", metavar="FILE|FOLDER", type=click.Path(path_type=Path),
              help="Draw a study instead: its file, or the folder of its results.")
@click.option("--extrap", is_flag=True, help="With --study: write its figures for other programs, too: for Extra-P, as "
              "a table, and as name: value lines.")
@click.option("--speeds", metavar="FILE|FOLDER", type=click.Path(path_type=Path), help="With --study: another study "
              "that times the same algorithms; draw what the first one's runs would take on its clusters.")
@click.option("--target", metavar="ACCURACY", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="With --study: another accuracy than its file's whose time is compared.")
@click.option("--to", metavar="FOLDER", type=click.Path(path_type=Path),
              help="Where to write.  [default: the run folder if it is one run, else the current folder]")
@click.option("--over", type=click.Choice(list(OVER)), default="epochs", show_default=True,
              help="What the left panels are drawn over: images-applied leaves out those whose gradients were dropped.")
def plot(runs: tuple[Path, ...], study: Path | None, extrap: bool, speeds: Path | None,
         target: float | None, to: Path | None, over: str) -> None:
    """Draw the curves of one run or several: training loss and test accuracy, over epochs or images and over time.

    Runs on several numbers of ranks are drawn once more: images/s and efficiency against ranks.

    RUN is a run folder, or a folder that holds run folders and counts as all of them. Runs under way are drawn as far
    as they are. Writes curves.png, and curves.csv with every point of it: run, label, kind (train_loss or
    test_accuracy, 0 to 1), step, epoch, images (whose gradients were computed), images_applied, training_s (seconds,
    without evaluations) and value. Beside them, where ranks differ, scaling.png and scaling.csv: label, ranks, runs,
    images_per_s (mean, least, most of equal runs) and efficiency.
    """
    require_matplotlib()
    of_study = extrap or speeds or target
    if bool(runs) == bool(study) or (of_study and not study):
        raise UsageError("expected run folders, or a study by --study, which --extrap, --speeds and --target go with; "
                         f"found {'both' if runs and study else 'no study' if of_study else 'neither'}")
    if study:
        plot_study(study, to, extrap, speeds, target)
        return
    found = [read(folder) for folder in run_folders(runs)]
    drawn = [run for run in found if run.losses or run.accuracies]
    empty = ", ".join(str(run.folder) for run in found if not (run.losses or run.accuracies))
    if not drawn:
        raise UsageError(f"{empty}: nothing to plot yet; metrics.jsonl and summary.csv hold no whole line")
    if empty:
        click.echo(f"left out, as there are no figures in it yet: {empty}", err=True)
    drawn = with_places(drawn, over)
    name(drawn)
    to = to or (drawn[0].folder if len(found) == 1 else Path())
    try:
        to.mkdir(parents=True, exist_ok=True)
        write_table(drawn, to / "curves.csv")
        draw(drawn, to / "curves.png", over)
        written = ["curves.png", "curves.csv", *scaling(drawn, to)]
    except OSError as error:
        raise UsageError(f"{to}: cannot be written ({error.strerror}); choose another --to") from None
    click.echo("\n".join(str(to / file) for file in written))
    Console(soft_wrap=True, markup=False, highlight=False).print(overview(drawn))


def plot_study(path: Path, to: Path | None, extrap: bool, speeds: Path | None, target: float | None) -> None:
    """Of a file, or of a folder with results, which holds a copy of its file."""
    made, found = results_of(path)
    made.target = target or made.target
    timed = results_of(speeds)[1] if speeds else None
    to = to or made.results
    try:
        written = (elsewhere.draw(made, found, timed, to) if timed else
                   draw_study(made, found, to) + (write_all(made, found, to) if extrap else []))
    except OSError as error:
        raise UsageError(f"{to}: cannot be written ({error.strerror}); choose another --to") from None
    click.echo("\n".join(map(str, written)))


def results_of(path: Path) -> tuple[plan.Study, list[Outcome]]:
    """UsageError if there are none."""
    made = plan.read(path / "study.toml" if path.is_dir() else path)
    if path.is_dir():
        made.results = path
    found = outcomes(made)
    if not any(outcome.results for outcome in found):
        raise UsageError(f"{made.results}: expected results of {made.name}, found none; run `python -m dsgd_mpi study`")
    return made, found


def with_places(runs: list[Run], over: str) -> list[Run]:
    """Those that have a place along the axis of data; UsageError if none has."""
    unknown = [math.isnan(getattr(run.last(), OVER[over])) for run in runs]
    found = [run for run, without in zip(runs, unknown, strict=True) if not without]
    others = ", ".join(str(run.folder) for run, without in zip(runs, unknown, strict=True) if without)
    why = f"no evaluation has counted the {over.replace('-', ' ')}"
    if not found:
        raise UsageError(f"{others}: {why}; use --over epochs")
    if others:
        click.echo(f"left out, as {why} in it: {others}", err=True)
    return found


def scaling(runs: list[Run], to: Path) -> list[str]:
    """Draws what there is; scaling too if the numbers of ranks differ. The names of the files written."""
    kinds = labels(runs, but=("ranks", "seed"))
    rates = [Rate(kind, run.ranks, run.last().images_per_s) for kind, run in zip(kinds, runs, strict=True) if run.ranks]
    if len({rate.ranks for rate in rates}) < 2:
        return []
    found = scaled(rates)
    write_scaling(found, to / "scaling.csv")
    draw_scaling(found, shared(runs), to / "scaling.png")
    return ["scaling.png", "scaling.csv"]


def run_folders(paths: tuple[Path, ...]) -> list[Path]:
    """Those given and those in the folders given, each once; UsageError for a path without one."""
    folders: dict[Path, Path] = {}          # by their real paths
    for path in paths:
        here = [path] if is_run(path) else sorted(file.parent for file in path.glob("*/config.toml"))
        if not here:
            found = "which neither it nor a folder in it has" if path.is_dir() else "found no such folder"
            raise UsageError(f"{path}: expected a run folder, with a config.toml, {found}")
        for folder in here:
            folders.setdefault(folder.resolve(), folder)
    return list(folders.values())


def is_run(folder: Path) -> bool:
    return (folder / "config.toml").is_file()


def read(folder: Path) -> Run:
    """What there is; UsageError names a file that no run has written so."""
    config = Config(**from_toml(folder / "config.toml"))
    summary, machine = read_json(folder / "summary.json"), read_json(folder / "env.json")
    ranks = summary.get("ranks") or len(machine.get("ranks", ())) or None
    header = next(iter(whole_lines(folder / "summary.csv")), "").split(",")

    def parse_row(line: str) -> dict[str, str]:
        return dict(zip(header, line.split(","), strict=True))

    accuracies = list(points(folder / "summary.csv", parse_row, "accuracy", first=1))
    with suppress(UsageError):              # of an algorithm unknown to this version
        if config.bn == Config().statistics(algorithms.find(config.algorithm).one_model):
            config = replace(config, bn="auto")     # which is what it means, and no difference
    return Run(folder, config, ranks, summary.get("status", "unfinished"), all_options(config),
               placed(points(folder / "metrics.jsonl", json.loads, "loss"), accuracies), accuracies)


def placed(losses: Iterator[Point], accuracies: list[Point]) -> list[Point]:
    """Losses with the images of all ranks at their steps, of which their lines, rank 0's, hold its own only.

    Between evaluations, and after the last, images are taken to be proportional to steps.
    """
    far = 10**12
    steps = [0, *(point.step for point in accuracies), far]

    def at(step: int, counts: list[float]) -> float:
        return float(np.interp(step, steps, [0, *counts, counts[-1] * far / steps[-2]])) if counts else math.nan

    images, applied = [point.images for point in accuracies], [point.images_applied for point in accuracies]
    return [point._replace(images=at(point.step, images), images_applied=at(point.step, applied)) for point in losses]


def read_json(path: Path) -> dict[str, Any]:
    """Empty if the run has not written it yet."""
    try:
        return dict(json.loads(read_text(path))) if path.exists() else {}
    except (OSError, ValueError, TypeError):
        raise UsageError(f"{path}: cannot be read or is damaged; move it away to plot the run without it") from None


def all_options(config: Config) -> dict[str, Any]:
    """The algorithm's, with its defaults; for an algorithm unknown to this version, those given."""
    given = config.algorithm_options()
    with suppress(UsageError):
        return {**given, **algorithms.build(config.algorithm, given).options()}
    return dict(given)


def whole_lines(path: Path) -> list[str]:
    """Without a last one that a killed run left unfinished; none if the file does not exist."""
    try:
        lines = read_text(path, errors="replace").splitlines(keepends=True) if path.exists() else []
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    return [line.rstrip() for line in lines if line.endswith("\n")]


def points(path: Path, parse: Callable[[str], Any], value: str, first: int = 0) -> Iterator[Point]:
    """A Point for every line from `first` on. A damaged last line is skipped; any other is a UsageError."""
    lines = whole_lines(path)
    for number, line in enumerate(lines[first:], start=first + 1):
        try:
            row = parse(line)
            if row[value] is None:          # this rank has no loss: it only serves
                continue
            training_s = float(row["wall_s"]) - float(row.get("eval_s", 0))
            point = Point(int(row["step"]), float(row["epoch"]), training_s,
                          *(float(row[key]) for key in ("images_per_s", value)),
                          *(float(row.get(key, math.nan)) for key in ("images", "images_applied")))
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                return
            raise UsageError(f"{path}, line {number}: damaged, expected step, epoch, wall_s, images_per_s and {value}; "
                             f"found {line[:40]!r}") from None
        yield point


def labels(runs: list[Run], but: tuple[str, ...] = ()) -> list[str]:
    """What makes each run differ from the others, `but` for some settings; those of equal runs are equal."""
    every = [facts(run) for run in runs]
    differing = [key for key in ("ranks", *FIELDS) if key not in but and len({own.get(key) for own in every}) > 1]
    several = len({run.config.algorithm for run in runs}) > 1
    found = []
    for run, own in zip(runs, every, strict=True):
        head = [run.config.algorithm] * several + differing_options(run, runs)
        found.append(", ".join([" ".join(head)] * bool(head) + [own[key] for key in differing if key in own]))
    return found


def name(runs: list[Run]) -> None:
    """Labels each run by its differences from the others, and by its folder if there are none."""
    for run, label in zip(runs, labels(runs), strict=True):
        run.label = label
    alike, names = Counter(run.label for run in runs), Counter(run.folder.name for run in runs)
    for run in runs:
        if alike[run.label] > 1 or not run.label:
            folder = run.folder.resolve().name if names[run.folder.name] == 1 else str(run.folder)
            run.label = f"{run.label}, {folder}" if run.label else folder


def facts(run: Run) -> dict[str, str]:
    """In words, what may affect the curves, except the algorithm and its options."""
    settings = {key: value for key, value in run.config.values().items()
                if key not in ("algorithm", "set") and FIELDS[key].metadata["group"] != "Output"}
    known = {"ranks": run.ranks, **settings}
    return {key: words(key, value) for key, value in known.items() if value is not None}


def words(key: str, value: Any) -> str:
    """A setting as a person says it: 4 ranks, lr 0.1, no augment, resnet8."""
    spoken = key.replace("_", " ")
    if isinstance(value, bool):
        return spoken if value else f"no {spoken}"
    if key in ("ranks", "epochs", "steps"):
        return f"{value} {key}" if value != 1 else f"{value} {key[:-1]}"
    if key in ("model", "data"):
        return Path(value).name.removesuffix(".h5")
    return f"{spoken} {value}"


def differing_options(run: Run, runs: list[Run]) -> list[str]:
    """KEY=VALUE where runs of this algorithm differ or, among other algorithms, where it was given."""
    same = [other.options for other in runs if other.config.algorithm == run.config.algorithm]
    given = run.config.algorithm_options() if len(same) < len(runs) else {}
    return [f"{key}={value}" for key, value in run.options.items()
            if key in given or any(other.get(key) != value for other in same)]


def shared(runs: list[Run]) -> str:
    """The most telling settings that all runs have in common."""
    first, every = runs[0], [facts(run) for run in runs]
    common = [every[0][key] for key in ("ranks", "model", "data") if len({own.get(key) for own in every}) == 1
              and key in every[0]]
    if len({run.config.algorithm for run in runs}) == 1:
        options = [f"{key}={first.options[key]}" for key in first.config.algorithm_options()
                   if all(run.options.get(key) == first.options[key] for run in runs)]
        common.insert(0, " ".join([first.config.algorithm, *options]))
    return ", ".join(common)


def write_table(runs: list[Run], path: Path) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for run in runs:
            for kind, curve in (("train_loss", run.losses), ("test_accuracy", run.accuracies)):
                writer.writerows((run.folder, run.label, kind, point.step, point.epoch,
                                  *("" if math.isnan(each) else each for each in (point.images, point.images_applied)),
                                  point.training_s, point.value) for point in curve)


def overview(runs: list[Run]) -> Table:
    """Where each run is."""
    seconds, unit = time_unit(runs)
    table = Table(title=shared(runs), title_justify="left")
    table.add_column("run", overflow="fold")
    table.add_column("status")
    for heading in ("epochs", "accuracy", "images/s", f"time ({unit})"):
        table.add_column(heading, justify="right")
    for run in runs:
        last = run.last()
        accuracy = f"{last.value:.2%}" if run.accuracies else "-"
        table.add_row(run.label, run.status, f"{last.epoch:.3g}", accuracy, f"{last.images_per_s:,.0f}",
                      f"{last.training_s / seconds:.3g}")
    return table


def time_unit(runs: list[Run]) -> tuple[float, str]:
    """In seconds and by name, so that the longest run is an easy number of them."""
    longest = max(point.training_s for run in runs for point in (*run.losses, *run.accuracies))
    return (1, "s") if longest < 300 else (60, "min") if longest < 7200 else (3600, "h")


def smooth(values: list[float]) -> np.ndarray:
    """Running mean over a 25th of the curve; shorter near the start, which is too steep for averaging."""
    reach = math.ceil(len(values) / 50)
    starts = [max(0, at - reach) for at in range(len(values))]
    return np.array([np.mean(values[start : 2 * at - start + 1]) for at, start in enumerate(starts)])


def draw(runs: list[Run], path: Path, over: str) -> None:
    """The picture: loss above accuracy, epochs or images next to time, and one legend below."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # log-in nodes have no display
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        columns = max(1, min(4, len(runs), int(13 * WIDTH) // (max(len(run.label) for run in runs) + 9)))
        figure = Figure((WIDTH, 6.6 + 0.22 * math.ceil(len(runs) / columns)), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(2, 2, sharex="col", sharey="row")
        lines = [draw_run(run, panels, index, OVER[over], time_unit(runs)[0]) for index, run in enumerate(runs)]
        set_limits(runs, panels)
        panels[1, 0].set_xlabel(over.replace("-", " "))
        panels[1, 1].set_xlabel(f"time of training, without evaluations ({time_unit(runs)[1]})")
        panels[0, 0].set_ylabel("training loss")
        panels[1, 0].set_ylabel("test accuracy (%)")
        figure.align_ylabels()
        texts = [figure.suptitle(shared(runs), fontsize="medium")]
        texts += figure.legend(lines, [fill(run.label, 100) for run in runs], loc="outside lower center",
                               ncols=columns, frameon=False, handlelength=3).get_texts()
        for text in texts:
            text.set_parse_math(False)      # a folder's name may hold dollar signs
        figure.savefig(path, format="png")


def draw_run(run: Run, panels: Any, index: int, column: str, seconds: float) -> Any:
    """One run into all four panels; a line for the legend."""
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    dash = DASHES[index // len(COLOURS) % len(DASHES)]
    losses = [point.value for point in run.losses]
    accuracies = [100 * point.value for point in run.accuracies]
    for above, below, place in ((*panels[:, 0], lambda point: getattr(point, column)),
                                (*panels[:, 1], lambda point: point.training_s / seconds)):
        at = [place(point) for point in run.losses]
        above.plot(at, losses, color=colour, alpha=0.25, linewidth=0.8, zorder=1.9)      # below all smooth ones
        above.plot(at, smooth(losses), dash, color=colour, marker=marker if len(at) == 1 else "")
        at = [place(point) for point in run.accuracies]
        line, = below.plot(at, accuracies, dash, color=colour, marker=marker, markersize=5, markevery=1 + len(at) // 40)
    return line


def set_limits(runs: list[Run], panels: Any) -> None:
    """Loss on a logarithmic scale; a run that diverges does not squeeze the others."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    losses = [point.value for run in runs for point in run.losses if 0 < point.value < math.inf]
    above = panels[0, 0]
    if losses:
        ticks = (1, 2, 5) if max(losses) > 10 * min(losses) else (1, 1.5, 2, 3, 5, 7)
        above.set_yscale("log")
        above.yaxis.set_major_locator(LogLocator(subs=ticks))
        above.yaxis.set_minor_locator(NullLocator())
        above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        start = max(run.losses[0].value for run in runs if run.losses)
        above.set_ylim(min(losses) / 1.1, 1.1 * min(max(losses), 2 * start if start < math.inf else math.inf))
    for axes, empty, text in ((panels[0], not losses, "no loss to draw"),
                              (panels[1], not any(run.accuracies for run in runs), "no evaluation yet")):
        for axis in axes:
            axis.set_xlim(left=0)
            if empty:
                axis.text(0.5, 0.5, text, ha="center", transform=axis.transAxes)
                axis.set_yticks([])
