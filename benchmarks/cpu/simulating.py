"""What a simulation with real gradients costs besides them: `python -m benchmarks.cpu.simulating`. resnet8, 28 x 28.

Between two steps of simulated rank 0, as many gradients as there are ranks are computed by the bare network, so that
whatever else the machine does affects both alike; CPU time, one thread. Memory is that of the process once all ranks
have begun, less what it was before, in vectors as long as the model. Evaluation is not counted.
"""

from __future__ import annotations

import resource
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from dsgd_mpi import algorithms
from dsgd_mpi.config import Config
from dsgd_mpi.net.simulated import machine as machines
from dsgd_mpi.net.simulated.host import SimulatedHost
from dsgd_mpi.nn import Model
from dsgd_mpi.study import simulate
from dsgd_mpi.training import build


@click.command()
@click.option("--ranks", default=128, show_default=True)
@click.option("--batch", default=4, show_default=True)
@click.option("--steps", default=8, show_default=True)
@click.option("--algorithm", "names", multiple=True, type=click.Choice(algorithms.names()),
              default=("allreduce", "gossip", "parameter_server", "easgd"), show_default=True)
def main(ranks: int, batch: int, steps: int, names: tuple[str, ...]) -> None:
    """Print the rate of simulated gradients as a share of the bare network's."""
    print(f"{'algorithm':18} {'of the bare rate':>16} {'range':>12}  {'bare, images/s':>14}  vectors a rank")
    for name in names:
        with get_context("spawn").Pool(1) as process:   # one of its own, whose memory is counted
            shares, rate, vectors = process.apply(measured, (name, ranks, batch, steps))
        print(f"{name:18} {median(shares):16.1%} {min(shares):5.0%} - {max(shares):4.0%}  {rate:14,.0f}"
              f"  {vectors:14.2f}")


def measured(name: str, ranks: int, batch: int, steps: int) -> tuple[list[float], float, float]:
    """The share of each step but the first two, images per second without a simulation, and vectors a rank."""
    bare, whole, held = [], [], []
    network: list[Model] = []
    end = 0.0
    agreed, prepare = SimulatedHost.stop_agreed, simulate.prepare

    def prepared(*args: Any) -> build.Prepared:
        parts = prepare(*args)
        config = parts.config
        parts.network = Model(parts.graph, config.batch, parts.kernels, config.seed, config.smoothing)
        network.append(parts.network)
        held.append(resident())
        return parts

    def boundary(self: SimulatedHost, step: int, asked: bool) -> bool:
        nonlocal end
        if self.rank == 0:
            begin = time.process_time()
            images, labels = np.zeros((batch, 28, 28, 1), np.float32), np.zeros(batch, np.int64)
            for _ in range(ranks):
                network[0].loss_and_gradient(images, labels)
            whole.append(begin - end)
            end = time.process_time()
            bare.append(end - begin)
            held.append(resident())
        return agreed(self, step, asked)
    with tempfile.TemporaryDirectory() as folder:
        SimulatedHost.stop_agreed, simulate.prepare = boundary, prepared
        try:
            config = Config(algorithm=name, steps=steps + 2, batch=batch, threads=1, quiet=True, eval_every=1e9,
                            lr=0.001, out=str(Path(folder, "run")))
            simulate.run(config, simulate.Simulation(machines.star(), ranks))
        finally:
            SimulatedHost.stop_agreed, simulate.prepare = agreed, prepare
    vectors = (held[-1] - held[0]) / ranks / network[0].flat.nbytes
    shares = [alone / with_it for alone, with_it in zip(bare[1:], whole[2:], strict=False)]
    return shares, ranks * batch / median(bare), vectors


def resident() -> float:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
