"""The simulated cluster judged by SimGrid, another simulator: how long the same programs take on both.

Each case is a cluster and what its ranks do, step by step. Means and reads of many parts are one flow here and every
single message there. SimGrid's flows share a link in inverse proportion to their latencies, as TCP's do; so those that
share one here have the same latency.

    apt-get install python3-simgrid
    python -m benchmarks.net.judge
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.net.simulated.host import SimulatedHost
from dsgd_mpi.net.simulated.machine import Link, Machine, Tier
from dsgd_mpi.net.topology import matching

PYTHON = "/usr/bin/python3"                 # for which Debian's package is
THERE = Path(__file__).with_name("simgrid_clusters.py")
PACKAGE, VERSION = "python3-simgrid", "3.32"
UNIT = 1e5                                  # bytes on the wire of a float32 here
STEPS, SEED = 8, 1
NOBODY = -1

Program = list[tuple[Any, ...]]             # what a rank does
STAR = Machine(card=Link(1.25e9, 1e-5), node=Link(1e10, 1e-6), scale=UNIT / 4)
SHARED = replace(STAR, ranks_per_node=4)
TREE = replace(STAR, ranks_per_node=2, tier=(Tier(nodes=4, oversubscription=4.0), Tier()))


@dataclass(frozen=True)
class Case:
    """`programs` by rank: ("compute", seconds), ("exchange", peer, length), ("post", peer, length), ("collect", count),
    ("read", owners, length) of the parts of the first ranks, or ("mean", length); lengths in numbers."""

    machine: Machine
    programs: list[Program]


def here(case: Case) -> list[float]:
    """The seconds at which each rank ends, on our simulated cluster."""
    owners, part = next((words for program in case.programs for what, *words in program if what == "read"), (0, 0))

    def main(host: SimulatedHost) -> float:
        vectors = {length: np.zeros(length, np.float32) for _, *_, length in case.programs[host.rank]
                   if isinstance(length, int)}
        shared = host.share(np.zeros(part if host.rank < owners else 0, np.float32))
        begin, letters = host.now(), 0
        for what, *words in case.programs[host.rank]:
            if what == "compute":
                host.linger(words[0])
            elif what == "exchange":
                host.exchange(vectors[words[1]], words[0]).wait()
            elif what == "post":
                host.post(vectors[words[1]], words[0])
            elif what == "collect":
                while letters < words[0]:
                    letters += len(list(host.collect(least=1)))
                letters -= words[0]
            elif what == "mean":
                host.mean(vectors[words[0]]).wait()
            elif what == "read":
                shared.read_parts([slice(owner * part, owner * part + part) for owner in range(owners)],
                                  np.zeros(owners * part, np.float32))
        return host.now() - begin
    return Cluster(len(case.programs), case.machine).run(main)


def there(cases: dict[str, Case]) -> dict[str, list[float]]:
    """The same on SimGrid. RuntimeError with what went wrong."""
    done = subprocess.run([PYTHON, THERE], text=True, capture_output=True,
                          input=json.dumps({name: described(case) for name, case in cases.items()}))
    if done.returncode:
        raise RuntimeError(f"{THERE.name}: {done.stderr}")
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def missing() -> str:
    """Why it cannot be asked; empty if it can."""
    try:
        done = subprocess.run([PYTHON, "-c", "import simgrid; print(simgrid.simgrid_version)"], capture_output=True,
                              text=True)
    except OSError as error:
        return f"{PYTHON}: {error.strerror}"
    if done.returncode:
        return f"{PYTHON}: {done.stderr.strip().splitlines()[-1]}"
    version = done.stdout.strip()
    return "" if version.startswith(VERSION) else f"it is version {version}, whose functions have other names"


def described(case: Case) -> dict[str, Any]:
    machine = case.machine
    return {"ranks_per_node": machine.ranks_per_node, "cards": machine.cards,
            "card": (machine.card.bytes_per_s, machine.card.latency_s),
            "node": (machine.node.bytes_per_s, machine.node.latency_s),
            "tiers": [{"nodes": tier.nodes, "oversubscription": tier.oversubscription} for tier in machine.tier[:-1]],
            "programs": [[each for step in program for each in in_messages(case, rank, *step)]
                         for rank, program in enumerate(case.programs)]}


def in_messages(case: Case, rank: int, what: str, *words: Any) -> Iterator[tuple[Any, ...]]:
    """What SimGrid's rank does."""
    if what == "exchange":
        yield "swap", words[0], words[0], UNIT * words[1]
    elif what == "post":
        yield "post", words[0], UNIT * words[1]
    elif what == "read":
        yield "read", words[0], UNIT * words[1]
    elif what == "mean":
        way = WAYS[case.machine.collective]
        for to, source, share in way(rank, len(case.programs), case.machine.ranks_per_node):
            yield "swap", to, source, UNIT * words[0] * share
    else:
        yield what, *words


