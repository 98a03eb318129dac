"""A CuPy of NumPy arrays that notes on which stream all work is enqueued; our CUDA kernels run on the CPU.

Its bookkeeping of streams is CuPy's (cupy/cuda/stream.pyx, version 14.2). A thread has a current stream, at first the
null stream, and a stack of those entered by `with`. `use` changes the current one alone; leaving a `with` makes the new
top of the stack current, whatever was used before. A stream that nobody holds any more is gone: null takes its place.

Work on a stream is done as late as it may: when the host waits for it, asks for it often enough, or needs a value. With
`EAGER_COPIES` that holds for streams of kernels alone, and the others do theirs as early as they may. So a missing
wait, either way, is a wrong number. What a stream is given while it is captured is done when the graph is launched;
what other streams are given meanwhile is missing from the graph.
"""

import ctypes
import os
import sys
import threading
import types
import weakref
from collections import Counter, deque
from itertools import count

import numpy as np

from dsgd_mpi.kernels.gpu.device import Format
from tests.support.emulation.emulated import cell, fenced, library

EAGER_COPIES = bool(os.environ.get("EAGER_COPIES"))
NOT_READY, POLLS = 600, 3                   # cudaErrorNotReady; questions that are answered so, if nobody waits
SEEN = Counter()                            # (what, name of the stream) -> how often
LOG = []                                    # (what, name of the stream, a number), in the order of the host's calls
GRAPHS = []                                 # how many launches of kernels each captured graph holds


class State(threading.local):
    def __init__(self):
        self.current, self.stack = weakref.ref(NULL), [NULL]


class Stream:
    numbers = count(1)

    def __init__(self, null=False, non_blocking=False):
        self.ptr = 0 if null else next(self.numbers)
        self.name = f"stream {self.ptr}" if self.ptr else "null"
        self.captured = None
        self.queue, self.graphs, self.has_kernels = deque(), 0, False

    def use(self):
        STATE.current = weakref.ref(self)
        return self

    def __enter__(self):
        STATE.stack.append(self)
        return self.use()

    def __exit__(self, *error):
        STATE.stack.pop()
        STATE.stack[-1].use()

    def do(self, what, work, size=0):
        SEEN[what, self.name] += 1
        LOG.append((what, self.name, size))
        self.has_kernels |= what in ("launch", "graph")
        if self.captured is None:
            self.enqueue(work)
        else:
            assert not what.startswith("copy"), "a copy from pageable memory would fail while a graph is captured"
            self.captured.append((what, work))

    def now(self, what, work):
        """Its result."""
        assert self.captured is None, "a value is asked for while a graph is captured"
        SEEN[what, self.name] += 1
        self.run()
        return work()

    def enqueue(self, work):
        self.queue.append(work)
        if EAGER_COPIES and not self.has_kernels:
            while self.queue and not (isinstance(self.queue[0], Point) and not self.queue[0].reached):
                self.next()

    def wait_event(self, event):
        assert event.point, "an event that was not recorded holds up nothing"
        SEEN["wait", self.name] += 1
        self.enqueue(event.point)

    def run(self, until=None):
        while self.queue and not (until and until.reached):
            self.next()

    def next(self):
        self.queue.popleft()()

    def synchronize(self):
        assert self.captured is None
        LOG.append(("host waits", self.name, 0))
        self.run()

    def begin_capture(self):
        assert self.ptr, "the null stream cannot be captured"
        assert self.captured is None
        SEEN["capture", self.name] += 1
        self.captured = []

    def end_capture(self):
        captured, self.captured = self.captured, None
        GRAPHS.append(sum(what == "launch" for what, _ in captured))
        return Graph(captured)


NULL = Stream(null=True)
STATE = State()


def current():
    return STATE.current() or NULL


class Graph:
    def __init__(self, captured):
        self.captured = captured

    def launch(self, stream=None):
        def work():
            for _, each in self.captured:
                each()
        stream = stream or current()
        stream.graphs += 1
        stream.do("graph", work)


class Point:
    """A place in a stream. In another's queue: that one waits for it."""

    def __init__(self, stream):
        self.stream, self.graphs, self.reached, self.polls = stream, stream.graphs, False, POLLS
        stream.enqueue(self.reach)

    def reach(self):
        self.reached = True

    def __call__(self):
        self.stream.run(until=self)

    def host_waits(self):
        """Noted with how many graphs have been launched behind it."""
        if not self.reached:
            LOG.append(("host waits", self.stream.name, self.stream.graphs - self.graphs))


class Event:
    numbers, all = count(1), weakref.WeakValueDictionary()

    def __init__(self, disable_timing=False):
        self.ptr, self.point = next(self.numbers), None
        self.all[self.ptr] = self

    def record(self, stream=None):
        stream = stream or current()
        SEEN["event", stream.name] += 1
        self.point = Point(stream)

    def synchronize(self):
        self.point.host_waits()
        self.point()

    @classmethod
    def query(cls, ptr):
        point = cls.all[ptr].point
        if point.polls == 1:                # who asks as often as this is waiting
            point.host_waits()
        point.polls -= 1
        if point.polls < 0:
            point()
        return 0 if point.reached else NOT_READY


