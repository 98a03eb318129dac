"""A CUDA device through CuPy: arrays, launches of our own kernels (cuda/*.cu) on one stream, and their recordings.

No device is touched before the first array is made: until then `cupy.cuda.Device(i).use()` selects one.
"""

from __future__ import annotations

import ctypes
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from dsgd_mpi.arrays.flat import Array, Shape
from dsgd_mpi.errors import UsageError

SOURCES = Path(__file__).parent / "cuda"
WAY_OUT = "pip install 'dsgd_mpi[cuda13]' (or [cuda12]) on a machine with an NVIDIA driver, or use --device cpu"
NOT_READY = 600                             # cudaErrorNotReady
WARMING_S = 0.3                             # of work, before the first time is taken: until then clocks rise
Launch = Callable[[], None]
Wait = Callable[[], None]
Dim = tuple[int, ...]
Vec = int | tuple[int, int]                 # elements that a thread moves at a time [and rows that it fetches ahead]


class Format(NamedTuple):
    """How an activation is stored: the NumPy dtype that holds its bits, and the macros of cuda/number.cuh."""

    storage: Any
    bits: int
    bfloat: int


class Device(Protocol):
    """What the kernels need of a device. Only `get` waits until the work is done; all but `send` works in order."""

    @property
    def processors(self) -> int:
        """Multiprocessors, each of which runs several blocks at a time."""

    def zeros(self, shape: Shape, dtype: Any) -> Array: ...

    def empty(self, shape: Shape, dtype: Any) -> Array:
        """MemoryError if memory runs out."""

    def spare_bytes(self) -> int: ...

    def put(self, values: Array, into: Array) -> None:
        """Copies from host memory, which may be changed at once unless it is page-locked; dtypes and shapes agree."""

    def page_locked(self, shape: Shape) -> PageLocked:
        """Uninitialised bytes in host memory, from which `put` copies directly and asynchronously."""

    def send(self, copies: list[tuple[Array, Array]]) -> Any:
        """`put` beside the kernels: waits for none but the last that was `read`; what `read` needs."""

    def read(self, sent: Any, reader: Launch) -> None:
        """Launches a kernel, the only one that reads what was sent, once that has arrived."""

    def get(self, x: Array) -> Array:
        """A copy in host memory, once all work is done."""

    def fetch(self, x: Array, into: PageLocked) -> None:
        """Enqueues a copy to page-locked memory, in order with the kernels."""

    def kernel(self, name: str, vec: Vec, grid: Dim, block: Dim, *arguments: Any) -> Launch:
        """One of our kernels for `vec` elements at a time, bound to arrays, NumPy scalars, and None for null."""

    def begin(self) -> None:
        """Until `end`, launches are recorded and not run. Nothing may be allocated or copied."""

    def end(self) -> Launch:
        """The recording, which can be run any number of times."""

    def seconds(self, replay: Launch) -> float:
        """Time that the device takes for a recording, once its clocks are up."""

    def mark(self) -> Callable[[], bool]:
        """A function that says whether all work enqueued so far is done."""

    def wait(self) -> None:
        """Returns once all work is done. Raises what went wrong if the device has failed, now and ever after."""


def source() -> str:
    """All our kernels, as one source."""
    paths = [SOURCES / "number.cuh", *sorted(SOURCES.glob("*.cu"))]
    return "\n".join(f'#line 1 "{path.name}"\n{path.read_text("utf-8")}' for path in paths)


def width(vec: Vec) -> int:
    """Elements at a time."""
    return vec if isinstance(vec, int) else vec[0]


def macros(given: Format, vec: Vec) -> tuple[str, ...]:
    ahead = () if isinstance(vec, int) else (f"-DAHEAD={vec[1]}",)
    return "-std=c++17", f"-DBITS={given.bits}", f"-DBFLOAT={given.bfloat}", f"-DVEC={width(vec)}", *ahead


