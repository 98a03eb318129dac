"""The run folder and what is printed during a run: every rank measures, rank 0 writes and prints.

    config.toml     the resolved configuration          env.json       versions, hosts, devices
    metrics.jsonl   a line per logged step, of rank 0   summary.csv    a line per evaluation, over all ranks
    summary.json    the whole run                       model.h5       the trained model by name
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dsgd_mpi.algorithms import Algorithm
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.strict import to_json
from dsgd_mpi.data import Course
from dsgd_mpi.files import moved_away, regular
from dsgd_mpi.kernels.api import Later
from dsgd_mpi.net.api import Host
from dsgd_mpi.training.display import Display
from dsgd_mpi.training.output import Output

SUMS = ("bytes_sent", "images", "images_applied")   # summed over ranks; all others are averaged
SUMMARY = ("train_loss", "accuracy", "own_accuracy_min", "own_accuracy_mean", "own_accuracy_max", "images_per_s",
           "wall_s", "compute_s", "comm_s", "wait_s", "data_s", "answer_s", "eval_s", "recalibrate_s", "images",
           "images_applied", "bytes_sent", "consensus_distance", "lr")
MOST_WAITING, LEAST_WAIT_S = 0.05, 0.5      # for images: a share and seconds, beyond which a line is printed
log = logging.getLogger("dsgd_mpi")


class Stopwatch:
    """Adds up the seconds spent inside `with`, by the given clock."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.seconds = now, 0.0

    def __enter__(self) -> None:
        self.start = self.now()

    def __exit__(self, *error: object) -> None:
        self.seconds += self.now() - self.start


