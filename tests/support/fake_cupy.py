"""A CuPy of NumPy arrays that notes on which stream all work is enqueued; our CUDA kernels run on the CPU.

Its bookkeeping of streams is CuPy's (cupy/cuda/stream.pyx, version 14.2). A thread has a current stream, at first the
null stream, and a stack of those entered by `with`. `use` changes the current one alone; leaving a `with` makes the new
top of the stack current, whatever was used before. A stream that nobody holds any more is gone: null takes its place.

Work on a stream is done at once, unless that stream is being captured: then it is noted, and done when the graph is
launched. What other streams are given meanwhile is done, and is missing from the graph.
"""

import ctypes
import sys
import threading
import types
import weakref
from collections import Counter
from itertools import count

import numpy as np

from dsgd_mpi.kernels.gpu.device import Format
from tests.support.emulation.emulated import cell, fenced, library

SEEN = Counter()                            # (what, name of the stream) -> how often
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

    def use(self):
        STATE.current = weakref.ref(self)
        return self

    def __enter__(self):
        STATE.stack.append(self)
        return self.use()

    def __exit__(self, *error):
        STATE.stack.pop()
        STATE.stack[-1].use()

    def do(self, what, work):
        SEEN[what, self.name] += 1
        if self.captured is None:
            return work()
        assert not what.startswith("copy"), "a copy from pageable memory would fail while a graph is captured"
        self.captured.append((what, work))
        return None

    def wait_event(self, event):
        assert event.recorded, "an event that was not recorded holds up nothing"
        SEEN["wait", self.name] += 1

    def synchronize(self):
        assert self.captured is None

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
        SEEN["graph", (stream or current()).name] += 1
        for _, work in self.captured:
            work()


class Event:
    numbers = count(1)

    def __init__(self, disable_timing=False):
        self.ptr, self.recorded = next(self.numbers), False

    def record(self, stream=None):
        self.recorded = True
        SEEN["event", (stream or current()).name] += 1

    def synchronize(self):
        assert self.recorded


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
        assert current().captured is None, "an allocation while a graph is captured"
        return wrapped(current().do("arithmetic", lambda: call(*plain, **kwargs)))

    def __array_function__(self, function, of_types, args, kwargs):
        refuse_numpy((*args, *kwargs.values()))
        plain = {key: raw(value) for key, value in kwargs.items()}
        return wrapped(current().do("arithmetic", lambda: function(*map(raw, args), **plain)))

    def __setitem__(self, index, value):
        refuse_numpy((value,))
        current().do("arithmetic", lambda: raw(self).__setitem__(index, raw(value)))

    def get(self, stream=None, out=None, blocking=True):
        def copy():
            if out is None:
                return raw(self).copy()
            np.copyto(out, raw(self))
            return out
        return (stream or current()).do("copy out", copy)

    def set(self, values, stream=None):
        assert type(values) is not Array
        (stream or current()).do("copy in", lambda: np.copyto(raw(self), values))

    def copy(self):
        return wrapped(current().do("arithmetic", raw(self).copy))

    def astype(self, dtype, order="K", copy=True):
        return wrapped(current().do("arithmetic", lambda: raw(self).astype(dtype, order=order)))

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


PROPERTIES = {"name": b"a fake", "multiProcessorCount": 4, "uuid": bytes(16), "totalGlobalMem": 1 << 34}


def install():
    """From now on `import cupy` gives this one, and `import cudnn` fails: it would need a GPU."""
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: 1, getDeviceProperties=lambda index: PROPERTIES, memGetInfo=lambda: (1 << 34, 1 << 34),
        driverGetVersion=lambda: 13000, eventQuery=lambda ptr: 0, CUDARuntimeError=RuntimeError)
    cuda = types.ModuleType("cupy.cuda")
    cuda.Stream, cuda.Event, cuda.Device = Stream, Event, Device
    cuda.get_current_stream, cuda.runtime = current, runtime
    cuda.get_elapsed_time = lambda start, stop: 0.0         # nothing is faster than anything: the first is taken
    cupy = types.ModuleType("cupy")
    cupy.cuda, cupy.ndarray, cupy.empty, cupy.zeros, cupy.RawModule = cuda, Array, empty, zeros, RawModule
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(free_bytes=lambda: 0)
    cupyx = types.ModuleType("cupyx")
    cupyx.empty_pinned = lambda shape, dtype: np.full(shape, 99, dtype)
    sys.modules.update({"cupy": cupy, "cupy.cuda": cuda, "cupyx": cupyx, "cudnn": None})
