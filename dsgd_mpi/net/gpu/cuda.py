"""CUDA devices through CuPy, for nets: which GPU a rank has, and its `Streams`."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager
from typing import Any
from uuid import UUID

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.kernels.gpu.device import passed, stream_on, using
from dsgd_mpi.net.gpu.staged import Event
from dsgd_mpi.net.places import Place, cpu, gpu_of


def find(local_rank: int) -> Place:
    """The place of the rank with that local number, on a node with GPUs."""
    import cupy
    index = gpu_of(local_rank, cupy.cuda.runtime.getDeviceCount())
    name = cupy.cuda.runtime.getDeviceProperties(index)["name"].decode()
    return {**cpu(), "device": name, "uuid": f"GPU-{identity(index)}", "index": index}


def identity(index: int) -> UUID:
    """Of a GPU, by the driver: CuPy's properties end it at its first zero byte. RuntimeError with CUDA's number."""
    driver, device, raw = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.create_string_buffer(16)
    status = (driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), index)
              or driver.cuDeviceGetUuid_v2(raw, device))
    if status:
        raise RuntimeError(f"the driver does not tell GPU {index}'s UUID (CUDA error {status})")
    return UUID(bytes=raw.raw)


class CudaEvent:
    """`Event` of a CUDA stream."""

    def __init__(self, event: Any, stream: Any) -> None:
        self.event = event
        event.record(stream)

    def done(self) -> bool:
        return passed(self.event)

    def synchronise(self) -> None:
        self.event.synchronize()


class CudaStreams:
    """`Streams` over CuPy, on the GPU at `place`, which becomes this process's current one."""

    def __init__(self, place: Place) -> None:
        import cupy
        import cupyx
        self.cupy, self.cupyx = cupy, cupyx
        self.place = {key: place[key] for key in ("device", "uuid")}
        cupy.cuda.Device(place["index"]).use()
        self.kernels = stream_on(place["index"])
        # not ordered with the default stream, or kernels there would wait for copies and copies for them
        self.outward, self.inward = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))

    def holds(self, x: Array) -> bool:
        return isinstance(x, self.cupy.ndarray)

    def empty(self, size: int, dtype: Any) -> Array:
        return self.cupy.empty(size, dtype)

    def pinned(self, size: int, dtype: Any) -> Array:
        return self.cupyx.empty_pinned(size, dtype) if size else np.empty(0, dtype)

    def copy_out(self, x: Array, into: Array) -> Event:
        self.outward.wait_event(self._end_of(self.kernels).event)
        if x.size:
            x.get(stream=self.outward, out=into, blocking=False)
        return self._end_of(self.outward)

    def copy_in(self, values: Array, into: Array) -> Event:
        if values.size:
            into.set(values, stream=self.inward)
        return self._end_of(self.inward)

    def beside(self) -> AbstractContextManager[Any]:
        return using(self.inward)

    def beside_done(self) -> Event:
        return self._end_of(self.inward)

    def kernels_done(self) -> Event:
        return self._end_of(self.kernels)

    def hold_beside(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        self.inward.wait_event(event.event)

    def hold_kernels(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        self.kernels.wait_event(event.event)

    def _end_of(self, stream: Any) -> CudaEvent:
        return CudaEvent(self.cupy.cuda.Event(disable_timing=True), stream)
