"""CUDA devices through CuPy, for nets: which GPU a rank has, and `Device` on it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from dsgd_mpi.flat import Array
from dsgd_mpi.net.device import Event
from dsgd_mpi.net.places import Place, cpu, gpu_of


def find(local_rank: int) -> Place:
    """The place of the rank of that number on this node, with its GPU's `index`, or the `problem` of having none."""
    try:
        import cupy
        count = cupy.cuda.runtime.getDeviceCount()
        if not count:
            return {**cpu(), "problem": "no GPU is visible"}
        index = gpu_of(local_rank, count)
        about = cupy.cuda.runtime.getDeviceProperties(index)
    except Exception as error:              # whatever CuPy and the driver may say
        return {**cpu(), "problem": str(error).strip().partition("\n")[0] or repr(error)}
    return {**cpu(), "device": about["name"].decode(), "uuid": uuid(about["uuid"]), "index": index}


def uuid(raw: bytes) -> str:
    """As nvidia-smi writes it."""
    digits = raw[:16].hex()
    return "GPU-" + "-".join(digits[begin:end] for begin, end in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))


class CudaEvent:
    """`Event` of a CUDA stream."""

    def __init__(self, cupy: Any, stream: Any) -> None:
        self.event = cupy.cuda.Event(disable_timing=True)
        self.event.record(stream)

    def done(self) -> bool:
        return bool(self.event.done)

    def synchronise(self) -> None:
        self.event.synchronize()


class CudaDevice:
    """`Device` over CuPy: from now on the current one of this process."""

    def __init__(self, place: Place) -> None:
        import cupy
        import cupyx
        self.cupy, self.cupyx = cupy, cupyx
        self.place = {key: place[key] for key in ("device", "uuid")}
        cupy.cuda.Device(place["index"]).use()
        # not the default stream's like: that one would wait for kernels and they for it
        self.stream = cupy.cuda.Stream(non_blocking=True)

    def holds(self, x: Array) -> bool:
        return isinstance(x, self.cupy.ndarray)

    def empty(self, size: int, dtype: Any) -> Array:
        return self.cupy.empty(size, dtype)

    def pinned(self, size: int, dtype: Any) -> Array:
        return self.cupyx.empty_pinned(size, dtype) if size else np.empty(0, dtype)

    def after_kernels(self) -> Event:
        event = CudaEvent(self.cupy, self.cupy.cuda.get_current_stream())
        self.stream.wait_event(event.event)
        return event

    def copy_out(self, x: Array, into: Array) -> Event:
        if x.size:
            x.get(stream=self.stream, out=into, blocking=False)
        return self.after_beside()

    def copy_in(self, values: Array, into: Array) -> Event:
        if values.size:
            into.set(values, stream=self.stream)
        return self.after_beside()

    def after_beside(self) -> Event:
        return CudaEvent(self.cupy, self.stream)

    def before_kernels(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        self.cupy.cuda.get_current_stream().wait_event(event.event)

    def beside(self) -> AbstractContextManager[Any]:
        return self.stream                  # type: ignore[no-any-return]
