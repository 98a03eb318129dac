"""What ranks of a simulated cluster did, and what travelled between them: the material of a timeline."""

from __future__ import annotations

from typing import NamedTuple


class Span(NamedTuple):
    """What a rank did for a time."""

    rank: int
    what: str                               # "compute", "wait", "one-sided", or "dead", meanwhile
    begin: float
    end: float
    last: tuple[float, int] | None = None   # when the last of those that it met came, and who that was


class Travel(NamedTuple):
    """A message from one rank to another, or what all of them averaged, or got from one, together."""

    together: bool
    ranks: tuple[int, ...]
    begin: float
    end: float
