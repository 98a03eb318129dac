"""Two ranks at a time: both exchange vectors, or one reads what the other, which does nothing, has published."""

from __future__ import annotations

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.net.api import Done, Net, Pending


class Pairs:
    """Collective to construct. If `one_sided`, every rank has a vector in shared memory, at first x."""

    def __init__(self, net: Net, x: Array, one_sided: bool) -> None:
        self.net, self.shared = net, net.share(x) if one_sided else None

    def exchange(self, x: Array, peer: int) -> Pending:
        """As `Net.exchange`; if one-sided, x is published first, and then the peer's vector is read."""
        if not self.shared:
            return self.net.exchange(x, peer)
        self.shared.add(self.net.rank, x - self.shared.read(self.net.rank))
        return Done(x if peer == self.net.rank else self.shared.read(peer))

    def send(self, x: Array, peer: int) -> None:
        """To a rank that need not be there, with `Net.post`; to itself nothing."""
        if peer != self.net.rank:
            self.net.post(x, peer)

    def rest(self, x: Array) -> None:
        """Collective: x is published, and rounded as that is; nobody continues before all have read."""
        if self.shared:
            self.exchange(x, self.net.rank)
            self.shared.read(self.net.rank, x)
        self.net.settle()
