"""Under a launcher the ranks share the work of a conversion: rank 0 finds out what there is to do, and deals it out.

The others do such jobs until it tells them to end. The first error, wherever, ends all: rank 0 says it, in one line.
"""

from __future__ import annotations

import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from dsgd_mpi.data.work import LOOK_S, Job, Tick, Work, by_threads
from dsgd_mpi.errors import RunError, UsageError
from dsgd_mpi.net.launch import launched
from dsgd_mpi.net.start import started_mpi

TELL_S = 0.5                                # between two messages on what has been done
GRACE_S = 30.0                              # for the others to end; a thread may be writing a shard


class End(Exception):
    """Rank 0 ends the job, with this status."""


class Shared(Work):
    """On rank 0: jobs are dealt out to all ranks, of which this one does its share."""

    def __init__(self, host: Any, kinds: dict[str, Job], workers: int) -> None:
        super().__init__(kinds, workers)
        self.host, self.busy = host, set[int]()

    def do(self, kind: str, jobs: Sequence[Any], tick: Tick) -> None:
        for rank in range(1, self.host.size):
            self.host.alarm.send(rank, {"kind": kind, "jobs": jobs[rank::self.host.size]})
            self.busy.add(rank)
            while self.host.alarm.sent:     # they may be many: MPI moves them while it is called
                self.look(tick)
        by_threads(jobs[::self.host.size], self.kinds[kind], self.workers, tick, self.look)
        while self.busy:
            self.look(tick)
            time.sleep(LOOK_S)

    def look(self, done: Tick) -> None:
        """What the others tell: how many images were done, that one has no more jobs, or why it failed."""
        for rank, news in self.host.alarm.heard():
            if "failed" in news:
                raise RunError(f"rank {rank} on {news['node']}: {news['failed']}", news["status"])
            done(news["images"])
            if news["last"]:
                self.busy.discard(rank)

    def end(self, status: int) -> None:
        """All others end; nobody waits for one that does not."""
        left, limit = set(range(1, self.host.size)), time.monotonic() + GRACE_S
        for rank in left:
            self.host.alarm.send(rank, {"end": status})
        while left or self.host.alarm.sent:
            left -= {rank for rank, news in self.host.alarm.heard() if "gone" in news}
            if time.monotonic() > limit:
                self.host.abort(status or 1)
            time.sleep(LOOK_S)


class Helper:
    """On another rank: does what rank 0 deals out."""

    def __init__(self, host: Any, kinds: dict[str, Job], workers: int) -> None:
        self.host, self.kinds, self.workers = host, kinds, workers
        self.images, self.told, self.told_at = 0, 0, 0.0

    def serve(self) -> int:
        """The status with which rank 0 ends the job."""
        try:
            while True:
                for news in self.heard():
                    self.images = self.told = 0
                    by_threads(news["jobs"], self.kinds[news["kind"]], self.workers, self.count, self.look)
                    self.tell(True)
                time.sleep(LOOK_S / 4)
        except End as end:
            status: int = end.args[0]
            self.host.alarm.send(0, {"gone": True})
            self.until_sent()
            return status

    def heard(self) -> Iterator[dict[str, Any]]:
        for _, news in self.host.alarm.heard():
            if "end" in news:
                raise End(news["end"])
            yield news

    def count(self, images: int) -> None:
        self.images += images

    def look(self, done: Tick) -> None:
        if time.monotonic() > self.told_at + TELL_S:
            self.tell(False)
        for _ in self.heard():
            pass

    def tell(self, last: bool) -> None:
        images, self.told_at = self.images, time.monotonic()
        self.host.alarm.send(0, {"images": images - self.told, "last": last})
        self.told = images

    def failed(self, message: str, status: int) -> int:
        """Tells rank 0, which ends the job."""
        self.host.alarm.send(0, {"failed": message, "status": status, "node": platform.node()})
        limit = time.monotonic() + GRACE_S
        try:
            while time.monotonic() < limit:
                for _ in self.heard():
                    pass
                time.sleep(LOOK_S / 4)
        except End:
            self.host.alarm.send(0, {"gone": True})
            self.until_sent()
            return status
        print(f"Error: {message}", file=sys.__stderr__, flush=True)
        self.host.abort(status)
        return status

    def until_sent(self) -> None:
        limit = time.monotonic() + GRACE_S
        while self.host.alarm.sent and time.monotonic() < limit:
            for _ in self.host.alarm.heard():
                pass


def run(lead: Callable[[Work], None], kinds: dict[str, Job], workers: int | None,
        ready: Callable[[], None] = lambda: None) -> None:
    """`lead(work)` on rank 0, whose jobs all ranks do; `ready()` before, on every rank. SystemExit after an error.

    `workers`: threads of each rank; by default as many as there are cores for each.
    """
    rank, size, _ = launched()
    if size == 1:
        ready()
        lead(Work(kinds, workers or len(os.sched_getaffinity(0))))
        return
    try:
        host = started_mpi(max(size or 0, rank + 1))
    except UsageError as problem:
        if rank == 0:
            raise
        sys.exit(problem.exit_code)
    try:
        threads = workers or host.cores()
        shared, helper = Shared(host, kinds, threads), Helper(host, kinds, threads)
        try:
            ready()
            status = helper.serve() if host.rank else 0
            if not host.rank:
                lead(shared)
        except click.ClickException as problem:
            status = problem.exit_code
            if host.rank:
                helper.failed(problem.message, status)
            else:
                problem.show()
        if not host.rank:
            shared.end(status)
    except Exception:
        traceback.print_exc(file=sys.__stderr__)
        host.abort(1)
        raise
    if status:
        sys.exit(status)