class Array(np.ndarray):
    """`cupy.ndarray`: does not mix with NumPy's, and what is computed with it is computed on the current stream."""

    @property
    def data(self):
        return Pointer(self)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        refuse_numpy((*inputs, *(out or ())))
        call = getattr(ufunc, method)
        plain = tuple(map(raw, inputs))
        if out:
            current().do("arithmetic", lambda: call(*plain, out=tuple(map(raw, out)), **kwargs))
            return out[0]
        return wrapped(current().now("arithmetic", lambda: call(*plain, **kwargs)))

    def __array_function__(self, function, of_types, args, kwargs):
        refuse_numpy((*args, *kwargs.values()))
        plain = {key: raw(value) for key, value in kwargs.items()}
        return wrapped(current().now("arithmetic", lambda: function(*map(raw, args), **plain)))

    def __getitem__(self, index):
        part = super().__getitem__(index)
        return part if isinstance(part, Array) else wrapped(current().now("arithmetic", lambda: raw(self)[index]))

    def __setitem__(self, index, value):
        refuse_numpy((value,))
        current().do("arithmetic", lambda: raw(self).__setitem__(index, raw(value)))

    def get(self, stream=None, out=None, blocking=True):
        stream = stream or current()
        if blocking:
            LOG.append(("host waits", stream.name, 0))
            return stream.now("copy out", lambda: raw(self).copy() if out is None else np.copyto(out, raw(self)))
        assert is_pinned(out), "a copy to pageable memory would block"
        stream.do("copy out", lambda: np.copyto(out, raw(self)), self.nbytes)
        return out

    def set(self, values, stream=None):
        assert type(values) is not Array
        source = values if is_pinned(values) else values.copy()
        (stream or current()).do("copy in", lambda: np.copyto(raw(self), source), self.nbytes)

    def copy(self):
        return self.astype(self.dtype)

    def astype(self, dtype, order="K", copy=True):
        result = empty(self.shape, dtype)
        current().do("arithmetic", lambda: np.copyto(raw(result), raw(self), casting="unsafe"))
        return result

    def __float__(self):
        return float(self.get())

    def __bool__(self):
        return bool(self.get())

    def __int__(self):
        return int(self.get())


class Pointer:
    """`cupy.cuda.MemoryPointer`."""

    def __init__(self, array):
        self.array, self.ptr = array, array.ctypes.data

    def memset_async(self, value, size, stream=None):
        assert size == self.array.nbytes
        bytes_ = raw(self.array).reshape(-1).view(np.uint8)
        (stream or current()).do("memset", lambda: bytes_.fill(value))


PINNED = []                                 # for ever: no address is used twice


def empty_pinned(shape, dtype):
    PINNED.append(np.full(shape, 99, dtype))
    return PINNED[-1].view()


def is_pinned(x):
    return any(np.may_share_memory(x, each) for each in PINNED)


def raw(x):
    return x.view(np.ndarray) if isinstance(x, Array) else x


def wrapped(x):
    if isinstance(x, np.generic):           # CuPy's scalars are arrays of no dimension
        x = np.array(x)
    return x.view(Array) if isinstance(x, np.ndarray) else x


def refuse_numpy(things):
    if any(isinstance(thing, np.ndarray) and not isinstance(thing, Array) for thing in things):
        raise TypeError("an array of NumPy's was mixed with one of CuPy's")


def empty(shape, dtype=np.float64):
    assert current().captured is None, "an allocation while a graph is captured"
    shape = shape if isinstance(shape, tuple) else (shape,)
    array = fenced(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    array[:] = 0xff                         # NaN, until somebody writes it
    return array.view(dtype).reshape(shape).view(Array)


def zeros(shape, dtype=np.float64):
    array = empty(shape, dtype)
    array.data.memset_async(0, array.nbytes)
    return array


class RawModule:
    def __init__(self, code, options):
        bits, bfloat, vec, *ahead = (int(option.partition("=")[2]) for option in options[1:])
        self.library = library(Format(None, bits, bfloat), (vec, *ahead) if ahead else vec)

    def get_function(self, name):
        function = getattr(self.library, f"launch_{name}")

        def launch(grid, block, arguments, stream=None):
            cells = [ctypes.c_void_p(0) if isinstance(each, np.uint64) else cell(each) for each in arguments]
            pointers = (ctypes.c_void_p * len(cells))(*(ctypes.addressof(each) for each in cells))
            dims = [(ctypes.c_uint * 3)(*(*map(int, size), 1, 1)[:3]) for size in (grid, block)]

            def work(keeps=(cells, arguments)):     # alive as long as the launch
                function(*dims, pointers)
            (stream or current()).do("launch", work)
        return launch


class Device:
    id, compute_capability = 0, "90"

    def __init__(self, index=0):
        pass

    def use(self):
        return self


PROPERTIES = {"name": b"a fake", "multiProcessorCount": 4, "totalGlobalMem": 1 << 34}


def install():
    """From now on `import cupy` gives this one, and `import cudnn` fails: it would need a GPU."""
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: 1, getDeviceProperties=lambda index: PROPERTIES, memGetInfo=lambda: (1 << 34, 1 << 34),
        driverGetVersion=lambda: 13000, eventQuery=Event.query, CUDARuntimeError=RuntimeError)
    cuda = types.ModuleType("cupy.cuda")
    cuda.Stream, cuda.Event, cuda.Device = Stream, Event, Device
    cuda.get_current_stream, cuda.runtime = current, runtime
    cuda.get_elapsed_time = lambda start, stop: 0.0         # nothing is faster than anything: the first is taken
    cupy = types.ModuleType("cupy")
    cupy.cuda, cupy.ndarray, cupy.empty, cupy.zeros, cupy.RawModule = cuda, Array, empty, zeros, RawModule
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(free_bytes=lambda: 0)
    cupyx = types.ModuleType("cupyx")
    cupyx.empty_pinned = empty_pinned
    sys.modules.update({"cupy": cupy, "cupy.cuda": cuda, "cupyx": cupyx, "cudnn": None})
