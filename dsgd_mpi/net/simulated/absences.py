"""Which ranks of a simulated cluster are dead, and when; meanwhile they compute nothing and serve nobody."""

from __future__ import annotations

import math

from dsgd_mpi.net.simulated.machine import Death


class Absences:
    """Which ranks are dead, and when."""

    def __init__(self, deaths: tuple[Death, ...]) -> None:
        self.by_rank: dict[int, list[tuple[float, float]]] = {}
        for death in sorted(deaths, key=lambda death: death.at_s):
            self.by_rank.setdefault(death.rank, []).append((death.at_s, death.back_s or math.inf))

    def back(self, rank: int, now: float) -> float:
        """When a rank that is dead comes back; now, if it is not."""
        return next((back for at, back in self.by_rank.get(rank, ()) if at <= now < back), now)

    def since(self, rank: int, now: float) -> float:
        return next((at for at, back in self.by_rank.get(rank, ()) if at <= now < back), now)

    def done(self, rank: int, begin: float, seconds: float) -> float:
        """When a computation that begins then has taken its seconds."""
        end = begin + seconds
        for at, back in self.by_rank.get(rank, ()):
            if begin < back and at < end:
                end = back + (end - max(at, begin))
        return end
