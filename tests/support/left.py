"""What a run has left in its folder, read back."""

import csv
import json

import h5py
import numpy as np

SMALL = ("--steps", 12, "--batch", 8, "--log-every", 4)


def model_of(folder):
    with h5py.File(folder / "model.h5") as file:
        return {name: file[name][()] for name in file}


def steps_of(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def progress_of(folder):
    """All that does not depend on the clock, of each line and each evaluation."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with open(folder / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return ([[line[key] for key in ("step", "epoch", "lr", "loss", "images")] for line in lines],
            [[row[key] for key in ("step", "epoch", "lr", "accuracy", "train_loss", "images")] for row in rows])


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
