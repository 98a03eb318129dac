"""Which processor of its node a rank computes on, and the error if there are too few."""

from __future__ import annotations

import os
import platform
from collections import Counter
from itertools import groupby
from typing import Any

from dsgd_mpi.errors import UsageError

Place = dict[str, Any]                      # host, cores, device; of a GPU also its index on the node and uuid


def cpu() -> Place:
    """Where a rank without a GPU computes."""
    return {"host": platform.node(), "cores": ranges(sorted(os.sched_getaffinity(0))), "device": "cpu"}


def gpu_of(local_rank: int, visible: int) -> int:
    """A node's visible GPUs are assigned to its ranks round-robin. Some launchers show each rank only its own."""
    return local_rank % visible


def refuse(places: list[Place], share: bool) -> None:
    """UsageError, the same on all ranks, if several would share a GPU without `share`."""
    crowded = sharing(places)
    if crowded and not share:
        node = crowded[0]["host"]
        here = [place for place in places if place["host"] == node]
        gpus = len({place["uuid"] for place in here})
        raise UsageError(f"{len(here)} ranks on {node}, but only {gpus} GPU{'s' if gpus > 1 else ''}; start {gpus} "
                         f"rank{'s' if gpus > 1 else ''} per node, or allow several ranks per GPU by --share-gpu")


def sharing(places: list[Place]) -> list[Place]:
    """Those whose GPU is also used by another rank."""
    ranks = Counter(place["uuid"] for place in places)
    return [place for place in places if ranks[place["uuid"]] > 1]


def ranks_named(ranks: list[int]) -> str:
    """`rank 0`, or `ranks 1-3,7`, of ascending numbers."""
    return f"rank{'s' if len(ranks) > 1 else ''} {ranges(ranks)}"


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
