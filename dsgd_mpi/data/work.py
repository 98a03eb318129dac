"""Jobs done side by side by threads; the first error ends all of them."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

from dsgd_mpi.errors import UsageError

LOOK_S = 0.1                                # between two looks
Job = Callable[[Any, Callable[[int], bool]], None]
Tick = Callable[[int], Any]


def by_threads(jobs: Sequence[Any], do: Job, workers: int, tick: Tick, look: Callable[[Tick], Any] = id) -> None:
    """`do(job, done)` for each job; it calls `done(n)` after n more images, and ends if that is False.

    `look(done)` is called by this thread again and again meanwhile. What any of them raises ends all; OSError becomes
    UsageError.
    """
    stop, lock = threading.Event(), threading.Lock()

    def done(count: int) -> bool:
        with lock:
            tick(count)
        return not stop.is_set()

    with warnings.catch_warnings(), ThreadPoolExecutor(workers, "data") as pool:
        warnings.simplefilter("ignore")     # Pillow's, of what is told in a line
        try:
            left = {pool.submit(do, job, done) for job in jobs}
            while left:
                ended, left = wait(left, LOOK_S, FIRST_COMPLETED)
                for each in ended:
                    each.result()
                look(done)
        except BaseException as error:
            stop.set()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, OSError):
                raise UsageError(f"{error}; mend that, and convert again: what is whole is kept") from error
            raise


class Work:
    """Jobs of several kinds, each with what does it, on some threads."""

    def __init__(self, kinds: dict[str, Job], workers: int) -> None:
        self.kinds, self.workers = kinds, workers

    def do(self, kind: str, jobs: Sequence[Any], tick: Tick) -> None:
        """All of these jobs, which can be stored as JSON if other ranks may do them; `tick(n)` tells of n images."""
        by_threads(jobs, self.kinds[kind], self.workers, tick)
