"""The run folder and what is printed on the way: every rank measures, rank 0 writes and talks.

    config.toml     the resolved configuration          env.json       versions, hosts, devices
    metrics.jsonl   a line per logged step, of rank 0   summary.csv    a line per evaluation, over all ranks
    summary.json    the whole run                       model.h5       the trained model by name
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dsgd_mpi.net.api import Host
from dsgd_mpi.run.display import Display

SUMMARY = ("train_loss", "accuracy", "images_per_s", "wall_s", "compute_s", "comm_s", "wait_s", "data_s", "eval_s",
           "bytes_sent", "consensus_distance")


class Stopwatch:
    """Adds up the seconds between `with` and its end."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self.start


class Record:
    """This rank's figures of one run. Times are seconds of training, resumed ones counted on."""

    def __init__(self, host: Host, folder: Path, display: Display, steps_per_epoch: int, images_per_step: int,
                 log_every: int, first: int = 0, totals: dict[str, float] | None = None) -> None:
        self.host, self.folder, self.display = host, folder, display
        self.steps_per_epoch, self.images_per_step, self.log_every = steps_per_epoch, images_per_step, log_every
        self.before = totals or {}
        self.first, self.begin = first, host.now()
        self.data, self.compute, self.evaluating = Stopwatch(), Stopwatch(), Stopwatch()
        self.losses: list[float] = []       # since the last line of metrics.jsonl
        self.epoch_losses: list[float] = []
        self.last_line = (self.begin, first)
        self.row: dict[str, Any] = {}
        if host.rank == 0:
            keep_lines(folder / "metrics.jsonl", lambda line: json.loads(line)["step"] <= first)
            keep_lines(folder / "summary.csv", lambda line: line[:5] == "step," or int(line.split(",")[0]) <= first)
            self.metrics = open(folder / "metrics.jsonl", "a")      # noqa: SIM115  open for as long as the run

    def totals(self) -> dict[str, float]:
        """This rank's seconds and bytes since the run first began."""
        traffic = self.host.traffic
        now = {"wall_s": self.host.now() - self.begin, "compute_s": self.compute.seconds, "data_s": self.data.seconds,
               "comm_s": traffic.comm_s, "wait_s": traffic.wait_s, "eval_s": self.evaluating.seconds,
               "bytes_sent": traffic.bytes_sent}
        return {key: value + self.before.get(key, 0) for key, value in now.items()}

    def loss(self, loss: float) -> None:
        self.losses.append(loss)
        self.epoch_losses.append(loss)

    def step(self, step: int, lr: float) -> None:
        """After each step: a line now and then."""
        if step % self.log_every or self.host.rank != 0:
            return
        now = self.host.now()
        (then, earlier), self.last_line = self.last_line, (now, step)
        line = {"step": step, "epoch": step / self.steps_per_epoch, "loss": float(np.mean(self.losses)), "lr": lr,
                "images_per_s": (step - earlier) * self.images_per_step / (now - then), **self.totals()}
        self.losses.clear()
        self.metrics.write(json.dumps(line) + "\n")
        self.metrics.flush()
        self.display.step(line)

    def evaluation(self, step: int, accuracy: float, consensus_distance: float) -> None:
        """Everyone, after an evaluation: a line of summary.csv."""
        own = {"train_loss": float(np.mean(self.epoch_losses)), **self.totals()}
        self.epoch_losses.clear()
        mean = self.host.mean(np.array(list(own.values()), np.float64)).wait()
        self.row = {"step": step, "epoch": step / self.steps_per_epoch, "accuracy": accuracy,
                    "consensus_distance": consensus_distance, **dict(zip(own, map(float, mean), strict=True))}
        self.row["bytes_sent"] = round(self.row["bytes_sent"] * self.host.size)
        self.row["images_per_s"] = step * self.images_per_step / (self.row["wall_s"] - self.row["eval_s"])
        if self.host.rank == 0:
            with open(self.folder / "summary.csv", "a", newline="") as file:
                writer = csv.DictWriter(file, list(self.row))
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(self.row)
            self.display.epoch(self.row)

    def finish(self, status: str, step: int, about: dict[str, Any]) -> dict[str, Any]:
        """Rank 0: writes summary.json. Its figures are those of the last evaluation, None if there was none."""
        figures = {key: self.row.get(key) for key in SUMMARY}
        summary = {"status": status, **about, "steps": step, "epochs": step / self.steps_per_epoch, **figures}
        write_json(self.folder / "summary.json", summary)
        self.metrics.close()
        return summary


def keep_lines(path: Path, wanted: Callable[[str], bool]) -> None:
    """Drops from a file of lines, if it is there, what a run that goes on from a checkpoint will write again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n") and wanted(line)]
        path.write_text("".join(lines))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
