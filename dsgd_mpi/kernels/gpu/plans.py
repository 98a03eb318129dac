"""Convolutions by cuDNN 9's graphs through nvidia-cudnn-frontend: for each shape the fastest plan, timed once, cached.

The choices are cached on disk for each GPU and version of cuDNN. Nondeterministic plans are never used, nor, if
`exact`, are those that round float32 inputs (TF32). https://docs.nvidia.com/deeplearning/cudnn/frontend
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

from dsgd_mpi.arrays.cache import cache_folder
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.kernels.gpu.device import Launch

CANDIDATES = 8                              # plans that are timed, of those that cuDNN ranks first
REPEATS = 5
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
        self.handle = cudnn.create_handle()
        cudnn.set_stream(handle=self.handle, stream=device.stream.ptr)
        self.choices = Choices(f"{device.name}-cudnn{cudnn.backend_version()}")

    def step(self, direction: str, g: Geometry, a: Array, b: Array, out: Array) -> Launch:
        """The convolution bound to its arrays, in the order of ROLES. `out` may be overwritten at once.

        Raises an error of cuDNN's if there is no plan for it.
        """
        made, tensors = graph(self.cudnn, direction, g, self.dtype, self.exact, handle=self.handle)
        arrays = (a, b, out)
        pack = {tensor: int(array.data.ptr) for tensor, array in zip(tensors, arrays, strict=True)}
        self.select(made, "-".join(map(str, (direction, self.dtype, "exact" if self.exact else "fast", *g))), pack)
        space = self.workspace(max(1, made.get_workspace_size()))

        def launch(kept: Any = (arrays, space)) -> None:
            made.execute(pack, int(space.data.ptr), handle=self.handle)
        return launch

    def select(self, made: Any, key: str, pack: dict[Any, int]) -> None:
        """Builds the plan that the first process to time them found fastest."""
        places = {made.get_plan_name_at_index(index): index for index in range(made.get_execution_plan_count())}
        known = self.choices.get(key)
        if self.builds(made, places.get(known)):
            return
        if known:                           # from another driver
            self.choices.forget(key)
        fastest = self.fastest(made, pack)
        if not self.builds(made, places.get(self.choices.agreed(key, fastest))):
            made.build_plan_at_index(places[fastest])

    def builds(self, made: Any, index: int | None) -> bool:
        if index is not None:
            with suppress(self.cudnn.cudnnGraphNotSupportedError, RuntimeError):
                made.build_plan_at_index(index)
                return True
        return False

    def fastest(self, made: Any, pack: dict[Any, int]) -> str:
        """The name of the fastest of the first plans that can be built."""
        seconds: dict[str, float] = {}
        for index in range(made.get_execution_plan_count()):
            if self.builds(made, index) and (needed := made.get_workspace_size()) <= WORKSPACE_BYTES:
                space = self.workspace(max(1, needed))
                with suppress(self.cudnn.cudnnGraphNotSupportedError, RuntimeError):
                    seconds[made.get_plan_name_at_index(index)] = self.device.seconds(
                        lambda: made.execute(pack, int(space.data.ptr), handle=self.handle), REPEATS)   # noqa: B023
            if len(seconds) == CANDIDATES:
                break
        if not seconds:
            raise RuntimeError("none of cuDNN's plans can be built")
        return min(seconds, key=lambda name: seconds[name])


class Choices:
    """The plans found fastest: a folder for each GPU and version of cuDNN, and in it a file for each shape.

    The first process to choose decides for all ranks and later runs, so that all round alike: if every rank relied on
    its own timings, a run that was stopped and resumed could differ from one that was not.
    """

    def __init__(self, name: str) -> None:
        self.folder = cache_folder() / name.replace(" ", "-")

    def get(self, key: str) -> str | None:
        with suppress(OSError, ValueError):
            return (self.folder / key).read_text()
        return None

    def agreed(self, key: str, name: str) -> str:
        """The choice to use: `name`, unless another process was first."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile("w", dir=self.folder, prefix=".") as file:
                file.write(name)
                file.flush()
                os.fsync(file.fileno())
                os.link(file.name, self.folder / key)       # whole or not at all, on network file systems too
        except FileExistsError:
            return self.get(key) or name
        except OSError:                     # without a cache, plans are timed again
            pass
        return name

    def forget(self, key: str) -> None:
        with suppress(OSError):
            (self.folder / key).unlink()
