"""What 16 bits on the wire cost if the wire is free: `mpirun -n 2 python -m benchmarks.net.wire`, on one node.

An average of a vector as long as ResNet-18's gradient, in 32 and in 16 bits. The difference is the cost of rounding; it
pays off if sending the bytes that are saved would take longer.
"""

from __future__ import annotations

import time

import click
import numpy as np

from benchmarks.shared import provenance
from benchmarks.shared.contest import quartiles
from dsgd_mpi.net.mpi.host import MpiHost

NUMBERS = 11_689_512


@click.command()
@click.option("--rounds", default=15, show_default=True)
@provenance.saving
def main(rounds: int, save: bool) -> None:
    """Time averages in turns; print and save the results."""
    host = MpiHost()
    x = np.random.default_rng(host.rank).normal(size=NUMBERS).astype("float32")
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": [], "float16": []}
    for _ in range(rounds + 1):             # the first warms up
        for kind, samples in seconds.items():
            host.settle()
            start = time.perf_counter()
            host.mean(x, None if kind == "float32" else kind).wait()    # type: ignore[arg-type]
            samples.append(time.perf_counter() - start)
    if host.rank == 0:
        for kind, samples in seconds.items():
            del samples[0]
            print(f"mean of {NUMBERS:,} numbers over {host.size} ranks in {kind:8}: "
                  f"{quartiles(samples, 1, 5, ' ms')}")
        if save:
            print(provenance.save(f"wire-{host.size}", {"numbers": NUMBERS, "ranks": host.size, "seconds": seconds}))
    host.close()


if __name__ == "__main__":
    main()
