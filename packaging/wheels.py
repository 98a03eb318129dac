"""Downloads all that a bare machine with a GPU needs besides PyTorch, for carrying it there: `make gpu-wheels`.

The wheels are for Linux on x86-64, whatever Python runs this. PyTorch, which is only compared with, stays that of the
machine. If its cuDNN is to serve as well, --no-cudnn leaves out most of the bytes; docs/gpu.rst says how it is found.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
OLDEST_GLIBC = 17                           # 2.17, of manylinux2014: no wheel that is needed is for an older one alone
TESTS = ("pytest", "pytest-mpi", "hypothesis", "pillow")        # of the extra, what tests on a GPU import


def name_of(requirement: str) -> str:
    return re.match(r"[\w-]+", requirement)[0]      # type: ignore[index]


def requirements(cuda: str, cudnn: bool) -> list[str]:
    """What pyproject.toml asks for, what builds it, and compute-sanitizer."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    asked = [*project["build-system"]["requires"], *project["project"]["dependencies"],
             *(each for extra in (f"cuda{cuda}", "mpich") for each in extras[extra]),
             *(each for each in extras["test"] if name_of(each) in TESTS), f"cuda-toolkit[sanitizer]=={cuda}.*"]
    return [each for each in asked if cudnn or name_of(each) != f"nvidia-cudnn-cu{cuda}"]


def target(python: str, glibc: str) -> list[str]:
    """pip's options for another machine. It takes no platform to include older ones, so each is named."""
    newest = int(glibc.removeprefix("2."))
    platforms = [f"manylinux_2_{minor}" for minor in range(newest, OLDEST_GLIBC - 1, -1)]
    return ["--only-binary=:all:", f"--python-version={python}",
            *(f"--platform={each}_x86_64" for each in (*platforms, "manylinux2014"))]


def pip(*words: str) -> str:
    """What it prints; ClickException with its last error."""
    done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *words], capture_output=True,
                          text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise click.ClickException((errors or done.stderr.splitlines() or ["pip failed"])[-1])
    return done.stdout


def resolved(asked: list[str], where: list[str]) -> list[dict[str, Any]]:
    """What pip would install, as in its report; nothing is downloaded but descriptions.

    The versions may be older than those of a download, since this asks whether they suit the Python that runs it.
    """
    report = pip("install", "--quiet", "--dry-run", "--ignore-installed", "--target=nowhere", "--report=-", *where,
                 *asked)
    found: list[dict[str, Any]] = json.loads(report)["install"]
    return found


@click.command()
@click.option("--to", type=click.Path(path_type=Path), default="wheels", show_default=True, help="A new folder.")
@click.option("--cuda", type=click.Choice(["12", "13"]), default="13", show_default=True,
              help="13 needs a driver of 580 or newer.")
@click.option("--cudnn/--no-cudnn", default=True, show_default=True, help="Carry cuDNN, and cuBLAS, which it needs.")
@click.option("--python", default="3.12", show_default=True, help="Version of the machine's Python.")
@click.option("--glibc", default="2.35", show_default=True, help="Version of its C library: ldd --version.")
@click.option("--list", "only_list", is_flag=True, help="Print what would be downloaded, perhaps newer, and end.")
def main(to: Path, cuda: str, cudnn: bool, python: str, glibc: str, only_list: bool) -> None:
    """Download wheels for a machine with a GPU and without a network."""
    asked, where = requirements(cuda, cudnn), target(python, glibc)
    if only_list:
        for each in resolved(asked, where):
            click.echo(each["download_info"]["url"].rsplit("/", 1)[-1])
        return
    if to.exists() and any(to.iterdir()):
        raise click.ClickException(f"{to} has files already, and two versions of one package cannot be installed; "
                                   "remove it, or name another folder by --to")
    pip("download", "--quiet", f"--dest={to}", *where, *asked)
    sizes = {path.name: path.stat().st_size for path in to.iterdir()}
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        click.echo(f"{size / 1e6:8.1f} MB  {name}")
    click.echo(f"{sum(sizes.values()) / 1e6:8.1f} MB  in {len(sizes)} wheels, in {to}")


if __name__ == "__main__":
    main()
