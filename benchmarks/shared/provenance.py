"""Where a result comes from: machine, versions, command, and a commit that holds the code that was measured."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from benchmarks.shared import tree
from dsgd_mpi.arrays.strict import to_json

RESULTS = Path(os.environ.get("DSGD_RESULTS") or tree.ROOT / "benchmarks" / "results")
PACKAGES = ("numpy", "scipy", "mpi4py", "mpich", "torch", "torchft", "onednn-cpu-gomp", "cupy-cuda12x", "cupy-cuda13x",
            "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cudnn-frontend")


class Unsaved(click.ClickException):
    """A result that no commit could vouch for."""

    exit_code = 2


def saving(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a benchmark with --save, which is refused before anything is measured."""
    def check(ctx: click.Context, parameter: click.Parameter, save: bool) -> bool:
        if save:
            commit()
        return save
    return click.option("--save/--no-save", default=True, show_default=True, callback=check,
                        help="Keep the figures in benchmarks/results; needs all changes committed.")(command)


def commit(root: Path = tree.ROOT) -> str:
    """The commit that the working tree equals, results aside; Unsaved where there is none."""
    try:
        return tree.commit(root)
    except ValueError as reason:
        raise Unsaved(str(reason)) from None


def about() -> dict[str, Any]:
    """What a result must say of itself."""
    name = getattr(sys.modules["__main__"].__spec__, "name", sys.argv[0])
    return {
        "machine": processor(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform(terse=True),
        "python": platform.python_version(), "load": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version for name in PACKAGES if (version := installed(name))},
        "commit": commit(), "command": " ".join(["python", "-m", str(name), *sys.argv[1:]]),
    }


def installed(package: str) -> str | None:
    """Its version, if it is there."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def processor() -> str:
    """Name and vector instructions."""
    return f"{cpuinfo()['model name']} ({vectors()})"


def cpuinfo() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    said = dict(line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in said.items()}


def vectors() -> str:
    """The widest vector instructions."""
    flags = cpuinfo()["flags"].split()
    return next((name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags), "no AVX")


def save(name: str, result: dict[str, Any]) -> Path:
    """Writes a result beside the others; one of the same name is replaced. Unsaved where no commit vouches for it."""
    said = about()
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(to_json({**said, **result}, indent=1) + "\n", encoding="utf-8")
    return path