# The messages of a mean: (to, from, share of the vector) of a rank, in order

Messages = Iterator[tuple[int, int, float]]


def ring(rank: int, size: int, each: int) -> Messages:
    for _ in range(2 * (size - 1)):
        yield (rank + 1) % size, (rank - 1) % size, 1 / size


def halving(rank: int, size: int, each: int) -> Messages:
    """Those beyond a power of two give their vectors to others, and get the mean from them."""
    power = 1 << (size.bit_length() - 1)
    if rank >= power:
        yield rank - power, NOBODY, 1.0
        yield NOBODY, rank - power, 1.0
        return
    extra = [rank + power] if rank + power < size else []
    turns = range(1, power.bit_length())
    yield from ((NOBODY, other, 1.0) for other in extra)
    for turn in (*turns, *reversed(turns)):
        peer = rank ^ (power >> turn)
        yield peer, peer, 1 / 2**turn
    yield from ((other, NOBODY, 1.0) for other in extra)


def tree(rank: int, size: int, each: int) -> Messages:
    """Up a binomial tree and down again."""
    up: list[tuple[int, int]] = []
    for bit in range((size - 1).bit_length()):
        if rank >> bit & 1:
            up.append((rank - (1 << bit), NOBODY))
            break
        if rank + (1 << bit) < size:
            up.append((NOBODY, rank + (1 << bit)))
    yield from ((to, source, 1.0) for to, source in up)
    yield from ((source, to, 1.0) for to, source in reversed(up))