@cache
def problem() -> str | None:
    """Why no GPU can be used; None if one can."""
    if find_spec("cupy") is None:
        return "CuPy is not installed"
    try:
        ctypes.CDLL("libcuda.so.1")         # checked before CuPy is imported, which takes a second
        import cupy
        count = cupy.cuda.runtime.getDeviceCount()
    except OSError:
        return "there is no NVIDIA driver (libcuda.so.1 cannot be loaded)"
    except Exception as error:              # a CuPy that does not match the driver may raise anything
        return f"CuPy does not work ({str(error).splitlines()[0]})"
    return None if count else "CuPy finds no device"


def check() -> None:
    """UsageError unless a GPU can be used."""
    if reason := problem():
        raise UsageError(f"no GPU can be used: {reason}; {WAY_OUT}")


class PageLocked(np.ndarray):
    """Host memory from which a device copies asynchronously; it must not change until the copy is done."""


class Staging:
    """Copies to a device through page-locked memory.

    For each size two buffers are used in turn; before one is reused, its last copy is waited for. Arrays that are in
    such memory already are copied from there. `page_locked` allocates it, bytes of a shape; `copied(values, into)`
    enqueues a copy and returns a function that waits for it.
    """

    def __init__(self, page_locked: Callable[[Shape], PageLocked], copied: Callable[[Array, Array], Wait]) -> None:
        self.page_locked, self.copied = page_locked, copied
        self.buffers: defaultdict[int, deque[tuple[Array, Wait]]] = defaultdict(deque)

    def put(self, values: Array, into: Array) -> None:
        if isinstance(values, PageLocked):
            self.copied(values, into)
            return
        buffers = self.buffers[values.nbytes]
        if len(buffers) < 2:
            memory: Array = self.page_locked((values.nbytes,))
        else:
            memory, wait = buffers.popleft()
            wait()
        copy = memory.view(values.dtype).reshape(values.shape)
        copy[...] = values
        buffers.append((memory, self.copied(copy, into)))


@cache
def stream_on(device: int) -> Any:
    """The one stream of this process on a device; CuPy's own operations are then enqueued there too.

    Nobody may enter another stream by `with`: what that makes current when it ends is not this one but the null stream
    (cupy issue 8377). To switch streams for a while, take `using`.
    """
    import cupy
    stream = cupy.cuda.Stream(non_blocking=True)
    stream.use()
    return stream


@contextmanager
def using(stream: Any) -> Iterator[Any]:
    """Inside, CuPy's own operations in this thread are enqueued on another stream: the one given."""
    import cupy
    before = cupy.cuda.get_current_stream()
    stream.use()
    try:
        yield stream
    finally:
        before.use()


def passed(event: Any) -> bool:
    """Whether the work before a CuPy event is done. CuPy's own `done` stays false once a GPU has failed."""
    from cupy.cuda import runtime
    status = runtime.eventQuery(event.ptr)
    if status not in (0, NOT_READY):
        raise runtime.CUDARuntimeError(status)
    return bool(status == 0)


