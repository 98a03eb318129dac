"""Convolutions by cuDNN 9's graphs through nvidia-cudnn-frontend: for each shape the fastest plan, timed once, cached.

The choices are cached on disk for each GPU and version of cuDNN. Nondeterministic plans are never used, nor, if
`exact`, are those that round float32 inputs (TF32). https://docs.nvidia.com/deeplearning/cudnn/frontend
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.kernels.gpu.device import Launch
from dsgd_mpi.kernels.gpu.tuner import REFUSALS, Choices, NothingRuns, fastest

CANDIDATES = 8                              # plans that are timed, of those that cuDNN ranks first
WORKSPACE_BYTES = 1 << 30                   # the most that a plan may need


class Geometry(NamedTuple):
    """A convolution: images, their height, width and channels; outputs, window, stride, padding, their size."""

    n: int
    h: int
    w: int
    c: int
    o: int
    window: int
    stride: int
    pad: int
    oh: int
    ow: int


# direction: inputs, and output
ROLES = {"forward": ("x", "w", "y"), "data": ("y", "w", "x"), "weights": ("y", "x", "w")}


def sizes(role: str, g: Geometry) -> tuple[int, int, int, int]:
    """(N, C, H, W) of x and y and (O, C, R, S) of the weights, all with channels last in memory."""
    return {"x": (g.n, g.c, g.h, g.w), "y": (g.n, g.o, g.oh, g.ow), "w": (g.o, g.c, g.window, g.window)}[role]


def strides(shape: tuple[int, int, int, int]) -> list[int]:
    _, c, h, w = shape
    return [c * h * w, 1, c * w, c]


def graph(cudnn: Any, direction: str, g: Geometry, dtype: str, exact: bool, **where: Any) -> tuple[Any, list[Any]]:
    """The graph of one convolution, with all plans that cuDNN has for it, and its tensors in the order of ROLES.

    `where`: the handle of a device, or the properties of one that is not present. Raises what cuDNN raises.
    """
    types = cudnn.data_type
    kind = {"float32": types.FLOAT, "bfloat16": types.BFLOAT16, "float16": types.HALF}[dtype]
    made = cudnn.pygraph(io_data_type=kind, intermediate_data_type=types.FLOAT, compute_data_type=types.FLOAT, **where)
    *given, result = ROLES[direction]
    a, b = (made.tensor(name=name, dim=list(sizes(role, g)), stride=strides(sizes(role, g)), data_type=kind)
            for name, role in zip("ab", given, strict=True))
    options = {"padding": [g.pad] * 2, "stride": [g.stride] * 2, "dilation": [1, 1]}
    out = {"forward": lambda: made.conv_fprop(image=a, weight=b, **options),
           "data": lambda: made.conv_dgrad(loss=a, filter=b, **options),
           "weights": lambda: made.conv_wgrad(image=b, loss=a, **options)}[direction]()
    shape = sizes(result, g)
    out.set_output(True).set_data_type(kind).set_dim(list(shape)).set_stride(strides(shape))
    made.validate()
    made.build_operation_graph()
    made.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    note = cudnn.numerical_note
    rounding = [note.TENSOR_CORE, note.DOWN_CONVERT_INPUTS, note.REDUCED_PRECISION_REDUCTION] if exact else []
    made.deselect_numeric_notes([note.NONDETERMINISTIC, *rounding])
    made.check_support()
    return made, [a, b, out]


class Plans:
    """For one device; `workspace(size)`: that many bytes, which may be overwritten. ImportError without the library."""

    def __init__(self, device: Any, dtype: str, exact: bool, workspace: Callable[[int], Array]) -> None:
        import cudnn
        self.cudnn, self.device, self.dtype, self.exact, self.workspace = cudnn, device, dtype, exact, workspace
        self.refusals = *REFUSALS, cudnn.cudnnGraphNotSupportedError
        self.handle = cudnn.create_handle()
        cudnn.set_stream(handle=self.handle, stream=device.stream.ptr)
        self.choices = Choices(*device.versions, f"cudnn{cudnn.backend_version()}", f"frontend{cudnn.__version__}")

    def step(self, direction: str, g: Geometry, a: Array, b: Array, out: Array) -> Launch:
        """The convolution bound to its arrays, in the order of ROLES. `out` may be overwritten at once.

        NothingRuns if there is no plan for it; MemoryError if there is none for the one that was chosen.
        """
        try:
            made, tensors = graph(self.cudnn, direction, g, self.dtype, self.exact, handle=self.handle)
        except self.refusals as reason:
            self.device.wait()              # raises if it was not cuDNN that failed, but the device
            raise NothingRuns(str(reason)) from reason
        arrays = (a, b, out)
        pack = {tensor: int(array.data.ptr) for tensor, array in zip(tensors, arrays, strict=True)}
        self.select(made, "-".join(map(str, (direction, self.dtype, "exact" if self.exact else "fast", *g))), pack)
        return self.bound(made, pack, self.workspace(max(1, made.get_workspace_size())), arrays)

    def bound(self, made: Any, pack: dict[Any, int], space: Array, kept: Any = None) -> Launch:
        """The plan that was built last."""
        def launch(kept: Any = (space, kept)) -> None:
            made.execute(pack, int(space.data.ptr), handle=self.handle)
        return launch

    def select(self, made: Any, key: str, pack: dict[Any, int]) -> None:
        """Builds the plan that the first process to time them found fastest."""
        places = {made.get_plan_name_at_index(index): index for index in range(made.get_execution_plan_count())}

        def works(name: str) -> bool:
            with suppress(KeyError, *self.refusals):
                made.build_plan_at_index(places[name])
                return True
            self.device.wait()
            return False

        def trial(index: int) -> Launch:
            made.build_plan_at_index(index)
            needed = made.get_workspace_size()
            if needed > WORKSPACE_BYTES:
                raise MemoryError(f"a workspace of {needed} bytes")
            return self.bound(made, pack, self.device.empty((max(1, needed),), np.uint8))
        trials = ((name, partial(trial, index)) for name, index in places.items())
        self.choices.choice(key, works, lambda: fastest(self.device, trials, CANDIDATES, self.refusals))
