"""The programs of benchmarks.net.judge on SimGrid's network: JSON on stdin, the seconds at which ranks end on stdout.

Run by the interpreter that has Debian's `python3-simgrid`, and it alone: nothing of this project is imported. Links and
routes are made here once more, from what a cluster's file says.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from simgrid import Actor, Comm, Engine, Link, LinkInRoute, Mailbox, NetZone, this_actor

# messages take latency + bytes / rate and share links max-min fairly: none of the factors that SimGrid fitted to TCP.
# Full: its usual way to update rates, Lazy, lets many that begin at the same time exceed a link (3.32)
MODEL = ("network/model:CM02", "network/bandwidth-factor:1", "network/latency-factor:1", "network/weight-S:0",
         "network/TCP-gamma:1e12", "network/crosstraffic:0", "network/optim:Full")


class Cluster:
    """One case: its ranks are hosts of the zone."""

    def __init__(self, zone: NetZone, name: str, case: dict[str, Any]) -> None:
        self.zone, self.name, self.case = zone, name, case
        count = len(case["programs"])
        self.ends = [0.0] * count
        self.hosts = [zone.create_host(f"{name}-{rank}", 1e9) for rank in range(count)]
        self.links: dict[str, Link] = {}
        for source in range(count):
            for target in range(count):
                if source != target:
                    links = [LinkInRoute(link) for link in self.route(source, target)]
                    zone.add_route(self.hosts[source].netpoint, self.hosts[target].netpoint, None, None, links, False)

    def link(self, name: str, bytes_per_s: float, latency_s: float = 0.0) -> Link:
        """The one of that name."""
        if name not in self.links:
            self.links[name] = self.zone.create_link(f"{self.name}-{name}", bytes_per_s)
            self.links[name].set_latency(latency_s).seal()
        return self.links[name]

    def route(self, source: int, target: int) -> list[Link]:
        case, each = self.case, self.case["ranks_per_node"]
        (rate, latency), (near_rate, near_latency) = case["card"], case["node"]
        a, b = source // each, target // each
        if a == b:
            return [self.link(f"out of rank {source}", near_rate, near_latency),
                    self.link(f"into rank {target}", near_rate)]

        def card(rank: int) -> str:
            return f"card {rank % each * case['cards'] // each} of node {rank // each}"
        first, last = [self.link(f"out of {card(source)}", rate, latency)], [self.link(f"into {card(target)}", rate)]
        for number, tier in enumerate(case["tiers"]):
            left, right = a // tier["nodes"], b // tier["nodes"]
            if left == right:
                break
            above = tier["nodes"] * case["cards"] * rate / tier["oversubscription"]
            first.append(self.link(f"up from switch {left} of tier {number}", above))
            last.insert(0, self.link(f"down to switch {right} of tier {number}", above))
        return first + last

    def start(self) -> None:
        for rank, program in enumerate(self.case["programs"]):
            Actor.create(f"{self.name}-{rank}", self.hosts[rank], self.run, rank, program)

    def box(self, *who: int) -> Mailbox:
        return Mailbox.by_name(f"{self.name}-{'-'.join(map(str, who))}")

    def run(self, rank: int, program: list[list[Any]]) -> None:
        """`compute` for seconds; `swap` bytes: send them to one rank, and receive as many from another, or -1, nobody;
        `post` bytes; `collect` so many letters; `read` bytes from each of the first so many."""
        self.box(rank).set_receiver(Actor.self())       # letters are on their way from when they are posted
        posted = []
        for what, *words in program:
            if what == "compute":
                this_actor.sleep_for(words[0])
            elif what == "swap":
                to, source, nbytes = words
                # the second of a pair is what the message is written to: it must live
                gets = [self.box(source, rank).get_async()] if source >= 0 else []
                puts = [self.box(rank, to).put_async("", round(nbytes))] if to >= 0 else []
                Comm.wait_all([got for got, _ in gets] + puts)
            elif what == "post":
                posted.append(self.box(words[0]).put_async("", round(words[1])))
            elif what == "collect":
                for _ in range(words[0]):
                    self.box(rank).get()
            elif what == "read":
                Comm.wait_all([Comm.sendto_async(self.hosts[owner], self.hosts[rank], round(words[1]))
                               for owner in range(words[0]) if owner != rank])
        self.ends[rank] = Engine.clock
        Comm.wait_all(posted)


def main() -> None:
    cases = json.load(sys.stdin)
    engine = Engine([sys.argv[0], "--log=root.thres:error", *(f"--cfg={each}" for each in MODEL)])
    zone = NetZone.create_full_zone("all")
    clusters = [Cluster(zone, name, case) for name, case in cases.items()]
    zone.seal()
    for cluster in clusters:
        cluster.start()
    engine.run()
    json.dump({cluster.name: cluster.ends for cluster in clusters}, sys.stdout)


if __name__ == "__main__":
    main()
