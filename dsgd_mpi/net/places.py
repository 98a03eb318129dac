"""Which processor of its node a rank computes on, and what to say where they do not go round."""

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
    """The ranks of a node take its visible GPUs in turn. Some launchers show each rank one of its own."""
    return local_rank % visible


def refuse(places: list[Place], share: bool) -> None:
    """UsageError, the same on all ranks, where several would share a GPU unasked."""
    crowded = sharing(places)
    if crowded and not share:
        node = crowded[0]["host"]
        here = [place for place in places if place["host"] == node]
        gpus = len({place["uuid"] for place in here})
        raise UsageError(f"{len(here)} ranks on {node}, but {gpus} GPU{'s' if gpus > 1 else ''} for them; start {gpus} "
                         f"rank{'s' if gpus > 1 else ''} a node, or let several compute on one GPU by --share-gpu")


def sharing(places: list[Place]) -> list[Place]:
    """Those whose GPU is another rank's too."""
    ranks = Counter(place["uuid"] for place in places)
    return [place for place in places if ranks[place["uuid"]] > 1]


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
