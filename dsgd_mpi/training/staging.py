"""`--stage` and `--cache ram`: before the first step each node copies the data set, once, to a folder of its own.

All of it: the images of an epoch are dealt out anew among all ranks, so that each node comes to read each shard.
The ranks of a node share the files, and those that are done wait for the others, who tell that they live between two
blocks (`watch`). A rank that is asked to stop meanwhile stops all: the copy is given up, and the run ends at its first
step as it would at any other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from dsgd_mpi.config import Config
from dsgd_mpi.data import Dataset
from dsgd_mpi.data.copies import MB, MEMORY, Copies, Place
from dsgd_mpi.data.progress import shown
from dsgd_mpi.errors import UsageError


class Stopped(Exception):
    """A rank was asked to stop."""


def check(config: Config) -> None:
    """UsageError if what is asked for does not go together."""
    if config.stage is not None and config.cache == "ram":
        raise UsageError("--stage and --cache ram: expected one of them, found both; a set in memory needs no disk")
    if config.keep_staged and config.stage is None:
        raise UsageError("--keep-staged: expected --stage DIR, found none; what --cache ram copies is not kept")
    if config.stage is not None:
        root_of(config.stage)


def root_of(stage: str) -> Path:
    """That folder, with the variables that this rank has in it."""
    expanded = os.path.expandvars(os.path.expanduser(stage))
    if not expanded or "$" in expanded:
        found = "a variable that is not set" if expanded else "an empty name"
        raise UsageError(f"--stage {stage}: expected a folder on a disk of each node, found {found}; give its name")
    return Path(expanded).absolute()


@contextmanager
def staged(config: Config, dataset: Dataset, host: Any, stop: Callable[[], bool]) -> Iterator[tuple[Dataset, str]]:
    """Collective to enter: the set to read from instead, and where that is, for the user; until the end of `with`.

    The set itself and "" where it is not to be copied, or where a rank was told to stop. `host` is an MpiHost.
    UsageError, the same on all ranks, if it cannot be copied.
    """
    if config.stage is None and config.cache == "none":
        yield dataset, ""
        return
    asked, way_out = f"--stage {config.stage}", "give a folder on a larger disk, or leave out --stage"
    if config.cache == "ram":
        asked, way_out = "--cache ram", "use --stage DIR, of a folder on a disk of each node, or leave out --cache"
    place = Place(MEMORY if config.stage is None else root_of(config.stage), asked, way_out)
    try:
        copy, told = made(config, dataset, host, stop, place)
    except UsageError:
        place.leave()
        raise
    except Stopped:
        place.leave()
        yield dataset, ""
        return
    yield copy, told
    copy.close()                            # not after an error: other ranks may read on, and the last removes the copy
    place.leave()


def made(config: Config, dataset: Dataset, host: Any, stop: Callable[[], bool], place: Place) -> tuple[Dataset, str]:
    """Collective: the copy, whole. UsageError and Stopped on all ranks."""
    node = next(node for node in host.nodes() if host.rank in node)
    first, start = host.rank == node[0], time.monotonic()
    with together(host):
        place.enter(dataset)
        copies = Copies(dataset, place)
        if first:
            place.tidy()
            place.check_room(copies.missing(), config.data)
    mine = range(node.index(host.rank), len(copies.files), len(node))
    with together(host), bar(copies, mine, host.rank == 0 and not config.quiet) as tick:
        def pause(count: int) -> None:
            tick(count)
            host.progress()
            if host.told_to_stop(stop()):
                raise Stopped

        try:
            for number in mine:
                copies.make(number, pause)
        except UsageError:
            host.told_to_stop(True)         # the others need not copy on
            raise
    seconds = time.monotonic() - start
    with together(host):
        copy = Dataset(copies.path, dataset.name).sized(config.image_size)
        assert copy.image == dataset.image
        if first and config.keep_staged:
            place.keep()
    return copy, "" if host.rank else (f"{place.folder}, {copies.total() / MB:,.1f} MB on each node, there in "
                                       f"{seconds:.1f} s")


@contextmanager
def together(host: Any) -> Iterator[None]:
    """Collective: what one rank raises inside, UsageError or Stopped, all raise afterwards: the lowest rank's error."""
    problem, stopped = None, False
    try:
        yield
    except UsageError as error:
        problem = error.message
    except Stopped:
        stopped = True
    for message, stops in host.allgather([problem, stopped]):
        if message:
            raise UsageError(message)
        stopped |= stops
    if stopped:
        raise Stopped


@contextmanager
def bar(copies: Copies, mine: range, visible: bool) -> Iterator[Callable[[int], object]]:
    """Called with each number of bytes that were done; shows how many of this rank's share are."""
    share, done = sum(map(copies.size, mine)), 0
    with shown(share // MB, "MB of rank 0's share of the data") if visible else nullcontext() as tick:
        def count(more: int) -> None:
            nonlocal done
            done += more
            if tick and more:
                tick(done // MB - (done - more) // MB)

        yield count
