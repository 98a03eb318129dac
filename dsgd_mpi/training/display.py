"""What rank 0 prints: a progress bar on a terminal or a plain line every few seconds, and a table at start and end."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

PLAIN_S = 5.0                               # between two plain lines
UNITS = {"images_per_s": "{:,.0f} images/s", "accuracy": "{:.2%}", "bytes_sent": "{:,.0f}", "lr": "{:.4g}"}


class Display:
    """Prints nothing unless `talking`."""

    def __init__(self, talking: bool, steps: int = 0) -> None:
        # Open MPI gives its ranks a pseudo-terminal whatever its own output is; stdin shows whether it is interactive
        terminal = None if sys.stdin and sys.stdin.isatty() else False
        self.console = Console(quiet=not talking, highlight=False, soft_wrap=True, force_terminal=terminal)
        self.steps, self.last = steps, 0.0
        self.progress: Progress | None = None

    def talk(self) -> None:
        """From now on, as a rank that has become the first."""
        self.console.quiet = False

    def begin(self, first: int) -> None:
        """Training begins at step `first`."""
        if not self.console.quiet and self.console.is_terminal:
            self.progress = Progress(TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(),
                                     TextColumn("{task.fields[figures]}"), console=self.console)
            self.task = self.progress.add_task("", total=self.steps, completed=first, figures="")
            self.progress.start()

    def end(self) -> None:
        if self.progress:
            self.progress.stop()
            self.progress = None

    def step(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl: shown if one is due."""
        loss = f"loss {line['loss']:.4f}   " if line["loss"] is not None else ""
        figures = f"{loss}{line['images_per_s']:,.0f} images/s"
        if self.progress:
            self.progress.update(self.task, completed=line["step"], figures=figures)
        elif time.monotonic() - self.last > PLAIN_S:
            self.last = time.monotonic()
            left = (self.steps - line["step"]) * line["wall_s"] / line["step"]
            self.console.print(f"step {line['step']}/{self.steps}   epoch {line['epoch']:.2f}   {figures}   "
                               f"lr {line['lr']:.4g}   {left:.0f} s left")

    def epoch(self, row: dict[str, Any]) -> None:
        """A line of summary.csv."""
        if self.progress:
            self.progress.update(self.task, completed=row["step"])
        loss = f"train loss {row['train_loss']:.4f}   " if row["train_loss"] is not None else ""
        own = (f" (ranks' own {row['own_accuracy_min']:.2%} to {row['own_accuracy_max']:.2%})"
               if row["own_accuracy_mean"] is not None else "")
        self.console.print(f"epoch {row['epoch']:g}   {loss}"
                           f"test accuracy {row['accuracy']:.2%}{own}   {row['images_per_s']:,.0f} images/s   "
                           f"{row['wall_s']:.1f} s")

    def table(self, title: str, rows: dict[str, Any]) -> None:
        if self.console.quiet:              # to lay it out takes milliseconds, on each of many simulated ranks
            return
        table = Table(title=title, show_header=False, title_justify="left")
        table.add_column()
        table.add_column(overflow="fold")
        for key, value in rows.items():
            table.add_row(key, shown(key, value))
        self.console.print(table)

    def print(self, text: str) -> None:
        self.console.print(text)


def shown(key: str, value: Any) -> str:
    """A value, formatted for reading."""
    if key.startswith("own_accuracy"):
        return UNITS["accuracy"].format(value)
    if key in UNITS:
        return UNITS[key].format(value)
    if isinstance(value, float):
        return f"{value:.4g}" + (" s" if key.endswith("_s") else "")
    if isinstance(value, dict):
        return ", ".join(f"{name}={each}" for name, each in value.items())
    return str(value)
