"""Shared counters of the steps that each worker has taken, kept one-sided."""

from __future__ import annotations

from dsgd_mpi.net.api import Net


class Clocks:
    """Collective to construct. `done`: this rank's steps so far; the first `servers` ranks take none and are ignored.

    A worker that would be more than `lead` steps ahead of the slowest waits for it (0: it never waits).
    """

    def __init__(self, net: Net, done: int, servers: int, lead: int) -> None:
        self.net, self.done, self.servers, self.lead = net, done, servers, lead
        self.steps = net.counters(net.size)
        self.steps.add(net.rank, done)

    def tick(self) -> None:
        """This rank has taken one more step."""
        self.done += 1
        if self.servers or self.lead:       # somebody reads it
            self.steps.add(self.net.rank)
        if self.lead:
            self.wait_for_all(self.done - self.lead)

    def serve(self, steps: int) -> bool:
        """Whether this rank only serves; it then waits until every worker has taken at least that many steps."""
        if self.net.rank < self.servers:
            self.wait_for_all(steps)
        return self.net.rank < self.servers

    def wait_for_all(self, steps: int) -> None:
        """Until every worker has taken at least that many."""
        while self.steps.values()[self.servers :].min() < steps:
            self.net.idle()
