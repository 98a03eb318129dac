"""The network of a simulated cluster: the links that a message passes, and what a collective costs.

A node's cards have a link each way; so have a rank within its node, and a switch to the tier above, unless that is as
wide as all cards below it together, when it is never full before they are. A message leaves by the card of its rank.
A collective uses all cards of a node, as those of NCCL and of tuned MPIs do, and is one flow through all its links.

Costs of a mean of n ranks (Thakur, Rabenseifner, Gropp 2005), of N bytes, the rates being those that all ranks have who
send at the same time: ring, 2 (n - 1) messages of N/n; recursive halving and doubling, 2 messages of N/2, N/4, ... to
the rank n/2, n/4, ... further on; tree, 2 log2 n messages of N; two-level, a ring within each node, then one among the
nodes, whose ranks each send their part of the node's N.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

from dsgd_mpi.net.simulated.clock import Clock, Event
from dsgd_mpi.net.simulated.flows import Flows
from dsgd_mpi.net.simulated.machine import Machine


class Cost(NamedTuple):
    """Of a collective on an idle network."""

    seconds: float
    latency_s: float                        # the part that is no transfer
    sent: float                             # bytes that a node sends to others


class Wires:
    """All links between `size` ranks."""

    def __init__(self, clock: Clock, machine: Machine, size: int) -> None:
        self.clock, self.machine, self.size = clock, machine, size
        self.nodes = -(-size // machine.ranks_per_node)
        self.under = [-(-self.nodes // tier.groups) if tier.groups else tier.nodes or self.nodes
                      for tier in machine.tier]     # nodes below one switch
        capacities = [math.inf]             # that of NOWHERE

        def links(count: int, bytes_per_s: float) -> list[int]:
            capacities.extend([bytes_per_s] * count)
            return list(range(len(capacities) - count, len(capacities)))
        cards = self.nodes * machine.cards
        self.out, self.into = (links(cards, machine.card.bytes_per_s) for _ in range(2))
        self.within_out, self.within_in = (links(size, machine.node.bytes_per_s) for _ in range(2))
        self.up: list[list[int]] = []       # by tier, by switch; empty where never full
        self.down: list[list[int]] = []
        for tier, under in zip(machine.tier, self.under, strict=True):
            count = -(-self.nodes // under)
            below = min(under, self.nodes) * machine.cards * machine.card.bytes_per_s
            rate = tier.bytes_per_s or below / tier.oversubscription
            bound = count > 1 and rate < below
            self.up.append(links(count, rate) if bound else [])
            self.down.append(links(count, rate) if bound else [])
        self.flows = Flows(clock, capacities)
        self.route = lru_cache(1 << 16)(self._route)
        self.bundle = cache(self._bundle)
        self.paths: dict[tuple[Sequence[int], float], tuple[Cost, list[int], list[float]]] = {}
        self.busy: dict[Sequence[int], Event] = {}      # the newest mean of those ranks

    def node_of(self, rank: int) -> int:
        return rank // self.machine.ranks_per_node

    def card_of(self, rank: int) -> int:
        node, place = divmod(rank, self.machine.ranks_per_node)
        return node * self.machine.cards + place * self.machine.cards // self.machine.ranks_per_node

    def send(self, source: int, target: int, nbytes: float) -> Event:
        """Happens when the message has arrived; at once if a rank sends to itself."""
        if source == target:
            return self.after(0.0)
        latency, links = self.route(source, target)
        return self.after(latency, nbytes, links)

    def after(self, latency_s: float, nbytes: float = 0.0, links: Sequence[int] = (),
              weights: Sequence[float] | None = None, most: float = math.inf) -> Event:
        """Happens when so many bytes have arrived through these links, on their way from then on."""
        end = Event(self.clock)
        self.clock.at(self.clock.now + latency_s, (lambda: self.flows.begin(end, nbytes, links, weights, most))
                      if nbytes else end.happen)
        return end

    def latency_s(self, source: int, target: int) -> float:
        """Of an empty message."""
        return self.route(source, target)[0] if source != target else 0.0

    def latencies_s(self, rank: int, owners: Sequence[int]) -> float:
        """Of an empty message to each of the `owners`, their sum."""
        if not isinstance(owners, range):
            return sum(self.latency_s(rank, owner) for owner in owners)
        near, *below = self.among(rank, len(owners))
        total, latency = (near - (rank in owners)) * self.machine.node.latency_s, self.machine.card.latency_s
        for tier, count in zip(self.machine.tier, below, strict=True):
            total += (count - near) * (latency + tier.hop_s)
            near, latency = count, latency + 2 * tier.hop_s
        return total + (len(owners) - near) * latency

    def spread(self, rank: int, nbytes: float, owners: Sequence[int], to_them: bool) -> Event:
        """Parts of equal length between a rank and each other of the `owners`, the first ranks or a tuple: one flow."""
        return self.after(0.0, nbytes / (len(owners) - (rank in owners)), *self.bundle(rank, owners, to_them))

    def _bundle(self, rank: int, owners: Sequence[int], to_them: bool) -> tuple[list[int], list[int]]:
        """The links between them, and how many of the parts pass each.

        If all ranks are owners, all do the same: the others' links are as full as this one's.
        """
        if len(owners) < self.size:
            ends = [(rank, owner) if to_them else (owner, rank) for owner in owners if owner != rank]
            parts = Counter(link for pair in ends for link in self.route(*pair)[1])
        else:
            near, *below = self.among(rank, self.size)
            parts = Counter({(self.within_out if to_them else self.within_in)[rank]: near - 1,
                             (self.out if to_them else self.into)[self.card_of(rank)]: self.size - near})
            for under, links, count in zip(self.under, self.up if to_them else self.down, below, strict=True):
                if links:
                    parts[links[self.node_of(rank) // under]] = self.size - count
        return list(+parts), list((+parts).values())

    def among(self, rank: int, owners: int) -> list[int]:
        """How many of the first `owners` ranks are on its node, and below its switch of each tier; it may be one."""
        blocks = [under * self.machine.ranks_per_node for under in (1, *self.under)]
        return [max(0, min(owners - rank // block * block, block)) for block in blocks]

    def mean(self, nbytes: float, ranks: Sequence[int]) -> Event:
        """Happens when the mean of vectors of these ranks, which all take part now, is on all of them."""
        if len(ranks) == 1 or not nbytes:
            return self.after(self.barrier_s(ranks))
        if (ranks, nbytes) not in self.paths:
            self.paths[ranks, nbytes] = self.path(self.cheapest(nbytes, ranks), ranks)
        cost, links, weights = self.paths[ranks, nbytes]
        size = cost.seconds - cost.latency_s
        end = Event(self.clock)

        def begin() -> None:
            self.after(cost.latency_s, cost.sent, links, weights, cost.sent / size).then(end.happen)
        before = self.busy.get(ranks)
        self.busy[ranks] = end
        if before and self.machine.ordered_buckets:
            before.then(begin)
        else:
            begin()
        return end

    def barrier_s(self, ranks: Sequence[int]) -> float:
        """Up and down a binary tree of empty messages."""
        return 2 * self.farthest_s(ranks) * (len(ranks) - 1).bit_length()

    def broadcast_s(self, nbytes: float, ranks: Sequence[int]) -> float:
        """Down a binary tree, or scattered over it and gathered by a ring: the faster way (Thakur et al. 2005)."""
        near = self.node_of(ranks[0]) == self.node_of(ranks[-1])
        rate = self.machine.node.bytes_per_s if near else self.machine.card.bytes_per_s
        n, rounds, latency = len(ranks), (len(ranks) - 1).bit_length(), self.farthest_s(ranks)
        return min((latency + nbytes / rate) * rounds, latency * (rounds + n - 1) + 2 * (n - 1) / n * nbytes / rate)

    def farthest_s(self, ranks: Sequence[int]) -> float:
        """The latency between those that are farthest apart."""
        return self.latency_s(ranks[0], ranks[-1])

    def cheapest(self, nbytes: float, ranks: Sequence[int]) -> Cost:
        """By the machine's way to take a mean, or the fastest for so many bytes."""
        costs = self.costs(nbytes, ranks)
        way = self.machine.collective
        return min(costs.values()) if way == "fastest" else costs[way]

    def costs(self, nbytes: float, ranks: Sequence[int]) -> dict[str, Cost]:
        """Of each way, on an idle network."""
        n, nodes = len(ranks), len({self.node_of(rank) for rank in ranks})
        p = -(-n // nodes)                  # ranks on a node
        latency = self.farthest_s(ranks) + self.machine.mean_s
        node, near = self.machine.node, self.machine.node.latency_s + self.machine.mean_s
        cards = self.machine.cards * self.machine.card.bytes_per_s
        up = [float(self.flows.capacities[links[0]]) for links in self.up if links]
        joined = [under for under, links in zip(self.under, self.up, strict=True) if links]
        crosses = [nodes > each for each in joined]
        uplink = min([rate for rate, cross in zip(up, crosses, strict=True) if cross], default=math.inf)

        def apart(distance: int) -> bool:
            """Whether ranks that meet at this distance, a power of two, are on two nodes, if only some."""
            return nodes > 1 and p % (2 * distance) > 0

        def between(flows: int, distance: float, senders: int = 0) -> float:
            """The rate of each when so many ranks of a node send at once to nodes so far away.

            All nodes below a switch do so, or `senders` of them.
            """
            uplinks = [rate / (senders or each) for rate, each in zip(up, joined, strict=True) if distance >= each]
            return min([cards, *uplinks]) / flows
        wide = min(cards, uplink)           # between nodes that each send to one other
        wire = min(node.bytes_per_s if p > 1 else math.inf, wide if nodes > 1 else math.inf)
        turns = 2 * (n - 1)
        found = {"ring": Cost(turns * (latency + nbytes / n / wire), turns * latency, turns * nbytes / n)}
        seconds = waits = sent = 0.0
        for turn in range((n - 1).bit_length()):
            distance = 2**turn
            rate, late = (between(1, distance / p, 1), latency) if apart(distance) else (node.bytes_per_s, near)
            seconds += 2 * (late + nbytes / rate)
            waits += 2 * late
            sent += 2 * nbytes * (apart(distance) or nodes == 1)
        found["tree"] = Cost(seconds, waits, sent)
        seconds = waits = sent = 0.0
        rounds = n.bit_length() - 1
        for turn in range(1, rounds + 1):
            distance = 2 ** (rounds - turn)
            rate, late = (between(p, distance / p), latency) if apart(distance) else (node.bytes_per_s, near)
            seconds += 2 * (late + nbytes / 2**turn / rate)
            waits += 2 * late
            sent += 2 * nbytes / 2**turn * (p if apart(distance) or nodes == 1 else 0)
        if n & (n - 1):                     # those beyond a power of two join others before and after
            rate = between(p, 1) if nodes > 1 else node.bytes_per_s
            seconds, waits, sent = seconds + 2 * (latency + nbytes / rate), waits + 2 * latency, sent + 2 * nbytes
        found["halving"] = Cost(seconds, waits, max(sent, nbytes))
        if p > 1 and nodes > 1:
            inside, outside = 2 * (p - 1), 2 * (nodes - 1)
            found["two-level"] = Cost(
                inside * (near + nbytes / p / node.bytes_per_s) + outside * (latency + nbytes / nodes / wide),
                inside * near + outside * latency, outside * nbytes / nodes)
        else:
            found["two-level"] = found["ring"]
        if (times := self.machine.mean_factor) != 1.0:
            found = {way: Cost(late + times * (seconds - late), late, sent)
                     for way, (seconds, late, sent) in found.items()}
        return found

    def path(self, cost: Cost, ranks: Sequence[int]) -> tuple[Cost, list[int], list[float]]:
        """The links of a collective, each with what a byte that a node sends to others is on it."""
        nodes = sorted({self.node_of(rank) for rank in ranks})
        if len(nodes) == 1:
            links = [self.within_out[rank] for rank in ranks] + [self.within_in[rank] for rank in ranks]
            return cost, links, [1.0] * len(links)
        cards = [node * self.machine.cards + card for node in nodes for card in range(self.machine.cards)]
        links = [self.out[card] for card in cards] + [self.into[card] for card in cards]
        weights = [1 / self.machine.cards] * len(links)
        for under, up, down in zip(self.under, self.up, self.down, strict=True):
            if up and len(used := sorted({node // under for node in nodes})) > 1:
                both = [way[switch] for switch in used for way in (up, down)]
                links, weights = links + both, weights + [1.0] * len(both)
        return cost, links, weights

    def _route(self, source: int, target: int) -> tuple[float, tuple[int, ...]]:
        """Latency and links of a message to another rank."""
        a, b = self.node_of(source), self.node_of(target)
        if a == b:
            return self.machine.node.latency_s, (self.within_out[source], self.within_in[target])
        latency = self.machine.card.latency_s
        links = [self.out[self.card_of(source)], self.into[self.card_of(target)]]
        for tier, under, up, down in zip(self.machine.tier, self.under, self.up, self.down, strict=True):
            left, right = a // under, b // under
            if left == right:
                return latency + tier.hop_s, tuple(links)
            latency += 2 * tier.hop_s
            links += [up[left], down[right]] if up else []
        return latency, tuple(links)


class Among:
    """The wires between some of the ranks that are joined by others: `Wires` by the numbers of a group."""

    def __init__(self, wires: Wires | Among, ranks: tuple[int, ...]) -> None:
        self.wires, self.ranks = wires, ranks
        self.nodes: int = wires.nodes

    def node_of(self, rank: int) -> int:
        return self.wires.node_of(self.ranks[rank])

    def after(self, latency_s: float) -> Event:
        return self.wires.after(latency_s)

    def send(self, source: int, target: int, nbytes: float) -> Event:
        return self.wires.send(self.ranks[source], self.ranks[target], nbytes)

    def latency_s(self, source: int, target: int) -> float:
        return self.wires.latency_s(self.ranks[source], self.ranks[target])

    def spread(self, rank: int, nbytes: float, owners: Sequence[int], to_them: bool) -> Event:
        return self.wires.spread(self.ranks[rank], nbytes, tuple(self.ranks[owner] for owner in owners), to_them)

    def latencies_s(self, rank: int, owners: Sequence[int]) -> float:
        return self.wires.latencies_s(self.ranks[rank], tuple(self.ranks[owner] for owner in owners))

    def mean(self, nbytes: float, ranks: Sequence[int]) -> Event:
        return self.wires.mean(nbytes, self.ranks)

    def barrier_s(self, ranks: Sequence[int]) -> float:
        return self.wires.barrier_s(self.ranks)

    def broadcast_s(self, nbytes: float, ranks: Sequence[int]) -> float:
        return self.wires.broadcast_s(nbytes, self.ranks)
