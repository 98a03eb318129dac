"""What the verbs and the gradients of a job cost, timed on all of its ranks: on MPI or on a simulated cluster.

Of a verb that several ranks take part in, the time of the rank that came last counts: the others wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.doctor.selftest import seconds as timed
from dsgd_mpi.net.api import Host

MOST_BYTES = 1 << 23                        # of one message
TURNS = 300                                 # at most, of one verb and size
Act = Callable[[], Any]


class Points(NamedTuple):
    """Seconds by bytes: the median of some turns, for each size."""

    bytes: list[float]
    seconds: list[float]


@dataclass(frozen=True)
class Groups:
    """Which ranks are where: on `nodes` nodes, `per_node` ranks each, in order."""

    rank: int
    size: int
    per_node: int

    @property
    def nodes(self) -> int:
        return self.size // self.per_node

    def within(self) -> int | None:
        """This rank's partner on its node, and that one's partner it is; None if it is the odd one out."""
        node, place = divmod(self.rank, self.per_node)
        other = place ^ 1
        return node * self.per_node + other if other < self.per_node else None

    def between(self) -> int | None:
        """The same, on another node."""
        node, place = divmod(self.rank, self.per_node)
        other = node ^ 1
        return other * self.per_node + place if other < self.nodes else None


def sizes(own: int) -> list[int]:
    """Bytes of messages to be timed, around those of the model, which count most."""
    return sorted({4, 1 << 10, 1 << 13, *(min(MOST_BYTES, max(1 << 14, own * up // 8 * 8)) for up in (1, 2, 4)),
                   *(min(MOST_BYTES, max(1 << 14, own // down // 8 * 8)) for down in (2, 4))})


def messages(host: Host, groups: Groups, like: Array, own: int, seconds: float) -> dict[str, Points]:
    """Collective: every verb with every size, in about so many seconds; `like`: an array as those to be sent are."""
    kinds = {"mean": host.size > 1, "within": groups.per_node > 1, "between": groups.nodes > 1}
    every = sizes(own)
    acts = {kind: collective for kind, there in kinds.items() if there}
    one_sided = ("read", "add") if host.size > 1 else ()
    budget = seconds / len(every) / max(1, len(acts) + 2 * len(one_sided))
    found: dict[str, list[tuple[int, float]]] = {}
    for nbytes in every:
        x = like[:0].copy()
        x = np.zeros_like(like, shape=max(1, nbytes // like.itemsize))
        shared = host.share(x.copy())
        for kind in acts:
            peer = {"within": groups.within, "between": groups.between}.get(kind, lambda: host.rank)()
            act = (lambda x=x: host.mean(x).wait()) if kind == "mean" else (
                lambda x=x, peer=peer: host.exchange(x, peer).wait() if peer is not None else None)
            found.setdefault(kind, []).append((nbytes, collective(host, act, budget)))
        far = groups.between() if groups.nodes > 1 else groups.within()
        for kind, owner in ((f"{verb} {whose}", owner) for verb in one_sided for whose, owner in
                            (("other", far), ("own", host.rank))):
            call = shared.read if kind.startswith("read") else shared.add
            out = (x,) if kind.startswith("add") else (x, True)
            act = lambda call=call, owner=owner, out=out: call(owner, *out)   # noqa: E731
            acting = owner is not None and (kind.endswith("own") or acts_first(host.rank, owner))
            found.setdefault(kind, []).append((nbytes, alone(host, act, acting, budget)))
    return {kind: Points(*map(list, zip(*points, strict=True))) for kind, points in found.items()}


def acts_first(rank: int, other: int) -> bool:
    """Of two partners one acts, and the other is idle."""
    return rank < other


def collective(host: Host, act: Act, budget_s: float) -> float:
    """Collective: seconds of a verb that takes all; each rank's partner makes the same call."""
    timed(host, [act] * 2)
    slowest = max(host.allgather(sum(timed(host, [act]))))
    turns = round(min(TURNS, max(5, budget_s / max(slowest, 1e-6))))
    took = []
    for _ in range(turns):
        host.settle()
        took += timed(host, [act])
    every = np.array(host.allgather(took))
    return float(np.median(every.min(axis=0)))      # that of the last to come


def alone(host: Host, act: Act, acting: bool, budget_s: float) -> float:
    """Collective: seconds of a one-sided call of those ranks that act, while the others wait in MPI."""
    first = sum(timed(host, [act] * 2)) / 2 if acting else 0.0
    turns = round(min(TURNS, max(5, budget_s / max(*host.allgather(first), 1e-6))))
    took = timed(host, [act] * turns) if acting else []
    host.settle()
    return float(np.median([each for own in host.allgather(took) for each in own]))


def to_busy(host: Host, groups: Groups, like: Array, own: int, gradients: Iterator[float], turns: int) -> float:
    """Collective: mean seconds of an addition as large as the model to a rank that computes, at random times."""
    peer = groups.between() if groups.nodes > 1 else groups.within()
    x = np.zeros_like(like, shape=max(1, own // like.itemsize))
    shared = host.share(x.copy())
    took: list[float] = []
    step = max(host.allgather(next(gradients)))
    pauses = np.random.default_rng(host.rank).uniform(0, step, turns).tolist()
    host.settle()
    if peer is not None and acts_first(host.rank, peer):
        for pause in pauses:                # else it would come at the same moment of each gradient
            host.linger(pause)
            took += timed(host, [lambda: shared.add(peer, x)])
        host.post(np.zeros(1, np.float32), peer)
    elif peer is not None:
        while not list(host.collect()):
            next(gradients)
    host.settle()
    return float(np.mean([each for part in host.allgather(took) for each in part]))


def steps(host: Host, model: Any, optimizer: Any, batches: Any) -> Generator[float, None, None]:
    """Seconds of one step after another of this rank, all but its messages: batch, gradient and update at rate 0."""
    with closing(batches.stream()) as stream:
        while True:
            start = host.now()
            images, labels = next(stream)
            later = host.compute(model.begin, model.kernels.send(images), labels, between=host.progress)
            later.wait(host.progress)
            optimizer.update(model.flat, model.flat_gradient, 0.0)
            yield host.now() - start


def gradients(host: Host, stepping: Iterator[float], seconds: float, least: int) -> list[list[float]]:
    """Collective: by rank, the seconds of as many steps, taken by all at the same time."""
    for _ in range(3):
        next(stepping)
    host.settle()
    slowest = max(host.allgather(next(stepping)))
    turns = round(max(least, seconds / max(slowest, 1e-6)))
    host.settle()
    found = [next(stepping) for _ in range(min(turns, 5000))]
    host.settle()
    every: list[list[float]] = host.allgather(found)
    return every