class Record:
    """This rank's figures of one run. Times are seconds of training and continue when a run is resumed."""

    def __init__(self, host: Host, algorithm: Algorithm, folder: Path, display: Display, steps_per_epoch: int,
                 batch: int, ranks_per_step: int, log_every: int, first: int = 0,
                 totals: dict[str, Any] | None = None, course: Course | None = None, advice: str = "") -> None:
        self.advice = advice                # what would help where steps wait for images
        self.host, self.folder, self.display = host, folder, display
        self.steps_per_epoch, self.batch, self.log_every = steps_per_epoch, batch, log_every
        self.ranks_per_step, self.course = ranks_per_step, course
        self.output: Output | None = None   # of rank 0
        self.rewind(first, totals or {}, algorithm)

    def rewind(self, first: int, before: dict[str, Any], algorithm: Algorithm, again: bool = False) -> None:
        """To step `first`, with the totals of a checkpoint: what was counted or written after it is forgotten.

        `again`: so is its own line of summary.csv.
        """
        self.algorithm, self.before = algorithm, before
        self.before.setdefault("images_applied", self.before.get("images", 0))     # of older versions
        self.rank_steps = int(self.before.get("rank_steps", 0))     # taken by this rank
        self.updates_skipped = int(self.before.get("updates_skipped", 0))   # by this rank
        self.restores = int(self.before.get("restores", 0))     # of the run, at half the rate each,
        self.peak_lr = self.before.get("peak_lr")   # from this one
        self.dead: list[dict[str, Any]] = self.before.get("dead", [])   # ranks that the run went on without
        counted = self.before.get("staleness_counts", {})
        self.host.traffic.staleness.update({int(stale): count for stale, count in counted.items()})
        self.told = self.host.traffic.staleness.copy()  # the part of it already logged
        self.begin = self.host.now()
        self.data, self.compute, self.evaluating = (Stopwatch(self.host.now) for _ in range(3))
        self.answering, self.recalibrating = (Stopwatch(self.host.now) for _ in range(2))   # these run while it runs
        # those that are finite: since the last step with a line, and sum and count since the last evaluation
        self.losses: list[float] = list(self.before.get("line_losses", ()))
        self.epoch_loss, self.epoch_losses = self.before.get("epoch_loss", (0.0, 0))
        self.later: Later | None = None     # the last loss, if it was not known yet
        self.taking = self.taken = first, 0.0   # the step being taken and its rate, and those of the last loss
        self.lost: tuple[int, str] | None = None    # the step of the first loss that was not finite, in words too
        self.unwritten: dict[str, Any] = {}     # the line that waits for it
        self.gradients, self.stepping_s = 0, 0.0
        self.last_line = (self.begin, first)
        # seconds, since the start of the run, that were spent on images and on training in all, at the last of each
        self.at_line = self.at_evaluation = self.fed(self.figures())
        self.row: dict[str, Any] = {}
        self.columns: list[str] | None = None       # of summary.csv, once it has some
        if self.host.rank == 0:
            if self.output:
                self.output.close()
            self.output = Output(self.folder)
            keep_lines(self.folder / "metrics.jsonl", lambda line: int(json.loads(line)["step"]), first)
            keep_table(self.folder / "summary.csv")
            keep_lines(self.folder / "summary.csv", lambda line: int(line.split(",")[0]), first - again)
            self.output.add("metrics.jsonl", "")        # there may be no line yet

    def among(self, steps_per_epoch: int, ranks_per_step: int, course: Course) -> None:
        """The ranks have become others."""
        self.steps_per_epoch, self.ranks_per_step, self.course = steps_per_epoch, ranks_per_step, course

    def totals(self) -> dict[str, Any]:
        """What this rank has counted since the start of the run, resumed or not, for a checkpoint."""
        return {**self.figures(), "rank_steps": self.rank_steps, "line_losses": self.losses,
                "epoch_loss": [self.epoch_loss, self.epoch_losses],
                "staleness_counts": {str(stale): count for stale, count in self.host.traffic.staleness.items()},
                "updates_skipped": self.updates_skipped, "restores": self.restores, "peak_lr": self.peak_lr,
                **({"dead": self.dead} if self.dead else {})}

    def epoch(self, step: int) -> float:
        return self.course.epochs(step) if self.course else step / self.steps_per_epoch

    def figures(self) -> dict[str, float]:
        """This rank's seconds, bytes and images since the start of the run, resumed or not.

        `images`: from which it computed gradients. `images_applied`: whose gradients it applied, its own or others'.
        """
        traffic = self.host.traffic
        applied = self.gradients if self.algorithm.applied is None else self.algorithm.applied
        now = {"wall_s": self.host.now() - self.begin, "compute_s": self.compute.seconds, "data_s": self.data.seconds,
               "comm_s": traffic.comm_s, "wait_s": traffic.wait_s, "answer_s": self.answering.seconds,
               "eval_s": self.eval_s(), "recalibrate_s": self.recalibrating.seconds,
               "bytes_sent": traffic.bytes_sent, "images": self.gradients * self.batch,
               "images_applied": applied * self.batch}
        return {key: value + self.before.get(key, 0) for key, value in now.items()}

    def fed(self, figures: dict[str, float]) -> Array:
        """Seconds of waiting for images, and of training with all that it waits for."""
        return np.array([figures["data_s"], figures["wall_s"] - figures["eval_s"]])

    def eval_s(self) -> float:
        """Seconds of evaluation, without those that the answer takes.

        To make it, a mean of all models for example, is a part of training: the method needs it to have one model, as
        another needs to average gradients.
        """
        return self.evaluating.seconds - self.answering.seconds

    def loss(self, later: Later) -> None:
        """Of the gradient just begun. That of the one before is waited for: no more than these two are under way."""
        self.settle()
        self.gradients += 1
        self.later, self.taken = later, self.taking
        if later.done():
            self.settle()

    def settle(self) -> None:
        """Waits for the last loss, while messages progress, and writes the line that needs it."""
        later, self.later = self.later, None
        if later is None:
            return
        with self.compute:
            loss = later.wait(self.host.progress)
        if math.isfinite(loss):
            self.losses.append(loss)
            self.epoch_loss += loss
            self.epoch_losses += 1
        elif self.lost is None:
            step, lr = self.taken
            self.lost = step, f"the loss at step {step} is {loss} at rate {lr:g}"
        self.stepping_s = self.host.now() - self.begin - self.eval_s()
        if self.unwritten:
            self.write()

    def step(self, step: int, lr: float) -> None:
        """After each step of this rank."""
        self.rank_steps += 1
        self.stepping_s = self.host.now() - self.begin - self.eval_s()
        self.line(step, lr)

    def line(self, step: int, lr: float) -> None:
        """When the run has reached a step: a line every `log_every` steps."""
        then, earlier = self.last_line
        if step // self.log_every <= earlier // self.log_every:
            return
        if self.unwritten:
            self.settle()
        now = self.host.now()
        self.last_line = (now, step)
        stale = self.host.traffic.staleness - self.told
        self.told = self.host.traffic.staleness.copy()
        figures = self.figures()
        before, self.at_line = self.at_line, self.fed(figures)
        self.unwritten = {
            "step": step, "epoch": self.epoch(step), "lr": lr, "loss": None,
            "images_per_s": (step - earlier) * self.batch * self.ranks_per_step / (now - then), **figures,
            "data_share": share(*(self.at_line - before)), "rank_steps": self.rank_steps,
            "staleness_counts": dict(sorted(stale.items())),
            **({"ranks": self.host.size} if self.dead else {})}
        if self.later is None:
            self.write()

    def write(self) -> None:
        """The line that was waiting, with the losses since the one before; by rank 0."""
        line, self.unwritten, losses, self.losses = self.unwritten, {}, self.losses, []
        line["loss"] = float(np.mean(losses)) if losses else None       # a rank may only serve
        if self.output:                     # rank 0
            self.output.add("metrics.jsonl", to_json(line) + "\n")
            self.display.step(line)

    def evaluation(self, step: int, lr: float, **found: Any) -> None:
        """Collective, after an evaluation that found these figures: a line of summary.csv."""
        own = {"losses": self.epoch_losses, "loss": self.epoch_loss, **self.figures()}
        before, self.at_evaluation = self.at_evaluation, self.fed(own)
        own |= zip(("waited", "trained"), map(float, self.at_evaluation - before), strict=True)
        self.epoch_loss, self.epoch_losses = 0.0, 0
        figures = self.over_ranks(own)
        loss, losses, waited, trained = (figures.pop(key) for key in ("loss", "losses", "waited", "trained"))
        rank_steps, stale = self.host.allgather(self.rank_steps), self.all_staleness()
        train_loss = loss / losses if losses else None      # no loss was finite
        self.row = {"step": step, "epoch": self.epoch(step), "lr": lr, **found,
                    "train_loss": train_loss, **figures, "data_share": share(waited, trained)}
        self.row["images_per_s"] = self.row["images"] / (self.row["wall_s"] - self.row["eval_s"])
        self.row["rank_steps"] = rank_steps
        self.row |= {f"staleness_{key}": value for key, value in percentiles(stale).items()}
        self.row["staleness_counts"] = " ".join(f"{value}:{stale[value]}" for value in sorted(stale))
        if self.output:                     # rank 0
            self.output.add("summary.csv", self.as_csv(self.row))
            self.display.epoch(self.row)
            if self.advice and waited > LEAST_WAIT_S and waited > MOST_WAITING * trained:
                self.display.print(f"{waited / trained:.0%} of the last {trained:.3g} s of training went by waiting "
                                   f"for images; {self.advice}")
                self.advice = ""            # once is enough

    def over_ranks(self, own: dict[str, float]) -> dict[str, Any]:
        """Collective: the average of each figure, and of SUMS the sum."""
        means = self.host.mean(np.array(list(own.values()), np.float64)).wait()
        found = dict(zip(own, map(float, means), strict=True))
        return found | {key: round(found[key] * self.host.size) for key in SUMS}

    def all_staleness(self) -> Counter[int]:
        """Collective: the histogram of all ranks, on rank 0, which writes it."""
        found: Counter[int] = Counter()
        everyone = self.host.allgather(list(self.host.traffic.staleness.items()))
        for own in everyone if self.host.rank == 0 else ():
            found.update(dict(own))
        return found

    def rate(self) -> float:
        """Images/s of this rank alone, from its first step to its last, without evaluations."""
        return round(self.gradients * self.batch / self.stepping_s, 1) if self.stepping_s else 0.0

    def finish(self, status: str, step: int, about: dict[str, Any]) -> dict[str, Any]:
        """Collective: rank 0 writes summary.json, with the figures of the last evaluation, None if there was none."""
        figures = {key: self.row.get(key) for key in SUMMARY}
        stale = self.all_staleness()
        summary = {"status": status, **about, "steps": step, "epochs": self.epoch(step), **figures,
                   "staleness": percentiles(stale) if stale else None, "staleness_counts": dict(sorted(stale.items())),
                   "rank_steps": self.host.allgather(self.rank_steps),
                   "rank_consensus_distance": self.row.get("rank_consensus_distance"),
                   "rank_updates_skipped": self.host.allgather(self.updates_skipped), "restores": self.restores,
                   "rank_images_per_s": self.host.allgather(self.rate()), **({"lost": self.dead} if self.dead else {})}
        if self.output:                     # rank 0
            self.output.put("summary.json", to_json(summary, indent=2) + "\n")
            self.output.close()
        return summary

    def as_csv(self, row: dict[str, Any]) -> str:
        """A line of summary.csv, after that of its columns if it is the first.

        Columns that the first line of the file, as an older version began it, does not name are left out.
        """
        text = io.StringIO(newline="")
        if self.columns is None:
            self.columns = columns_of(self.folder / "summary.csv")
        writer = csv.DictWriter(text, self.columns or list(row), extrasaction="ignore")
        if not self.columns:
            self.columns = list(row)
            writer.writeheader()
        writer.writerow({key: words(value) if isinstance(value, list) else value for key, value in row.items()})
        return text.getvalue()


