"""Whether MPI accepts device pointers, tested by passing it some in a separate process, which may crash.

`python -m dsgd_mpi.net.gpu.aware MODULE [GPU]` is that process: a tiny all-reduce, and a message to itself, of arrays
that MODULE makes (cupy; or numpy, which every MPI accepts). `refusal` starts it and reports the outcome. Asking the
library is not enough: that says how MPI was built, not what works here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module

NUMBERS = 1000
ANSWER = NUMBERS * (NUMBERS - 1)            # twice 0 + 1 + ... + 999: once from each of the two
LIMIT_S = 60.0                              # for a process that loads MPI, CuPy and a driver

# what launchers and MPI's own daemons set for their ranks: with it the child would pose as one of them.
# The user's settings (OMPI_MCA_pml, UCX_TLS, MPICH_GPU_SUPPORT_ENABLED) stay
LAUNCHERS = ("PMI_", "PMIX_", "PRTE_", "HYDI_", "HYDRA_", "PALS_", "ALPS_", "FLUX_", "SLURM_", "MPI_LOCAL",
             "OMPI_COMM_", "OMPI_UNIVERSE_", "OMPI_APP_", "OMPI_FILE_", "OMPI_FIRST_", "OMPI_NUM_", "OMPI_ARGV",
             "OMPI_COMMAND", "OMPI_MCA_ess", "OMPI_MCA_orte_", "OMPI_MCA_pmix", "OMPI_MCA_prte", "OMPI_MCA_plm")


def alone(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process without a launcher."""
    return {name: value for name, value in environment.items() if not name.startswith(LAUNCHERS)}


def refusal(command: list[str], limit_s: float = LIMIT_S) -> str | None:
    """Why device pointers must not be passed to MPI; None if the child's answer was right."""
    try:
        child = subprocess.run(command, env=alone(os.environ), stdin=subprocess.DEVNULL, capture_output=True,
                               encoding="utf-8", errors="replace", timeout=limit_s, start_new_session=True)
    except subprocess.TimeoutExpired:
        return f"the trial was still running after {limit_s:g} s"
    if child.returncode < 0:
        return f"the trial died of {signal.Signals(-child.returncode).name}"
    if child.returncode:
        return f"the trial ended with status {child.returncode}: {last_line(child.stderr)}"
    if last_line(child.stdout) != str(ANSWER):
        return f"the trial's sum should have been {ANSWER} and was {last_line(child.stdout)}"
    return None


def command(module: str, index: int = 0) -> list[str]:
    return [sys.executable, "-m", "dsgd_mpi.net.gpu.aware", module, str(index)]


def last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2] or "nothing"


def trial(module: str, index: int) -> int:
    """Computes by MPI what should equal `ANSWER`."""
    arrays = import_module(module)
    if module == "cupy":
        arrays.cuda.Device(index).use()
    numbers = arrays.arange(NUMBERS, dtype="float32")
    total, echo = arrays.zeros_like(numbers), arrays.zeros_like(numbers)
    if module == "cupy":
        arrays.cuda.runtime.deviceSynchronize()
    from mpi4py import MPI
    MPI.COMM_WORLD.Allreduce(numbers, total)
    MPI.COMM_WORLD.Sendrecv(numbers, 0, 0, echo, 0, 0)
    return int((total + echo).sum())


if __name__ == "__main__":
    print(trial(sys.argv[1], int(sys.argv[2])), flush=True)
