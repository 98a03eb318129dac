"""The run folder and what is printed during a run: every rank measures, rank 0 writes and prints.

    config.toml     the resolved configuration          env.json       versions, hosts, devices
    metrics.jsonl   a line per logged step, of rank 0   summary.csv    a line per evaluation, over all ranks
    summary.json    the whole run                       model.h5       the trained model by name
"""

from __future__ import annotations

import csv
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dsgd_mpi.kernels.api import Later
from dsgd_mpi.net.api import Host
from dsgd_mpi.training.display import Display

SUMS = ("bytes_sent", "images")             # summed over ranks; all others are averaged
SUMMARY = ("train_loss", "accuracy", "images_per_s", "wall_s", "compute_s", "comm_s", "wait_s", "data_s", "eval_s",
           "images", "bytes_sent", "consensus_distance", "lr")


class Stopwatch:
    """Adds up the seconds spent inside `with`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self.start


class Record:
    """This rank's figures of one run. Times are seconds of training and continue when a run is resumed."""

    def __init__(self, host: Host, folder: Path, display: Display, steps_per_epoch: int, batch: int,
                 ranks_per_step: int, log_every: int, first: int = 0, totals: dict[str, Any] | None = None) -> None:
        self.host, self.folder, self.display = host, folder, display
        self.steps_per_epoch, self.batch, self.log_every = steps_per_epoch, batch, log_every
        self.ranks_per_step = ranks_per_step
        self.before = totals or {}
        self.rank_steps = int(self.before.get("rank_steps", 0))     # taken by this rank
        counted = self.before.get("staleness_counts", {})
        host.traffic.staleness.update({int(stale): count for stale, count in counted.items()})
        self.told = host.traffic.staleness.copy()   # the part of it already logged
        self.begin = host.now()
        self.data, self.compute, self.evaluating = Stopwatch(), Stopwatch(), Stopwatch()
        self.losses: list[float] = []       # since the last step with a line
        self.epoch_losses: list[float] = []     # since the last evaluation
        self.later: Later | None = None     # the last loss, if it was not known yet
        self.unwritten: dict[str, Any] = {}     # the line that waits for it
        self.gradients, self.stepping_s = 0, 0.0
        self.last_line = (self.begin, first)
        self.row: dict[str, Any] = {}
        if host.rank == 0:
            keep_lines(folder / "metrics.jsonl", lambda line: json.loads(line)["step"] <= first)
            keep_lines(folder / "summary.csv", lambda line: line[:5] == "step," or int(line.split(",")[0]) <= first)
            self.metrics = open(folder / "metrics.jsonl", "a")      # noqa: SIM115  open during the whole run

    def totals(self) -> dict[str, Any]:
        """What this rank has counted since the start of the run, resumed or not, for a checkpoint."""
        return {**self.figures(), "rank_steps": self.rank_steps, "staleness_counts": dict(self.host.traffic.staleness)}

    def figures(self) -> dict[str, float]:
        """This rank's seconds, bytes and images since the start of the run, resumed or not."""
        traffic = self.host.traffic
        now = {"wall_s": self.host.now() - self.begin, "compute_s": self.compute.seconds, "data_s": self.data.seconds,
               "comm_s": traffic.comm_s, "wait_s": traffic.wait_s, "eval_s": self.evaluating.seconds,
               "bytes_sent": traffic.bytes_sent, "images": self.gradients * self.batch}
        return {key: value + self.before.get(key, 0) for key, value in now.items()}

    def loss(self, later: Later) -> None:
        """Of the gradient just begun. That of the one before is waited for: no more than these two are under way."""
        self.settle()
        self.gradients += 1
        self.later = later
        if later.done():
            self.settle()

    def settle(self) -> None:
        """Waits for the last loss, while messages progress, and writes the line that needs it."""
        later, self.later = self.later, None
        if later is None:
            return
        with self.compute:
            loss = later.wait(self.host.progress)
        self.losses.append(loss)
        self.epoch_losses.append(loss)
        self.stepping_s = self.host.now() - self.begin - self.evaluating.seconds
        if self.unwritten:
            self.write()

    def step(self, step: int, lr: float) -> None:
        """After each step of this rank."""
        self.rank_steps += 1
        self.stepping_s = self.host.now() - self.begin - self.evaluating.seconds
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
        self.unwritten = {
            "step": step, "epoch": step / self.steps_per_epoch, "lr": lr, "loss": None,
            "images_per_s": (step - earlier) * self.batch * self.ranks_per_step / (now - then), **self.figures(),
            "rank_steps": self.rank_steps, "staleness_counts": dict(sorted(stale.items()))}
        if self.later is None:
            self.write()

    def write(self) -> None:
        """The line that was waiting, with the losses since the one before; by rank 0."""
        line, self.unwritten, losses, self.losses = self.unwritten, {}, self.losses, []
        line["loss"] = float(np.mean(losses)) if losses else None       # a rank may only serve
        if self.host.rank == 0:
            self.metrics.write(json.dumps(line) + "\n")
            self.metrics.flush()
            self.display.step(line)

    def evaluation(self, step: int, lr: float, accuracy: float, consensus_distance: float) -> None:
        """Collective, after an evaluation: a line of summary.csv."""
        own = {"losses": len(self.epoch_losses), "loss": sum(self.epoch_losses), **self.figures()}
        self.epoch_losses.clear()
        means = dict(zip(own, map(float, self.host.mean(np.array(list(own.values()), np.float64)).wait()), strict=True))
        everyone = self.host.allgather((self.rank_steps, self.host.traffic.staleness))
        stale: Counter[int] = sum((counter for _, counter in everyone), Counter())
        self.row = {"step": step, "epoch": step / self.steps_per_epoch, "lr": lr, "accuracy": accuracy,
                    "train_loss": means.pop("loss") / means.pop("losses"), "consensus_distance": consensus_distance,
                    **means, **{key: round(means[key] * self.host.size) for key in SUMS}}
        self.row["images_per_s"] = self.row["images"] / (self.row["wall_s"] - self.row["eval_s"])
        self.row["rank_steps"] = " ".join(str(steps) for steps, _ in everyone)
        self.row |= {f"staleness_{key}": value for key, value in percentiles(stale).items()}
        self.row["staleness_counts"] = " ".join(f"{value}:{stale[value]}" for value in sorted(stale))
        if self.host.rank == 0:
            with open(self.folder / "summary.csv", "a", newline="") as file:
                writer = csv.DictWriter(file, list(self.row))
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(self.row)
            self.display.epoch(self.row)

    def rate(self) -> float:
        """Images/s of this rank alone, from its first step to its last, without evaluations."""
        return round(self.gradients * self.batch / self.stepping_s, 1) if self.stepping_s else 0.0

    def finish(self, status: str, step: int, about: dict[str, Any]) -> dict[str, Any]:
        """Collective: rank 0 writes summary.json, with the figures of the last evaluation, None if there was none."""
        figures = {key: self.row.get(key) for key in SUMMARY}
        stale: Counter[int] = sum(self.host.allgather(self.host.traffic.staleness), Counter())
        summary = {"status": status, **about, "steps": step, "epochs": step / self.steps_per_epoch, **figures,
                   "staleness": percentiles(stale) if stale else None, "staleness_counts": dict(sorted(stale.items())),
                   "rank_steps": self.host.allgather(self.rank_steps),
                   "rank_images_per_s": self.host.allgather(self.rate())}
        if self.host.rank != 0:
            return summary
        write_json(self.folder / "summary.json", summary)
        self.metrics.close()
        return summary


def percentiles(stale: Counter[int]) -> dict[str, int | None]:
    """Median, 99th percentile and maximum of a histogram; None if it is empty."""
    if not stale:
        return dict.fromkeys(("p50", "p99", "max"))
    values = sorted(stale)
    share = np.cumsum([stale[value] for value in values]) / stale.total()
    return {"p50": values[int(np.argmax(share >= 0.5))], "p99": values[int(np.argmax(share >= 0.99))],
            "max": values[-1]}


def keep_lines(path: Path, wanted: Callable[[str], bool]) -> None:
    """Drops from a file of lines, if it exists, those that a run resumed from a checkpoint will write again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n") and wanted(line)]
        path.write_text("".join(lines))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Atomically: the complete file or none."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
