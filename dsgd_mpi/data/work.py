"""Jobs done side by side by threads; the first error ends all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

from dsgd_mpi.errors import UsageError

LOOK_S = 0.1                                # between two looks
Job = Callable[[Any, Callable[[int], bool]], None]
Tick = Callable[[int], Any]


def by_threads(jobs: Sequence[Any], do: Job, workers: int, tick: Tick, look: Callable[[], None] = lambda: None) -> None:
    """`do(job, done)` for each job; it calls `done(n)` after n more images, and ends if that is False.

    `look()` is called by this thread again and again meanwhile. What any of them raises ends all; OSError becomes
    UsageError.
    """
    stop, lock = threading.Event(), threading.Lock()

    def done(count: int) -> bool:
        with lock:
            tick(count)
        return not stop.is_set()

    with ThreadPoolExecutor(workers, "data") as pool:
        try:
            left = {pool.submit(do, job, done) for job in jobs}
            while left:
                ended, left = wait(left, LOOK_S, FIRST_COMPLETED)
                for each in ended:
                    each.result()
                look()
        except BaseException as error:
            stop.set()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, OSError):
                raise UsageError(f"{error}; mend that, and convert again: what is whole is kept") from error
            raise