class Gpu:
    """`Device` on CuPy's current device; for one thread, the one that makes the first array."""

    def __init__(self, given: Format) -> None:
        check()
        self.format = given
        self.modules: dict[Vec, Any] = {}
        self.last_read: Any = None          # the event of it; None: unknown

    @cached_property
    def cupy(self) -> Any:
        """CuPy, all of whose work goes to our stream from now on."""
        import cupy
        stream_on(cupy.cuda.Device().id)
        return cupy

    @cached_property
    def stream(self) -> Any:
        return stream_on(self.cupy.cuda.Device().id)

    @cached_property
    def properties(self) -> dict[str, Any]:
        about: dict[str, Any] = self.cupy.cuda.runtime.getDeviceProperties(self.cupy.cuda.Device().id)
        return about

    @property
    def name(self) -> str:
        return str(self.properties["name"].decode())

    @property
    def versions(self) -> tuple[str, ...]:
        """What timings depend on: the device and its driver."""
        cuda = self.cupy.cuda
        return self.name, f"sm{cuda.Device().compute_capability}", f"driver{cuda.runtime.driverGetVersion()}"

    @property
    def processors(self) -> int:
        return int(self.properties["multiProcessorCount"])

    def zeros(self, shape: Shape, dtype: Any) -> Array:
        array = self.empty(shape, dtype)
        array.data.memset_async(0, array.nbytes, self.stream)
        return array

    def empty(self, shape: Shape, dtype: Any) -> Array:
        self.last_read = None               # kernels may still use this memory for what it was before
        return self.cupy.empty(shape, dtype)

    def spare_bytes(self) -> int:
        pool = self.cupy.get_default_memory_pool()
        return int(self.cupy.cuda.runtime.memGetInfo()[0]) + int(pool.free_bytes())

    def release(self) -> None:
        """Gives memory that is free, but kept for later, back to the driver."""
        self.cupy.get_default_memory_pool().free_all_blocks()

    def put(self, values: Array, into: Array) -> None:
        self.staging.put(values, into)

    def page_locked(self, shape: Shape) -> PageLocked:
        import cupyx
        memory: PageLocked = cupyx.empty_pinned(shape, np.uint8).view(PageLocked)
        return memory

    @cached_property
    def staging(self) -> Staging:
        return Staging(self.page_locked, partial(self.copied, self.stream))

    @cached_property
    def beside(self) -> Any:
        """The stream of what is sent."""
        return self.cupy.cuda.Stream(non_blocking=True)

    @cached_property
    def sending(self) -> Staging:
        return Staging(self.page_locked, partial(self.copied, self.beside))

    def copied(self, stream: Any, values: Array, into: Array) -> Wait:
        """Enqueues a copy from page-locked memory."""
        into.set(values, stream=stream)
        return self.event(stream).synchronize   # type: ignore[no-any-return]

    def send(self, copies: list[tuple[Array, Array]]) -> Any:
        self.beside.wait_event(self.last_read or self.event(self.stream))
        for values, into in copies:
            self.sending.put(values, into)
        return self.event(self.beside)

    def read(self, sent: Any, reader: Launch) -> None:
        self.stream.wait_event(sent)
        reader()
        self.last_read = self.event(self.stream)

    def event(self, stream: Any) -> Any:
        """The end of all work enqueued there so far."""
        event = self.cupy.cuda.Event(disable_timing=True)
        event.record(stream)
        return event

    def get(self, x: Array) -> Array:
        copy: Array = x.get(stream=self.stream)
        return copy

    def fetch(self, x: Array, into: PageLocked) -> None:
        x.get(stream=self.stream, out=into, blocking=False)

    def kernel(self, name: str, vec: Vec, grid: Dim, block: Dim, *arguments: Any) -> Launch:
        if vec not in self.modules:
            self.modules[vec] = self.cupy.RawModule(code=source(), options=macros(self.format, vec))
        function = self.modules[vec].get_function(name)
        null = np.uint64(0)
        bound = tuple(null if argument is None else argument for argument in arguments)
        return lambda: function(grid, block, bound, stream=self.stream)

    def begin(self) -> None:
        self.stream.begin_capture()

    def end(self) -> Launch:
        graph = self.stream.end_capture()
        return lambda: graph.launch(self.stream)

    def seconds(self, replay: Launch) -> float:
        while time.perf_counter() < self.warm_from:
            replay()
            self.wait()
        start, stop = (self.cupy.cuda.Event() for _ in range(2))
        start.record(self.stream)
        replay()
        stop.record(self.stream)
        stop.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, stop)) / 1e3

    @cached_property
    def warm_from(self) -> float:
        return time.perf_counter() + WARMING_S

    def mark(self) -> Callable[[], bool]:
        event = self.event(self.stream)
        return lambda: passed(event)

    def wait(self) -> None:
        self.stream.synchronize()           # CUDA repeats the error of a failed device in every call
