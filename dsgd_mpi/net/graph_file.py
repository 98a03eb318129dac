"""A graph of the user's own: who sends to whom, and by what weight, from an edge list or from GraphML.

FILE.edges or FILE.txt has a line `SOURCE TARGET [WEIGHT]` for each edge, between ranks 0 to n - 1, and `#` before a
comment; edges go both ways, or from source to target alone if the first line is `directed`. In FILE.graphml, which
networkx reads, nodes are ranks by their numbers or, if they have names, in the order of the file, and an edge may have
an attribute `weight`.

The weight of an edge both ways is W_ij: without weights 1 / (1 + max(d_i, d_j)) for degrees d (Metropolis). That of an
edge one way is the share of what the source has that it sends to the target: without weights 1 / (1 + d_i). What is
left to 1 a rank keeps. So W is doubly stochastic, or all that a rank has, a column of W, sums to 1.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from dsgd_mpi.errors import UsageError
from dsgd_mpi.files import regular

SUFFIXES = ".graphml", ".edges", ".txt"
MOST_BYTES = 64 << 20                       # of a file: what is longer is something else
TOLERANCE = 1e-6                            # of a sum of weights that were written in decimals
Rows = list[dict[int, float]]               # rank -> to whom it sends, in ascending order -> by what weight


class Edge(NamedTuple):
    source: int
    target: int
    weight: float | None
    where: str                              # in the file


class GraphFile(str):
    """The path, as it was given, and what was read from there."""

    rows: Rows
    senders: list[list[int]]                # rank -> who sends to it, in ascending order
    directed: bool
    digest: str                             # of what it says, not of how

    def check(self, size: int) -> None:
        """UsageError unless it has as many nodes as there are ranks."""
        if len(self.rows) != size:
            raise UsageError(f"graph {self}: expected a node for each of {size} ranks, found {len(self.rows)}; "
                             f"run on {len(self.rows)}, or give a graph of {size}")


def read(path: str, what: str, push: bool) -> GraphFile:
    """UsageError, which begins with `what`, unless models come to their mean on this graph.

    `push`: edges may go one way, by an algorithm whose messages carry weights; then a rank must keep a part of its own.
    """
    try:
        about = os.stat(path)
        return _read(path, push, (about.st_ino, about.st_size, about.st_mtime_ns))
    except OSError as error:
        raise UsageError(f"{what}: {path}: cannot be read ({error.strerror}); expected a file of edges") from None
    except ValueError as problem:
        raise UsageError(f"{what}: {path}: {problem}") from None


@lru_cache(4)
def _read(path: str, push: bool, stamp: tuple[int, ...]) -> GraphFile:
    """ValueError if it is no such graph. `stamp` tells versions of a file apart."""
    with open(path, "rb", opener=regular) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"longer than {MOST_BYTES >> 20} MiB; expected a file of edges")
    directed, edges = graphml(data) if path.endswith(".graphml") else edge_list(data)
    if directed and not push:
        raise ValueError("expected edges that go both ways, found a directed graph; use an algorithm that sends "
                         "weights along, such as sgp, or give an undirected graph")
    graph = GraphFile(path)
    graph.directed, graph.rows = directed, rows_of(edges, directed)
    graph.senders = [[] for _ in graph.rows]
    for rank, row in enumerate(graph.rows):
        for peer in row:
            graph.senders[peer].append(rank)
    must_mix(graph, push)
    graph.digest = hashlib.sha256(json.dumps([directed, [list(row.items()) for row in graph.rows]]).encode()
                                  ).hexdigest()[:8]
    return graph


def edge_list(data: bytes) -> tuple[bool, list[Edge]]:
    """Whether edges go one way, and the edges."""
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"expected text in UTF-8, found byte {data[error.start]:#04x}; save it again as UTF-8"
                         ) from None
    directed = False
    edges: list[Edge] = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if words == ["directed"] and not edges:
            directed = True
        elif words:
            where = f"line {number}"
            if len(words) not in (2, 3) or not all(map(is_rank, words[:2])):
                raise ValueError(f"{where}: expected SOURCE TARGET [WEIGHT], the first two ranks from 0 on, found "
                                 f"{line.strip()[:60]!r}")
            edges.append(Edge(int(words[0]), int(words[1]), weight_of([*words, None][2], where), where))
    return directed, edges


def graphml(data: bytes) -> tuple[bool, list[Edge]]:
    """The same of GraphML."""
    try:
        import networkx
    except ImportError:
        raise ValueError("GraphML needs networkx; pip install 'dsgd_mpi[graphs]', or give an edge list, FILE.edges"
                         ) from None
    try:
        graph: Any = networkx.read_graphml(io.BytesIO(data))
    except Exception as error:              # of an XML parser, of networkx, or by what it did not expect
        raise ValueError(f"not GraphML: {' '.join(str(error).split())[:200]}") from None
    nodes = list(graph.nodes)
    ranks = {name: int(name) if all(map(is_rank, nodes)) else rank for rank, name in enumerate(nodes)}
    edges = [Edge(rank, rank, None, "") for name, rank in ranks.items() if not graph.degree(name)]
    for source, target, found in graph.edges(data=True):
        where = f"edge {source} {target}"
        edges.append(Edge(ranks[source], ranks[target], weight_of(found.get("weight"), where), where))
    return graph.is_directed(), edges


def is_rank(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def weight_of(text: Any, where: str) -> float | None:
    """None if there is none."""
    if text is None:
        return None
    try:
        weight = float(text)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 < weight <= 1:
        raise ValueError(f"{where}: expected a weight above 0 and at most 1, found {str(text)[:60]!r}")
    return weight


def rows_of(edges: list[Edge], directed: bool) -> Rows:
    """Weights as given, or those that are usual."""
    nodes = {node for edge in edges for node in edge[:2]}
    if not nodes:
        raise ValueError("expected edges, found none")
    missing = next(node for node in itertools.count() if node not in nodes)
    if missing != len(nodes):
        raise ValueError(f"expected nodes 0 to {len(nodes) - 1}, found node {max(nodes)} but no node {missing}; number "
                         "them from 0")
    given: dict[tuple[int, int], float | None] = {}
    for source, target, weight, where in edges:
        for pair in [(source, target)] if directed else [(source, target), (target, source)]:
            if given.setdefault(pair, weight) != weight:
                raise ValueError(f"{where}: expected one weight for the edge {source} {target}, found {given[pair]} "
                                 f"and {weight}; give it once, or let the first line be `directed` if edges go one way")
    without = [edge.where for edge in edges if edge.weight is None and edge.source != edge.target]
    if without and any(edge.weight is not None for edge in edges):
        raise ValueError(f"{without[0]}: expected a weight, as other edges have, found none; give all one, or none")
    degree = [0] * len(nodes)
    for source, target in given:
        degree[source] += source != target
    rows: Rows = [{} for _ in nodes]
    for (source, target), weight in sorted(given.items()):
        if source != target:
            most = degree[source] if directed else max(degree[source], degree[target])
            rows[source][target] = weight or 1 / (1 + most)
    for node, row in enumerate(rows):
        own = given.get((node, node))
        total = sum(row.values()) + (own or 0)
        if total > 1 + TOLERANCE or (own and total < 1 - TOLERANCE):
            raise ValueError(f"the weights of node {node} sum to {total:g}, expected "
                             f"{'1, its own included' if own else 'at most 1, the rest being its own'}; scale them, or "
                             f"leave all out for {'equal shares' if directed else 'Metropolis weights'}")
    return rows


def must_mix(graph: GraphFile, push: bool) -> None:
    """ValueError unless repeated averages bring all ranks together."""
    for ways in (graph.rows, graph.senders):
        depth = depths(ways)
        if lost := [rank for rank in range(len(ways)) if rank not in depth]:
            first, last = (0, lost[0]) if ways is graph.rows else (lost[0], 0)
            raise ValueError(f"not connected: there is no way from node {first} to node {last}; add edges that join "
                             f"them{', in both directions' if graph.directed else ''}")
    selfless = [rank for rank, row in enumerate(graph.rows) if sum(row.values()) > 1 - TOLERANCE]
    if push and selfless:
        raise ValueError(f"the weights of node {selfless[0]} sum to 1, expected less, since it must keep a part "
                         "of what it has; scale them down")
    if len(selfless) == len(graph.rows) and all((depth[rank] + depth[peer]) % 2 for rank, row in enumerate(graph.rows)
                                                for peer in row):
        raise ValueError("the weights of all nodes sum to 1, and the two halves of the graph would swap their models "
                         "for ever; scale them down, so that nodes keep a part of their own")


def depths(ways: Sequence[Iterable[int]]) -> dict[int, int]:
    """How many edges each node is from node 0, of those that can be reached."""
    found, queue = {0: 0}, [0]
    for node in queue:
        for peer in ways[node]:
            if peer not in found:
                found[peer] = found[node] + 1
                queue.append(peer)
    return found