def share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else 0.0


def words(values: list[int | float | None]) -> str:
    """In one field of a table: a value a rank."""
    return " ".join("-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
                    for value in values)


def percentiles(stale: Counter[int]) -> dict[str, int | None]:
    """Median, 99th percentile and maximum of a histogram; None if it is empty."""
    if not stale:
        return dict.fromkeys(("p50", "p99", "max"))
    values = sorted(stale)
    share = np.cumsum([stale[value] for value in values]) / stale.total()
    return {"p50": values[int(np.argmax(share >= 0.5))], "p99": values[int(np.argmax(share >= 0.99))],
            "max": values[-1]}


def keep_lines(path: Path, step_of: Callable[[str], int], last: int) -> None:
    """Drops from a file of lines, if it exists, those of steps after `last`, which a resumed run will write again.

    Lines are in the order of their steps, so that the file is cut, which needs no room on the disk.
    """
    try:
        with open(path, "r+b", opener=regular) as file:
            end = 0
            for line in file:
                if not line.endswith(b"\n") or step(line.decode(errors="replace"), step_of) > last:
                    break
                end += len(line)
            file.truncate(end)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("%s: lines of steps after %d could not be removed (%s)", path, last, error.strerror)


def keep_table(path: Path) -> None:
    """Makes way for a table where what is there has none of our columns: nothing could be added to it."""
    columns = columns_of(path)
    if columns and "step" not in columns:
        try:
            log.warning("%s is no table of this run; it is now %s", path, moved_away(path).name)
        except OSError as error:
            log.warning("%s is no table of this run, and cannot be moved away (%s)", path, error.strerror)


def step(line: str, step_of: Callable[[str], int]) -> int:
    """-1 of a line that has none: the first of a table, or one that is not ours."""
    try:
        return step_of(line)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return -1


def columns_of(path: Path) -> list[str]:
    """The first line of a table; none if there is no table yet."""
    try:
        with open(path, newline="", encoding="utf-8", errors="replace", opener=regular) as file:
            return next(csv.reader(file), [])
    except OSError:
        return []
    except csv.Error:                       # no table of ours: a field is too long
        return ["?"]
