"""Convolutions by cuDNN 9's graphs through nvidia-cudnn-frontend: for each shape the fastest plan, timed once, cached.

The choices are cached on disk for each GPU, its driver, and version of cuDNN and the frontend. Nondeterministic plans
are never used, nor, if `exact`, are those that round float32 inputs (TF32).
https://docs.nvidia.com/deeplearning/cudnn/frontend

The frontend raises cudnnGraphNotSupportedError, which is no RuntimeError, for what cuDNN has no plan for or does not
build; RuntimeError for most of what cuDNN or CUDA report; ValueError for objections of its own. A failure of CUDA's can
be any of these, so the device is asked after each. The frontend keeps Python's lock: threads would build no faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


def graph(cudnn: Any, mode: Any, direction: str, g: Geometry, dtype: str, exact: bool, **where: Any) -> Planned:
    """One convolution with the plans that cuDNN has for it by a heuristic; those that may not be used cannot be built.

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
    made.create_execution_plans([mode])
    note = cudnn.numerical_note
    rounding = [note.TENSOR_CORE, note.DOWN_CONVERT_INPUTS, note.REDUCED_PRECISION_REDUCTION] if exact else []
    made.deselect_numeric_notes([note.NONDETERMINISTIC, *rounding])
    made.deselect_workspace_greater_than(WORKSPACE_BYTES)
    return Planned(made, [a, b, out])


class Planned(NamedTuple):
    """cuDNN's graph, of whose plans the one that was built last is run, and its tensors in the order of ROLES."""

    graph: Any
    tensors: list[Any]

    def plans(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """The name of each, the one that should be fastest first, and what builds it."""
        for index in range(self.graph.get_execution_plan_count()):
            yield self.graph.get_plan_name_at_index(index), partial(self.graph.build_plan_at_index, index)


class Plans:
    """For one device; `workspace(size)`: that many bytes, which may be overwritten. ImportError without the library.

    Convolutions of equal geometry share a plan. `properties`: of the device if it is not present, for tests.
    """

    def __init__(self, device: Any, dtype: str, exact: bool, workspace: Callable[[int], Array],
                 **properties: Any) -> None:
        import cudnn
        self.cudnn, self.device, self.dtype, self.exact, self.workspace = cudnn, device, dtype, exact, workspace
        self.refusals = *REFUSALS, cudnn.cudnnGraphNotSupportedError
        self.choices = Choices(*device.versions, f"cudnn{cudnn.backend_version()}", f"frontend{cudnn.__version__}")
        self.modes = cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK       # the second if no plan of the first can be run
        self.chosen: dict[str, Planned] = {}
        self.handle, self.where = None, properties
        if not properties:
            self.handle = cudnn.create_handle()
            cudnn.set_stream(handle=self.handle, stream=device.stream.ptr)
            self.where = {"handle": self.handle}

    def step(self, direction: str, g: Geometry, a: Array, b: Array, out: Array) -> Launch:
        """The convolution bound to its arrays, in the order of ROLES. `out` may be overwritten at once.

        NothingRuns if cuDNN has no plan that runs; MemoryError if there is no room for the workspace of the chosen one.
        """
        arrays, key = (a, b, out), "-".join(map(str, (direction, self.dtype, "exact" if self.exact else "fast", *g)))

        def works(name: str) -> bool:
            planned = self.built(direction, g, name)
            if planned:
                self.chosen[key] = planned
            return planned is not None
        if key not in self.chosen:
            self.choices.choice(key, works, lambda: self.fastest(direction, g, arrays))
        planned = self.chosen[key]
        return self.bound(planned, arrays, self.workspace(max(1, planned.graph.get_workspace_size())))

    def bound(self, planned: Planned, arrays: tuple[Array, ...], space: Array) -> Launch:
        pack = {tensor: int(array.data.ptr) for tensor, array in zip(planned.tensors, arrays, strict=True)}

        def launch(kept: Any = (arrays, space)) -> None:
            planned.graph.execute(pack, int(space.data.ptr), handle=self.handle)
        return launch

    def asked(self, mode: Any, direction: str, g: Geometry) -> Planned:
        return graph(self.cudnn, mode, direction, g, self.dtype, self.exact, **self.where)

    def built(self, direction: str, g: Geometry, name: str) -> Planned | None:
        """A graph that runs the plan of that name, if there is one and it can be built."""
        for mode in self.modes:
            try:
                planned = self.asked(mode, direction, g)
                for known, build in planned.plans():
                    if known == name:
                        build()
                        return planned
            except self.refusals:
                self.device.wait()          # raises if it was not cuDNN that refused, but the device that has failed
        return None

    def fastest(self, direction: str, g: Geometry, arrays: tuple[Array, ...]) -> str:
        """The name of the fastest plan. What was tried, and its workspace, is freed."""
        def trial(planned: Planned, build: Callable[[], Any]) -> Launch:
            build()
            size = max(1, planned.graph.get_workspace_size())
            return self.bound(planned, arrays, self.device.empty((size,), np.uint8))
        reason = ""
        for mode in self.modes:
            try:
                planned = self.asked(mode, direction, g)
                trials = ((name, partial(trial, planned, build)) for name, build in planned.plans())
                return fastest(self.device, trials, CANDIDATES, self.refusals)
            except self.refusals as error:
                self.device.wait()
                reason = str(error) or repr(error)
            finally:
                self.device.release()
        raise NothingRuns(reason)
