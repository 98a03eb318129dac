"""Short training runs for benchmarks, started as a user would start them; their summary is read back."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ALGORITHMS = ("allreduce", "local_sgd", "backup", "dpsgd", "gossip", "gossip mode=push", "sgp",
              "gosgd", "parameter_server", "easgd", "adpsgd", "topk", "dgc")
EVALUATION = ("step", "epoch", "accuracy", "train_loss", "consensus_distance", "wall_s", "eval_s")


def trained(algorithm: str, ranks: int, *options: object) -> dict[str, Any]:
    """summary.json of a run of `algorithm` ("name KEY=VALUE --OPTION=VALUE ...") with options, and its evaluations."""
    name, *settings = algorithm.split()
    mpirun = shutil.which(str(Path(sys.executable).with_name("mpirun"))) or "mpirun"
    with tempfile.TemporaryDirectory() as folder:
        words = [mpirun, "-n", ranks, sys.executable, "-m", "dsgd_mpi.train", "--quiet", "--threads", 1,
                 "--out", f"{folder}/run", "--algorithm", name, *options]
        for setting in settings:
            words += [setting] if setting.startswith("--") else ["--set", setting]
        subprocess.run(list(map(str, words)), check=True)
        result: dict[str, Any] = json.loads(Path(folder, "run", "summary.json").read_text())
        with open(Path(folder, "run", "summary.csv"), newline="") as file:
            rows = [{key: float(row[key]) for key in EVALUATION} for row in csv.DictReader(file)]
    return {**result, "evaluations": rows}
