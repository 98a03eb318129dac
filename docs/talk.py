"""Draws who talks to whom in each algorithm: `python docs/talk.py [NAME...]`, into docs/pictures."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from dsgd_mpi import algorithms

PICTURES = Path(__file__).parent / "pictures"
OFTEN = {"period": 2}                       # options, so that something happens within the picture
RUN = ("simulate", "--cluster", PICTURES / "two-nodes.toml", "--ranks", 4, "--as", "resnet50", "--gradients", "none",
       "--steps", 12, "--timeline", 2, "--quiet")


def settings(name: str) -> list[str]:
    """The options of a picture that are not the defaults."""
    return [f"{item.name}={OFTEN[item.name]}" for item in dataclasses.fields(algorithms.find(name))
            if item.name in OFTEN and item.default > OFTEN[item.name]]


def picture(name: str) -> Path:
    return PICTURES / f"talk-{name}.png"


def draw(name: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        words = [*RUN, "--algorithm", name, *(word for each in settings(name) for word in ("--set", each)),
                 "--out", Path(folder, "run")]
        subprocess.run([sys.executable, "-m", "dsgd_mpi", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
        with Image.open(Path(folder, "run", "timeline.png")) as drawn:
            drawn.convert("RGB").quantize(32).save(picture(name), optimize=True)
    return name


if __name__ == "__main__":
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for each in pool.map(draw, sys.argv[1:] or algorithms.names()):
            print(each)
