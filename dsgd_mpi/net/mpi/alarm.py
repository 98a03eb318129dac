"""Short messages between ranks that wait, beside all others: who answers is alive.

A rank that has waited for too long asks all others what they are doing. Each answers where it waits itself or lets
messages progress; one that is stopped, dead, or inside a call that never returns does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from mpi4py import MPI

from dsgd_mpi.arrays.flat import Array


class Alarm:
    """This rank's end. Nothing here waits for another rank."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm = comm.Dup()
        self.sent: list[tuple[MPI.Request, Array]] = []

    def send(self, rank: int, news: dict[str, Any]) -> None:
        content = np.frombuffer(json.dumps(news).encode(), np.uint8)
        self.sent.append((self.comm.Isend(content, rank), content))

    def heard(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """What has arrived, each with its sender."""
        self.sent = [(request, kept) for request, kept in self.sent if not request.Test()]
        status = MPI.Status()
        while self.comm.Iprobe(status=status):
            content = np.empty(status.Get_count(MPI.BYTE), np.uint8)
            self.comm.Recv(content, status.source, status.tag)
            yield status.source, json.loads(content.tobytes())
