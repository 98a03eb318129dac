"""How far something is that takes long, and how long it will still take: a bar, or a line now and then, on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_S = 60.0                              # between two lines where there is no terminal


@contextmanager
def shown(total: int, what: str = "images") -> Iterator[Callable[[int], Any]]:
    """What is called with each number that were done, of `total`."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(TextColumn(what), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), console=console
                      ) as bar:
            task = bar.add_task("", total=total)
            yield lambda count: bar.advance(task, count)
        return
    begun = last = time.monotonic()
    done = kept = 0

    def tick(count: int) -> None:
        nonlocal last, done, kept
        kept = kept or count if done == 0 else kept         # by an earlier run: no measure of speed
        done += count
        now = time.monotonic()
        if now - last >= PLAIN_S and done > kept:
            last = now
            left = (now - begun) / (done - kept) * (total - done)
            click.echo(f"{done:,} of {total:,} {what}, about {-(-left // 60):.0f} min left", err=True)

    yield tick
