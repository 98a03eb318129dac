"""A CUDA device made of NumPy arrays and a C++ compiler: our kernels run on the CPU, word for word, one by one.

What would be an error on a GPU ends the process: access to the memory behind an array (or before it, if asked for), a
vector load or store at an address that is no multiple of its size, a launch that exceeds a limit, threads of a block
that wait at different barriers.
"""

import ctypes
import fcntl
import mmap
import os
import re
import shutil
import subprocess
import weakref
import zlib
from functools import cache
from pathlib import Path

import numpy as np

from dsgd_mpi.kernels.gpu.device import PageLocked, macros, source

SHIM = Path(__file__).parent / "cuda_on_cpu.hpp"
COMPILER = shutil.which("g++")
LIBC, NO_ACCESS = ctypes.CDLL(None), 0
FOLDER = Path(os.environ["EMULATION_COMPILED"])     # by conftest: what one worker has compiled serves all of them


def kernels(text):
    """The most threads that a block may have, "" if the source does not say, and the name of each kernel."""
    return re.findall(r'extern "C" __global__ void\s+(?:__launch_bounds__\((\w+)[\w, ]*\)\s+)?(\w+)', text)


def entries(text):
    """C++ functions launch_NAME(grid, block, addresses of the arguments)."""
    return [f'extern "C" void launch_{name}(const unsigned* grid, const unsigned* block, void** arguments) '
            f"{{ launch({name}, {threads or 1024}, grid, block, arguments); }}" for threads, name in kernels(text)]


@cache
def library(given, vec):
    """All kernels for a format, compiled once for all processes of a `FOLDER`."""
    text = source()
    program = "\n".join([f'#include "{SHIM}"', text, *entries(text)])
    kind = "-".join(map(str, (given.bits, given.bfloat, vec, zlib.crc32(program.encode()))))
    library, lock = FOLDER / f"{kind}.so", FOLDER / f"{kind}.lock"
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)    # whoever comes next finds it compiled
        if not library.exists():
            build(program, macros(given, vec), library)
    return ctypes.CDLL(str(library))


def build(program, macros, library):
    (text := library.with_suffix(".cpp")).write_text(program)
    # _FORTIFY_SOURCE forbids longjmp between stacks; unique symbols would be shared with the other libraries
    command = [COMPILER, *macros, "-O3", "-march=native", "-w", "-fPIC", "-shared", "-U_FORTIFY_SOURCE",
               "-fsanitize=alignment", "-fsanitize-undefined-trap-on-error", "-fno-gnu-unique", "-Wl,-Bsymbolic", "-o",
               library, text]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Emulated:
    """`Device`; `room`: bytes that it can give, `given`: those that it has. `fence`: see `fenced`."""

    name = "emulated"

    def __init__(self, format_, room=1 << 34, processors=4, fence="behind"):
        self.format, self.room, self.given, self.processors, self.fence = format_, room, 0, processors, fence
        self.recording = None

    def empty(self, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert self.recording is None, "an allocation would fail while a graph is captured"
        if self.given + size > self.room:
            raise MemoryError
        self.given += size
        array = fenced(size, self.fence)
        array[:] = 0xff                     # NaN in every format, until somebody writes it
        weakref.finalize(array.base, self.free, size)
        return array.view(dtype).reshape(shape)

    def free(self, size):
        self.given -= size

    def zeros(self, shape, dtype):
        array = self.empty(shape, dtype)
        array[...] = 0
        return array

    def page_locked(self, shape):
        return np.full(shape, 99, np.uint8).view(PageLocked)

    def spare_bytes(self):
        return self.room - self.given

    def put(self, values, into):
        assert self.recording is None, "a copy from pageable memory would fail while a graph is captured"
        assert values.dtype == into.dtype
        into[...] = values

    def send(self, copies):
        for values, into in copies:
            self.put(values, into)

    def read(self, sent, reader):
        reader()

    def get(self, x):
        assert self.recording is None
        return x.copy()

    def fetch(self, x, into):
        into[...] = self.get(x)

    def kernel(self, name, vec, grid, block, *arguments):
        function = getattr(library(self.format, vec), f"launch_{name}")
        cells = [cell(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(cells))(*(ctypes.addressof(each) for each in cells))
        dims = [(ctypes.c_uint * 3)(*(*map(int, size), 1, 1)[:3]) for size in (grid, block)]

        def work(keeps=(cells, arguments)):         # alive as long as the launch
            function(*dims, pointers)

        def launch():
            if self.recording is None:
                work()
            else:
                self.recording.append(work)
        return launch

    def begin(self):
        assert self.recording is None
        self.recording = []

    def end(self):
        recorded, self.recording = self.recording, None

        def replay():
            for launch in recorded:
                launch()
        return replay

    def seconds(self, replay):
        return 0.0                          # there is nothing to learn from: of several ways the first is taken

    def mark(self):
        return lambda: True

    def wait(self):
        assert self.recording is None


def fenced(size, fence="behind"):
    """`size` bytes, 16-aligned, between pages that cannot be used.

    No more than alignment lies between their end and the page behind them; or nothing between their start and the page
    before them.
    """
    page, room = mmap.PAGESIZE, -(-size // 16) * 16
    inside = -(-max(room, 1) // page) * page
    memory = np.frombuffer(mmap.mmap(-1, inside + 2 * page), np.uint8)
    for start in (0, page + inside):
        assert not LIBC.mprotect(ctypes.c_void_p(memory.ctypes.data + start), page, NO_ACCESS)
    start = page + {"behind": inside - room, "before": 0}[fence]
    return memory[start : start + size]


def cell(argument):
    """A kernel's argument as it lies in memory."""
    if argument is None or isinstance(argument, np.ndarray):
        assert argument is None or argument.flags.c_contiguous
        return ctypes.c_void_p(argument is not None and argument.ctypes.data)
    kinds = {np.int32: ctypes.c_int, np.uint32: ctypes.c_uint, np.int64: ctypes.c_longlong, np.float32: ctypes.c_float,
             np.float64: ctypes.c_double}
    return kinds[type(argument)](argument.item())
