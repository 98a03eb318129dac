"""What there is to compute with, as a line of JSON: a separate program, since a driver may hang and a library crash."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from typing import Any

# dnnl_cpu_isa_t of oneDNN 3
INSTRUCTIONS = {0x1: "SSE4.1", 0x3: "AVX", 0x7: "AVX2", 0xf: "AVX2 VNNI", 0x1f: "AVX2 VNNI 2", 0x27: "AVX-512",
                0x67: "AVX-512 VNNI", 0xe7: "AVX-512 BF16", 0x1ef: "AVX-512 FP16", 0xfef: "AVX-512 AMX",
                0x1fef: "AVX-512 AMX FP16"}


def onednn() -> str:
    from dsgd_mpi.kernels.cpu import dnnl
    c = dnnl.library().c
    version, code = c.dnnl_version(), c.dnnl_get_effective_cpu_isa()
    return (f"{version.major}.{version.minor}.{version.patch} for {INSTRUCTIONS.get(code, hex(code))}, "
            f"{dnnl.candidates()[0]}")


def cupy() -> dict[str, Any]:
    import cupy
    runtime = cupy.cuda.runtime
    devices = [runtime.getDeviceProperties(device) for device in range(runtime.getDeviceCount())]
    return {"version": cupy.__version__, "runtime": dotted(runtime.runtimeGetVersion()),
            "driver": dotted(runtime.driverGetVersion()),
            "devices": [f"{device['name'].decode()}, {device['totalGlobalMem'] / 2**30:.0f} GiB" for device in devices]}


def cudnn() -> str:
    import cudnn
    code = cudnn.backend_version()
    return f"{code // 10_000}.{code // 100 % 100}.{code % 100}, frontend {metadata.version('nvidia-cudnn-frontend')}"


def dotted(version: int) -> str:
    """CUDA's 12090 as 12.9."""
    return f"{version // 1000}.{version % 1000 // 10}"


def tried(question: Callable[[], Any]) -> dict[str, Any]:
    """The answer, or the error in one line."""
    try:
        return {"answer": question()}
    except Exception as error:              # third-party code may raise anything: it is reported
        return {"error": (str(error).strip().splitlines() or [type(error).__name__])[0]}


if __name__ == "__main__":
    print(json.dumps({"onednn": tried(onednn), "cupy": tried(cupy), "cudnn": tried(cudnn)}))
