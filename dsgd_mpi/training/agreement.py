"""Before the first step all ranks compare what they are about to run: who differs would make others wait for ever.

A launcher may start ranks with different command lines, and nodes may have different variables, files or versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import dsgd_mpi
from dsgd_mpi.config import FIELDS, Config
from dsgd_mpi.data import Dataset
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.api import Host
from dsgd_mpi.net.graph_file import GraphFile
from dsgd_mpi.net.places import ranks_named

# what concerns a rank alone, or is done by rank 0 for all
MAY_DIFFER = {"threads", "data_threads", "log_every", "out", "time_left", "quiet"}
SAMPLES = 16                                # images of the training set that are compared, evenly spaced


def about(config: Config, dataset: Dataset, kernels: str, graphs: Sequence[GraphFile] = ()) -> dict[str, str]:
    """What must be the same on all ranks, by the name under which the user knows it."""
    options = {flag(key): str(getattr(config, key)) for key in FIELDS if key not in MAY_DIFFER}
    return {**options, "kernels": kernels, "dsgd_mpi": f"{dsgd_mpi.__version__} ({sources()})",
            "images": fingerprint(dataset), "graph": ", ".join(f"{graph} ({graph.digest})" for graph in graphs)}


def flag(key: str) -> str:
    return "--" + key.replace("_", "-")


@cache
def sources() -> str:
    """A digest of the package's Python files."""
    folder, digest = Path(dsgd_mpi.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


def fingerprint(dataset: Dataset) -> str:
    """A digest of the shapes, classes, mean and std, of all labels, and of `SAMPLES` training images, as stored."""
    digest = hashlib.sha256(repr((dataset.stored, len(dataset.train), len(dataset.test), dataset.classes)).encode())
    for values in (dataset.mean, dataset.std, dataset.train.labels, dataset.test.labels):
        digest.update(values.tobytes())
    some = np.unique(np.linspace(0, len(dataset.train) - 1, SAMPLES).astype(int))
    images = np.empty((len(some), *dataset.stored), np.uint8)
    dataset.train.stored.read(some, images)
    digest.update(images.tobytes())
    return f"{len(dataset.train)} + {len(dataset.test)} ({digest.hexdigest()[:8]})"


def about_data(dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint knows of the data that a run is trained on: counts, shape, classes, mean, std and a digest."""
    return {"train": len(dataset.train), "test": len(dataset.test), "image": list(dataset.stored),
            "classes": len(dataset.classes), "mean": dataset.mean.tolist(), "std": dataset.std.tolist(),
            "digest": fingerprint(dataset)}


def check(host: Host, own: dict[str, str]) -> None:
    """Collective: UsageError, the same on all ranks, if `about` differs between them."""
    every = host.allgather(own)
    differing = [f"{name}: {spread([each[name] for each in every])}" for name in own
                 if len({each[name] for each in every}) > 1]
    if differing:
        raise UsageError(f"the ranks do not agree on what to run: {'; '.join(differing)}; start all of them with the "
                         "same command, environment, data and version")


def spread(values: list[str]) -> str:
    """Who has which: `0.1 on rank 0, 0.2 on ranks 1-3`."""
    by_value: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        by_value.setdefault(value, []).append(rank)
    return ", ".join(f"{value} on {ranks_named(ranks)}" for value, ranks in by_value.items())
