"""Damages files byte by byte and tells what comes of it: `python -m tests.support.damage FILE SEED COUNT`, a child's.

HDF5 is C that reads what the bytes tell it to: a crash, a hang or endless memory there must not be the test's own. So a
child tries `COUNT` damaged copies, with limits, and prints a line for each: what was done, and how it was refused.
"""

from __future__ import annotations

import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

MEMORY = 4 << 30
LIMIT_S = 90                                # for one copy
HEAD = 4096                                 # bytes at the start that are chosen as often as all the others


def damaged(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """A copy with a few bytes changed, a few runs overwritten, or its end cut off, and what was done."""
    copy = bytearray(content)
    kind = rng.choice(["bit", "byte", "bytes", "ones", "zeros", "cut"])
    start = int(rng.integers(min(HEAD, len(copy)) if rng.random() < 0.5 else len(copy)))
    length = int(rng.choice([1, 2, 4, 8]))
    if kind == "bit":
        copy[start] ^= 1 << int(rng.integers(8))
    elif kind == "byte":
        copy[start] = int(rng.integers(256))
    elif kind == "cut":
        del copy[start:]
    else:
        fill = {"bytes": rng.bytes(length), "ones": b"\xff" * length, "zeros": bytes(length)}[str(kind)]
        copy[start:start + length] = fill[:len(copy) - start]
    return bytes(copy), f"{kind} {start} {length}"


def outcome(path: Path) -> str:
    """Of all that is done with a data file: opened, verified for training and whole, read for a batch."""
    from dsgd_mpi.data import open_dataset, trial
    from dsgd_mpi.errors import UsageError
    trial.CPU_S = 2
    try:
        with open_dataset(path) as dataset:
            dataset.verify(thorough=False)
            dataset.verify()
            for split in (dataset.train, dataset.test):
                split.read(np.arange(len(split)), np.empty((len(split), *split.image), np.uint8))
    except UsageError as error:
        if "\n" in error.message:
            raise ValueError(error.message) from error
        return error.message.removeprefix(str(path))
    return "passed"


def main(path: Path, seed: int, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    content, copy = path.read_bytes(), path.with_name(f"{path.stem}-damaged-{seed}.h5")
    for number in range(seed, seed + count):
        made, what = damaged(content, np.random.default_rng(number))
        copy.write_bytes(made)
        print(f"{number}: {what}", end=" ", flush=True)
        signal.alarm(LIMIT_S)
        start = time.monotonic()
        told = outcome(copy)
        signal.alarm(0)
        print(f"{time.monotonic() - start:.1f} s {told}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
