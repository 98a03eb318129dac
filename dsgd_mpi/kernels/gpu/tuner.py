"""The fastest of several ways to do the same work on a device: timed once, then remembered on disk and agreed upon."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from tempfile import NamedTemporaryFile

from dsgd_mpi.arrays.cache import cache_folder
from dsgd_mpi.kernels.gpu.device import Device, Launch

REPEATS = 10                                # launches in a recording, which hides how long the host takes for each
REPLAYS = 3                                 # of which the shortest counts; the first is slower
REFUSALS: tuple[type[Exception], ...] = RuntimeError, ValueError, MemoryError   # CuPy's, of what it cannot do

Prepare = Callable[[], Launch]              # raises one of REFUSALS if this device cannot do it


class NothingRuns(RuntimeError):
    """None of the candidates can be prepared and recorded."""


def recorded(device: Device, launch: Launch, times: int) -> Launch:
    """A recording of so many launches. Whatever is raised, the device does not record any more."""
    device.begin()
    try:
        for _ in range(times):
            launch()
    except BaseException:
        with suppress(RuntimeError):        # of the broken recording
            device.end()
        raise
    return device.end()


def seconds(device: Device, launch: Launch) -> float:
    """Time of a launch on a device that does nothing else."""
    launch()                                # kernels are loaded by the first, which not every recording allows
    replay = recorded(device, launch, REPEATS)
    return min(device.seconds(replay) for _ in range(REPLAYS)) / REPEATS


def fastest(device: Device, candidates: Iterable[tuple[str, Prepare]], most: int | None = None,
            refusals: tuple[type[Exception], ...] = REFUSALS) -> str:
    """The name of the fastest candidate, the first of equals.

    Each is prepared, timed and dropped before the next is prepared, so that memory that it alone holds is free again.
    Its launch runs often: what it writes must not matter yet. Those that raise one of `refusals` are passed over, and
    once `most` have been timed, the rest. NothingRuns if none is left, with the last reason; CUDA's error if the device
    has failed.
    """
    found: dict[str, float] = {}
    reason = "there is none"
    for name, prepare in candidates:
        if len(found) == most:
            break
        try:
            found[name] = seconds(device, prepare())
        except refusals as error:
            device.wait()                   # raises if it was not this candidate that failed, but the device
            reason = f"{type(error).__name__}: {error}"      # the error itself holds what the candidate held
    if not found:
        raise NothingRuns(f"no candidate can be run ({reason})")
    return min(found, key=lambda name: found[name])


class Choices:
    """What was found fastest: a folder for each device and version of what runs there, in it a file for each key.

    The first process to choose decides for all ranks and later runs, so that all round alike: if every rank relied on
    its own timings, a run that was stopped and resumed could differ from one that was not.
    """

    def __init__(self, *names: str) -> None:
        self.folder = cache_folder() / "-".join(names).replace(" ", "-").replace("/", "-")

    def choice(self, key: str, works: Callable[[str], bool], find: Callable[[], str]) -> str:
        """The name to use for `key`, for which `works` was true last: the known one, or that which `find` finds.

        `key` becomes a file's name. NothingRuns if what `find` found does not work either.
        """
        known = self.get(key)
        if known is not None:
            if works(known):
                return known
            self.forget(key)                # it was chosen with something else that the folder's name does not tell
        found = find()
        for name in (self.agreed(key, found), found):
            if works(name):
                return name
        raise NothingRuns(f"{found} ran when it was timed, but does not any more")

    def get(self, key: str) -> str | None:
        with suppress(OSError, ValueError):
            return (self.folder / key).read_text("utf-8")
        return None

    def agreed(self, key: str, name: str) -> str:
        """The choice to use: `name`, unless another process was first."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile("w", encoding="utf-8", dir=self.folder, prefix=".") as file:
                file.write(name)
                file.flush()
                os.fsync(file.fileno())
                os.link(file.name, self.folder / key)       # whole or not at all, on network file systems too
        except FileExistsError:
            return self.get(key) or name
        except OSError:                     # without a cache, candidates are timed again
            pass
        return name

    def forget(self, key: str) -> None:
        with suppress(OSError):
            (self.folder / key).unlink()


def tuned(device: Device, choices: Choices, key: str, candidates: Mapping[str, Prepare]) -> Launch:
    """The launch of the candidate that the first process to time them found fastest.

    `key` tells all that the candidates depend on: sizes, dtype, and the version of their source. Raises what `fastest`
    raises, and what preparing the chosen one does.
    """
    ready: dict[str, Launch] = {}

    def works(name: str) -> bool:
        if name in candidates:
            ready[name] = candidates[name]()
        return name in ready
    return ready[choices.choice(key, works, lambda: fastest(device, candidates.items()))]
