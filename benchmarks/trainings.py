"""Short trainings for benchmarks: started as a user would start them, their summary read back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ALGORITHMS = ("allreduce", "local_sgd", "backup", "dpsgd", "gossip", "gossip mode=push", "push_sum graph=random",
              "parameter_server", "easgd", "adpsgd")


def trained(algorithm: str, ranks: int, *options: object) -> dict[str, Any]:
    """summary.json of a run of `algorithm` ("name", or "name KEY=VALUE") with other options as given."""
    name, *settings = algorithm.split()
    mpirun = shutil.which(str(Path(sys.executable).with_name("mpirun"))) or "mpirun"
    with tempfile.TemporaryDirectory() as folder:
        words = [mpirun, "-n", ranks, sys.executable, "-m", "dsgd_mpi.train", "--quiet", "--threads", 1,
                 "--out", f"{folder}/run", "--algorithm", name, *options]
        for setting in settings:
            words += ["--set", setting]
        subprocess.run(list(map(str, words)), check=True)
        result: dict[str, Any] = json.loads(Path(folder, "run", "summary.json").read_text())
    return result
