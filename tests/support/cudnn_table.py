"""A cuDNN frontend whose plans, what they need and how they fail, are told by a table; its errors are the real ones."""

from types import SimpleNamespace
from typing import Any, NamedTuple


class cudnnGraphNotSupportedError(Exception):
    """No RuntimeError, as in the real one."""


class Plan(NamedTuple):
    """`fails`: what is raised, or "broken" or "fault" of Timed.work, when it is built, asked for its size, or run."""

    name: str
    seconds: float = 1
    workspace: int = 0
    build: Any = None
    size: Any = None
    run: Any = None


class Cudnn:
    """`plans`: heuristic -> plans, or what asking for them raises. `asked`, `built`, `ran`: all that was, in order."""

    cudnnGraphNotSupportedError = cudnnGraphNotSupportedError
    __version__ = "1.28.0"
    data_type = SimpleNamespace(FLOAT="float", BFLOAT16="bfloat16", HALF="half")
    heur_mode = SimpleNamespace(A="A", FALLBACK="FALLBACK")
    numerical_note = SimpleNamespace(NONDETERMINISTIC=0, TENSOR_CORE=1, DOWN_CONVERT_INPUTS=2,
                                     REDUCED_PRECISION_REDUCTION=3)

    def __init__(self, device, **plans):
        self.device, self.plans, self.version = device, plans, 92800
        self.asked, self.built, self.ran = [], [], []

    def backend_version(self):
        return self.version

    def create_handle(self):
        return "handle"

    def set_stream(self, handle, stream):
        assert (handle, stream) == ("handle", self.device.stream.ptr)

    def pygraph(self, handle, **types):
        return Graph(self)


class Graph:
    def __init__(self, cudnn):
        self.cudnn, self.plans, self.current, self.limit = cudnn, [], None, None

    def tensor(self, name, dim, stride, data_type):
        return Tensor()

    def conv_fprop(self, image, weight, padding, stride, dilation):
        return Tensor()

    def conv_dgrad(self, loss, filter, padding, stride, dilation):
        return Tensor()

    def conv_wgrad(self, image, loss, padding, stride, dilation):
        return Tensor()

    def validate(self):
        pass

    def build_operation_graph(self):
        pass

    def create_execution_plans(self, modes):
        assert not self.plans, "it would add to those that there are"
        self.cudnn.asked += modes
        for mode in modes:
            plans = self.cudnn.plans[mode]
            if isinstance(plans, Exception):
                raise plans
            self.plans += plans

    def deselect_numeric_notes(self, notes):
        pass

    def deselect_workspace_greater_than(self, limit):
        self.limit = limit

    def get_execution_plan_count(self):
        return len(self.plans)

    def get_plan_name_at_index(self, index):
        return self.plans[index].name

    def build_plan_at_index(self, index):
        plan = self.plans[index]
        if plan.workspace > self.limit:
            raise cudnnGraphNotSupportedError(f"Skipping plan since workspace violation. Requires {plan.workspace}")
        if plan.build:
            raise plan.build
        self.cudnn.built.append(plan.name)
        self.current = plan

    def get_workspace_size(self):
        if self.current.size:
            raise self.current.size
        return self.current.workspace

    def execute(self, pack, workspace, handle):
        assert handle == "handle"
        assert all(isinstance(key, Tensor) and isinstance(value, int) for key, value in pack.items())
        if isinstance(self.current.run, Exception):
            raise self.current.run
        self.cudnn.device.work(self.current.run or self.current.seconds)
        self.cudnn.ran.append((self.current.name, *pack.values()))


class Tensor:
    def __getattr__(self, name):
        assert name.startswith("set_")
        return lambda value: self
