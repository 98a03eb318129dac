"""The network of a simulated cluster: each rank has a full-duplex network card that serves one message at a time.

A message occupies its sender's card for bytes / bandwidth and, one latency later, its receiver's for as long: if both
are free it takes latency + bytes / bandwidth. Messages that wait for a card are served first come, first served.
"""

from __future__ import annotations

from collections.abc import Generator

import simpy

from dsgd_mpi.net.simulated.costs import Costs

Steps = Generator[simpy.Event, None, None]


class Wires:
    """The cards of all ranks."""

    def __init__(self, environment: simpy.Environment, size: int, costs: Costs) -> None:
        self.environment, self.costs = environment, costs
        self.sending = [simpy.Resource(environment) for _ in range(size)]
        self.receiving = [simpy.Resource(environment) for _ in range(size)]

    def send(self, source: int, target: int, nbytes: float) -> simpy.Event:
        """Triggers when the message has arrived; at once if a rank sends to itself."""
        if source == target:
            return self.environment.timeout(0)
        if not nbytes:
            return self.environment.timeout(self.costs.latency_s)
        return self.environment.process(self._leave(source, target, nbytes / self.costs.bytes_per_s))

    def occupy(self, seconds: float) -> simpy.Event:
        """Triggers when all cards at once have been busy for that long: a collective."""
        return self.environment.process(self._all(seconds))

    def _leave(self, source: int, target: int, seconds: float) -> Steps:
        with self.sending[source].request() as free:
            yield free
            arrival = self.environment.process(self._arrive(target, seconds))
            yield self.environment.timeout(seconds)
        yield arrival

    def _arrive(self, target: int, seconds: float) -> Steps:
        yield self.environment.timeout(self.costs.latency_s)
        with self.receiving[target].request() as free:
            yield free
            yield self.environment.timeout(seconds)

    def _all(self, seconds: float) -> Steps:
        cards = [*self.sending, *self.receiving]
        requests = [card.request() for card in cards]
        yield self.environment.all_of(requests)
        yield self.environment.timeout(seconds)
        for card, request in zip(cards, requests, strict=True):
            card.release(request)
