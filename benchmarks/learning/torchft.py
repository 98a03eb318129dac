"""LocalSGD and DiLoCo of torchft 0.2.0 beside ours: two ranks, the same weights, tasks and rates, every rank's losses.

Each rank has a quadratic of its own. Theirs runs as its authors' tests have it: a lighthouse, a manager for each rank,
Gloo, PyTorch's autograd and optimizers. Ours runs on a simulated cluster. torchft sends a fragment so that it arrives
at its turn, ours sends it then: with a delay, ours begins that many steps ahead, and all else is the same.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, NamedTuple

import click
import numpy as np

from benchmarks.shared import provenance
from dsgd_mpi import algorithms, optim
from dsgd_mpi.arrays.flat import Array, Layout
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.net.simulated.host import SimulatedHost

RANKS, STEPS, SIZE = 2, 24, 20
RATES = {"sgd": 0.05, "adamw": 0.05}
NAME = "torchft-2"


class Case(NamedTuple):
    """A method of ours and its options; theirs follow from them. The optimizer is SGD with momentum 0.9, or AdamW."""

    algorithm: str
    options: dict[str, Any]
    optimizer: str = "sgd"


CASES = {
    "local_sgd": Case("local_sgd", {"period": 4}),
    "diloco": Case("diloco", {"period": 4}),
    "diloco, AdamW": Case("diloco", {"period": 4}, "adamw"),
    "diloco, 2 fragments": Case("diloco", {"period": 4, "fragments": 2, "mix": 0.5}),
    "diloco, 2 fragments, delayed": Case("diloco", {"period": 6, "fragments": 2, "delay": 2, "mix": 0.75})}


class Task:
    """f(x) = 1/2 sum h (x - b)^2, of each rank's own, and where all begin."""

    def __init__(self, rank: int) -> None:
        draw = np.random.default_rng((3, rank))
        self.b, self.h, self.start = draw.normal(size=SIZE), draw.uniform(0.2, 1.5, SIZE), np.zeros(SIZE)

    def loss(self, x: Array) -> float:
        return float(np.sum(self.h * (x - self.b) ** 2) / 2)

    def gradient(self, x: Array, hear: Any = None, least: int = 0) -> Array:
        g: Array = self.h * (x - self.b)
        if hear:
            hear(g, slice(0, g.size))
        return g


def ours(case: Case, ahead: int | None = None) -> list[list[float]]:
    """Each rank's loss before each step; its schedule is `ahead` by so many steps, the delay by default."""
    def main(host: SimulatedHost) -> list[float]:
        algorithm, task, found = algorithms.find(case.algorithm)(**case.options), Task(host.rank), []
        x = task.start.copy()
        optimizer = optim.find(case.optimizer)(weight_decay=0.0).start(Layout({"x": x.shape}), x)
        algorithm.t = case.options.get("delay", 0) if ahead is None else ahead
        algorithm.start(host, x, optimizer)
        for _ in range(STEPS):
            found.append(task.loss(x))
            algorithm.step(x, task.gradient, RATES[case.optimizer])
        algorithm.rest(x)
        return found
    return list(Cluster(RANKS).run(main))


def theirs(case: Case) -> list[list[float]]:
    """The same by torchft."""
    from torchft.coordination import LighthouseServer
    lighthouse = LighthouseServer(bind="127.0.0.1:0", min_replicas=RANKS)
    try:
        with ThreadPoolExecutor(RANKS) as ranks:
            address = f"http://127.0.0.1:{lighthouse.address().rpartition(':')[2]}"
            return list(ranks.map(lambda rank: one_of_theirs(case, rank, address), range(RANKS)))
    finally:
        lighthouse.shutdown()


def one_of_theirs(case: Case, rank: int, lighthouse: str) -> list[float]:
    import torch
    from torchft import Manager, ProcessGroupGloo
    from torchft.local_sgd import DiLoCo, LocalSGD
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    minute = timedelta(seconds=60)
    manager = Manager(pg=ProcessGroupGloo(timeout=minute), load_state_dict=lambda state: None, state_dict=dict,
                      min_replica_size=RANKS, use_async_quorum=False, timeout=minute, rank=0, world_size=1,
                      store_addr="127.0.0.1", store_port=store.port, lighthouse_addr=lighthouse,
                      replica_id=str(rank), hostname="127.0.0.1", init_sync=False)
    try:
        count, task = case.options.get("fragments", 1), Task(rank)
        pieces = [torch.nn.ParameterList([torch.nn.Parameter(torch.from_numpy(part.copy()))])
                  for part in np.split(task.start, count)]
        model = torch.nn.ModuleList(pieces)
        inner = (torch.optim.SGD(model.parameters(), RATES["sgd"], momentum=0.9, nesterov=True)
                 if case.optimizer == "sgd" else torch.optim.AdamW(model.parameters(), RATES["adamw"], weight_decay=0))
        if case.algorithm == "local_sgd":
            method: Any = LocalSGD(manager, model, inner, sync_every=case.options["period"])
        else:
            outer = [torch.optim.SGD(piece.parameters(), 0.7, momentum=0.9, nesterov=True) for piece in pieces]
            method = DiLoCo(manager, pieces, inner, outer, sync_every=case.options["period"],
                            fragment_sync_delay=case.options.get("delay", 0),
                            fragment_update_alpha=1 - case.options.get("mix", 1.0))
        h, b, found = torch.from_numpy(task.h), torch.from_numpy(task.b), []
        with method:
            for _ in range(STEPS):
                inner.zero_grad()
                loss = (h * (torch.cat(list(model.parameters())) - b) ** 2).sum() / 2
                found.append(loss.item())
                loss.backward()
                inner.step()
        return found
    finally:
        manager.shutdown(wait=False)


@click.command()
@provenance.saving
def main(save: bool) -> None:
    """Print how far the losses are apart, and save theirs."""
    found = {}
    for name, case in CASES.items():
        found[name] = theirs(case)
        apart = np.abs(np.array(ours(case)) - found[name]).max()
        print(f"{name:30} losses {found[name][0][0]:.4f} to {found[name][0][-1]:.4f}, at most {apart:.1e} apart",
              flush=True)
    if save:
        print(provenance.save(NAME, {"losses": found}))


def recorded() -> dict[str, list[list[float]]]:
    """Their losses, by case, as they were saved."""
    losses: dict[str, list[list[float]]] = json.loads((provenance.RESULTS / f"{NAME}.json").read_text())["losses"]
    return losses


if __name__ == "__main__":
    main()