def two_level(rank: int, size: int, each: int) -> Messages:
    node, place = divmod(rank, each)

    def within() -> Messages:
        for _ in range(each - 1):
            yield node * each + (place + 1) % each, node * each + (place - 1) % each, 1 / each
    yield from within()
    for _ in range(2 * (size // each - 1)):
        yield (rank + each) % size, (rank - each) % size, 1 / size
    yield from within()


WAYS: dict[str, Callable[[int, int, int], Messages]] = {"ring": ring, "halving": halving, "tree": tree,
                                                        "two-level": two_level}


# Cases

def matched(size: int) -> list[Program]:
    """Every rank computes for a while and meets a random one."""
    draw = np.random.default_rng(SEED)
    meet = [matching(step, size, SEED) for step in range(STEPS)]
    return [[each for step in range(STEPS)
             for each in (("compute", draw.uniform(0, 0.02)), *([("exchange", int(meet[step][rank]), 400)]
                                                              if meet[step][rank] != rank else []))]
            for rank in range(size)]


def posted(size: int, targets: Callable[[np.random.Generator, int], int]) -> list[Program]:
    """Every rank computes and posts, some more than others, and at last collects all that is for it."""
    draw = np.random.default_rng(SEED)
    programs: list[Program] = [[] for _ in range(size)]
    letters = [0] * size
    for _ in range(STEPS):
        for rank in range(size):
            programs[rank].append(("compute", draw.uniform(0, 0.1)))
            if (target := targets(draw, rank)) != rank:
                programs[rank].append(("post", target, int(draw.integers(100, 700))))
                letters[target] += 1
    return [[*program, *([("collect", count)] if count else [])]
            for program, count in zip(programs, letters, strict=True)]


def averaged(machine: Machine, way: Any, size: int) -> Case:
    """Every rank computes for a while, and all take a mean."""
    draw = np.random.default_rng(SEED)
    return Case(replace(machine, collective=way),
                [[("compute", draw.uniform(0, 0.02)), ("mean", 960)] * 2 for _ in range(size)])


def cases() -> dict[str, Case]:
    def another(draw: np.random.Generator, rank: int, size: int = 16) -> int:
        return int((rank + draw.integers(1, size)) % size)
    two_cards = replace(SHARED, cards=2)
    return {
        "a message": Case(STAR, [[("exchange", 1, 400)], [("exchange", 0, 400)]]),
        "matching, star": Case(STAR, matched(16)),
        "matching, cards shared by 4": Case(SHARED, matched(32)),
        "matching, two cards for 4": Case(two_cards, matched(32)),
        "matching, tree 4:1": Case(TREE, matched(32)),
        "all to one, star": Case(STAR, posted(16, lambda draw, rank: 0)),
        "all to one, cards shared by 4": Case(SHARED, posted(16, lambda draw, rank: 0)),
        "all to one, tree 4:1": Case(TREE, posted(16, lambda draw, rank: 0)),
        "random sends, star": Case(STAR, posted(16, another)),
        "random sends, cards shared by 4": Case(SHARED, posted(16, another)),
        "random sends, tree 4:1": Case(TREE, posted(16, another)),
        "all read all parts, star": Case(STAR, [[("read", 16, 40)]] * 16),
        "all read all parts, cards shared by 4": Case(SHARED, [[("read", 32, 40)]] * 32),
        "all read all parts, tree 4:1": Case(TREE, [[("read", 32, 40)]] * 32),
        "all read from 4, cards shared by 4": Case(SHARED, [[("read", 4, 40)]] * 32),
        "all read from 4, tree 4:1": Case(TREE, [[("read", 4, 40)]] * 32),
        "ring, star": averaged(STAR, "ring", 16),
        "halving, star": averaged(STAR, "halving", 16),
        "halving of 12, star": averaged(STAR, "halving", 12),
        "tree, star": averaged(STAR, "tree", 16),
        "tree of 12, star": averaged(STAR, "tree", 12),
        "ring, cards shared by 4": averaged(SHARED, "ring", 16),
        "halving, cards shared by 4": averaged(SHARED, "halving", 16),
        "tree, cards shared by 4": averaged(SHARED, "tree", 16),
        "two-level, cards shared by 4": averaged(SHARED, "two-level", 16),
        "two-level, two cards for 4": averaged(two_cards, "two-level", 16),
        "ring, tree 4:1": averaged(TREE, "ring", 16),
        "halving, tree 4:1": averaged(TREE, "halving", 16),
        "tree, tree 4:1": averaged(TREE, "tree", 16),
        "two-level, tree 4:1": averaged(TREE, "two-level", 16),
    }


@click.command()
def main() -> None:
    """Print the seconds that each case takes on both."""
    if reason := missing():
        raise click.ClickException(f"expected SimGrid {VERSION} (apt-get install {PACKAGE} on Debian 12); {reason}")
    every = cases()
    found = there(every)
    print(f"{'case':34} {'here, s':>10} {'SimGrid, s':>10}  here / SimGrid  a rank, at most")
    for name, case in every.items():
        ours, theirs = np.array(here(case)), np.array(found[name])
        print(f"{name:34} {ours.max():10.5f} {theirs.max():10.5f}  {ours.max() / theirs.max():14.4f}"
              f"  {np.abs(ours / theirs - 1).max():15.4f}")


if __name__ == "__main__":
    main()
