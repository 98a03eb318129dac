"""The kernels by oneDNN on the CPU, in float32 or bfloat16, with parameters and statistics always in float32.

Every primitive is made once, for one shape, and bound once to its arrays; a step is then a list of C calls. oneDNN
chooses the layout of a convolution's weights in memory, so they are reordered from the flat vector before use, and
their gradients back into it. What is needed only within one operation is in buffers that all operations share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from dsgd_mpi.arrays.flat import Array, Shape
from dsgd_mpi.arrays.half import narrow, widen
from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels import api, reference
from dsgd_mpi.kernels.api import EPSILON, Arrays, Kernels, Loss, Rule, Step, Tensor, Work
from dsgd_mpi.kernels.cpu.dnnl import Handle, Primitive, Shared, aligned, dims, ffi, library, pointer

STORAGE: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(np.uint16)}  # its bits

# Without AVX-512, weight gradients of windows are up to 1.6 times as fast with blocked channels, if there are at least
# this many, reordering included. With AVX-512, NHWC is as fast.
BLOCKED_CHANNELS = 64

# Elements of an update that one of several threads takes at a time, and the fewest that are worth a thread: with fewer,
# threads lose more by waiting for the GIL and for each other than they gain.
SIDE_BY_SIDE, WORTH_A_THREAD = 1 << 16, 1 << 19


class OneDNN(Kernels):
    """oneDNN kernels; bfloat16 needs AVX-512, float64 is not supported (UsageError).

    Only one thread at a time may run operations of one OneDNN, since they share buffers.
    """

    name = "onednn"
    byte_memory = None

    def __init__(self, dtype: str = "float32") -> None:
        if dtype not in STORAGE:
            raise UsageError(f"the oneDNN kernels do not support {dtype}; use one of {', '.join(STORAGE)}, or the "
                             "reference kernels")
        self.library = library()
        self.c = c = self.library.c
        avx512 = c.dnnl_cpu_isa_avx512_core
        self.avx512 = c.dnnl_get_effective_cpu_isa() & avx512 == avx512
        if dtype == "bfloat16" and not self.avx512:
            raise UsageError("this processor has no AVX-512, which oneDNN needs for bfloat16; use float32")
        self.dtype, self.storage = dtype, STORAGE[dtype]
        self.type = {"float32": c.dnnl_f32, "bfloat16": c.dnnl_bf16}[dtype]
        self.scratchpad, self.weights, self.inputs, self.outputs = (Shared(c) for _ in range(4))
        self.own_bytes = 0
        self.sums: dict[int, Primitive] = {}
        self.workers = ThreadPoolExecutor(c.omp_get_max_threads(), "update")

    def set_threads(self, threads: int) -> None:
        # through oneDNN's own OpenMP: OMP_NUM_THREADS has no effect on it once it is loaded
        assert not self.scratchpad.memories, "operations are made for a number of threads, which must not change"
        self.c.omp_set_num_threads(threads)
        self.workers = ThreadPoolExecutor(threads, "update")

    @property
    def held_bytes(self) -> int:
        shared = (self.scratchpad, self.weights, self.inputs, self.outputs)
        return self.own_bytes + sum(int(buffer.array.nbytes) for buffer in shared)

    @property
    def state(self) -> dict[str, Array]:
        return {}

    def zeros(self, size: int) -> Array:
        return np.zeros(size, np.float32)

    def empty(self, shape: Shape) -> Array:
        size = int(np.prod(shape)) * self.storage.itemsize
        return aligned(size).view(self.storage).reshape(shape)

    def spare_bytes(self) -> int:
        return reference.spare_bytes()

    def program(self, work: Work) -> Work:
        return work

    def put(self, values: Array, into: Array) -> None:
        assert values.shape == into.shape, (values.shape, into.shape)
        into[...] = values if self.dtype == "float32" else narrow(values, "bfloat16")

    def get(self, x: Array) -> Array:
        return x.copy() if self.dtype == "float32" else widen(x, "bfloat16")

    def cross_entropy(self, logits: Tensor, smoothing: float) -> Loss:
        return CrossEntropy(self, logits, smoothing)

    def accumulate(self, total: Array, term: Array) -> None:
        if total.size not in self.sums:
            self.sums[total.size] = self.sum(total, term, total)
            self.sums[total.size].places.clear()        # the arrays change from call to call: keep none alive
        add, into, other = self.sums[total.size], pointer(total), pointer(term)
        add.point(self.c.DNNL_ARG_SRC, into)
        add.point(self.c.DNNL_ARG_SRC_1, other)
        add.point(self.c.DNNL_ARG_DST, into)
        add()

    @property
    def fused(self) -> Mapping[str, Callable[[Rule], Step]]:
        return {}

    def in_parts(self, count: int, work: Callable[[slice], None]) -> None:
        """In contiguous chunks, concurrently: NumPy releases the GIL while it computes."""
        threads = min(self.c.omp_get_max_threads(), count // WORTH_A_THREAD)
        if threads < 2:
            return reference.in_blocks(0, count, work)
        cuts = np.linspace(0, count, threads + 1, dtype=int).tolist()
        for done in [self.workers.submit(reference.in_blocks, start, stop, work, SIDE_BY_SIDE)
                     for start, stop in pairwise(cuts)]:
            done.result()

    # Building blocks of the operations

    def primitive(self, description: Handle, bound: dict[int, tuple[Handle, Array | Shared]]) -> Primitive:
        return Primitive(self.library, description, bound, self.scratchpad)

    def activation(self, x: Array, tag: int | None = None) -> Handle:
        """The layout of an NHWC array, or of its copy in another order."""
        n, height, width, channels = x.shape
        return self.library.layout((n, channels, height, width), self.type, tag or self.c.dnnl_nhwc)

    def own(self, layout: Handle) -> Array:
        """Memory private to an operation, for as long as it lives."""
        size = self.library.size(layout)
        self.own_bytes += size
        return aligned(size)

    def vector(self, x: Array) -> Handle:
        """The layout of a float32 vector."""
        return self.library.layout((x.size,), self.c.dnnl_f32, self.c.dnnl_a)

    def reorder(self, source: Handle, from_: Array | Shared, target: Handle, to: Array | Shared) -> Primitive:
        return self.primitive(self.library.describe_reorder(source, target),
                              {self.c.DNNL_ARG_SRC: (source, from_), self.c.DNNL_ARG_DST: (target, to)})

    def as_liked(self, layout: Handle, x: Array, liked: Handle, copy: Shared) -> Liked:
        """`x` in the layout that a primitive prefers: as it is, or reordered into `copy`."""
        if self.c.dnnl_memory_desc_equal(layout, liked):
            return Liked([], x)
        return Liked([self.reorder(layout, x, liked, copy)], copy)

    def sum(self, a: Array, b: Array, into: Array, relu: bool = False) -> Primitive:
        """into = a + b [ReLU]; `into` may be `a`."""
        c = self.c
        layout = self.library.layout((a.size,), self.type, c.dnnl_a)
        description = self.library.describe(c.dnnl_binary_primitive_desc_create, c.dnnl_binary_add, layout, layout,
                                            layout, attributes=self.library.then_relu if relu else None)
        return self.primitive(description, {c.DNNL_ARG_SRC: (layout, a), c.DNNL_ARG_SRC_1: (layout, b),
                                            c.DNNL_ARG_DST: (layout, into)})

    def relu_gradient(self, y: Array, dy: Array, into: Array) -> Primitive:
        """into = dy where y > 0, else 0."""
        c, describe = self.c, self.library.describe
        all_, relu = self.library.layout((y.size,), self.type, c.dnnl_a), c.dnnl_eltwise_relu_use_dst_for_bwd
        hint = describe(c.dnnl_eltwise_forward_primitive_desc_create, c.dnnl_forward_training, relu, all_, all_, 0, 0)
        description = describe(c.dnnl_eltwise_backward_primitive_desc_create, relu, all_, all_, all_, 0, 0, hint)
        return self.primitive(description, {c.DNNL_ARG_DST: (all_, y), c.DNNL_ARG_DIFF_DST: (all_, dy),
                                            c.DNNL_ARG_DIFF_SRC: (all_, into)})


class Liked(NamedTuple):
    steps: list[Primitive]                  # that reorder it
    place: Array | Shared


def reshaped(x: Tensor, shape: Shape) -> Tensor:
    return Tensor(x.value.reshape(shape), None if x.grad is None else x.grad.reshape(shape))


def run(steps: Sequence[Primitive]) -> None:
    for step in steps:
        step()


class Convolution:
    """Forward and both gradients, each with the weights in its preferred layout; a second weight is a bias."""

    def __init__(self, kernels: OneDNN, operation: api.Convolution, arrays: Arrays) -> None:
        x, (w, *biases), y = arrays.x, arrays.weights, arrays.y
        bias = biases[0] if biases else None
        stride, pad = operation.stride, operation.pad
        self.kernels, self.x, self.w, self.y, self.bias = kernels, x, w, y, bias
        self.c, self.library, layout = kernels.c, kernels.library, kernels.library.layout
        self.flat = layout(w.value.shape, self.c.dnnl_f32, self.c.dnnl_oihw)
        self.any = layout(w.value.shape, kernels.type, self.c.dnnl_format_tag_any)
        self.src, self.dst = kernels.activation(x.value), kernels.activation(y.value)
        self.row = kernels.vector(bias.value) if bias else ffi.NULL
        self.pointwise = w.value.shape[2] == stride == 1
        self.geometry = (dims(stride, stride), dims(0, 0), dims(pad, pad), dims(pad, pad))
        self.description = self.library.describe(
            self.c.dnnl_convolution_forward_primitive_desc_create, self.c.dnnl_forward_training,
            self.c.dnnl_convolution_direct, self.src, self.any, self.row, self.dst, *self.geometry)
        self.forward_steps = self.output()
        self.backward_steps = self.data_gradient() + self.weights_gradient() if y.grad is not None else []

    def forward(self, training: bool) -> None:
        run(self.forward_steps)

    def backward(self) -> None:
        run(self.backward_steps)

    def output(self) -> list[Primitive]:
        c, k = self.c, self.kernels
        inside = self.library.query(self.description, c.dnnl_query_weights_md)
        bound = {c.DNNL_ARG_SRC: (self.src, self.x.value), c.DNNL_ARG_WEIGHTS: (inside, k.weights),
                 c.DNNL_ARG_DST: (self.dst, self.y.value)}
        if self.bias:
            bound[c.DNNL_ARG_BIAS] = (self.row, self.bias.value)
        return [k.reorder(self.flat, self.w.value, inside, k.weights), k.primitive(self.description, bound)]

    def data_gradient(self) -> list[Primitive]:
        if self.x.grad is None:
            return []
        c, k = self.c, self.kernels
        description = self.library.describe(
            c.dnnl_convolution_backward_data_primitive_desc_create, c.dnnl_convolution_direct,
            self.src, self.any, self.dst, *self.geometry, self.description)
        inside = self.library.query(description, c.dnnl_query_weights_md)
        bound = {c.DNNL_ARG_DIFF_SRC: (self.src, self.x.grad), c.DNNL_ARG_WEIGHTS: (inside, k.weights),
                 c.DNNL_ARG_DIFF_DST: (self.dst, self.y.grad)}
        return [k.reorder(self.flat, self.w.value, inside, k.weights), k.primitive(description, bound)]

    def weights_gradient(self) -> list[Primitive]:
        c, k = self.c, self.kernels
        if k.avx512 and self.pointwise and not self.bias:
            return [self.weights_product()]
        any_float = self.library.layout(self.w.value.shape, c.dnnl_f32, c.dnnl_format_tag_any)
        src, dst = self.src, self.dst
        if not k.avx512 and self.w.value.shape[1] >= BLOCKED_CHANNELS and self.w.value.shape[2] > 1:
            src, dst = (k.activation(z.value, c.dnnl_format_tag_any) for z in (self.x, self.y))
        description = self.library.describe(
            c.dnnl_convolution_backward_weights_primitive_desc_create, c.dnnl_convolution_direct,
            src, any_float, self.row, dst, *self.geometry, self.description)
        src, dst, inside = (self.library.query(description, what) for what in (
            c.dnnl_query_src_md, c.dnnl_query_diff_dst_md, c.dnnl_query_diff_weights_md))
        x, dy = k.as_liked(self.src, self.x.value, src, k.inputs), k.as_liked(self.dst, self.y.grad, dst, k.outputs)
        bound = {c.DNNL_ARG_SRC: (src, x.place), c.DNNL_ARG_DIFF_WEIGHTS: (inside, k.weights),
                 c.DNNL_ARG_DIFF_DST: (dst, dy.place)}
        if self.bias:
            bound[c.DNNL_ARG_DIFF_BIAS] = (self.row, self.bias.grad)
        return [*x.steps, *dy.steps, k.primitive(description, bound),
                k.reorder(inside, k.weights, self.flat, self.w.grad)]

    def weights_product(self) -> Primitive:
        """dw = dy' x, over all pixels: the weight gradient of a 1x1 convolution, in the flat vector's own layout.

        With AVX-512 this is usually faster than oneDNN's convolution, and saves reordering dw.
        """
        c, k, layout = self.c, self.kernels, self.library.layout
        out, channels = self.w.value.shape[:2]
        x, dy = self.x.value.reshape(-1, channels), self.y.grad.reshape(-1, out)
        pixels = len(x)
        dy_, x_ = layout((out, pixels), k.type, c.dnnl_ba), layout((pixels, channels), k.type, c.dnnl_ab)
        dw_ = layout((out, channels), c.dnnl_f32, c.dnnl_ab)
        return k.primitive(
            self.library.describe(c.dnnl_matmul_primitive_desc_create, dy_, x_, ffi.NULL, dw_),
            {c.DNNL_ARG_SRC: (dy_, dy), c.DNNL_ARG_WEIGHTS: (x_, x), c.DNNL_ARG_DST: (dw_, self.w.grad)})


class Linear(Convolution):
    """A 1x1 convolution of one image whose pixels are the batch."""

    def __init__(self, kernels: OneDNN, operation: api.Linear, arrays: Arrays) -> None:
        w, bias = arrays.weights
        (batch, features), classes = arrays.x.value.shape, operation.classes
        super().__init__(kernels, api.Convolution(classes, window=1), Arrays(
            reshaped(arrays.x, (1, batch, 1, features)), [reshaped(w, (classes, features, 1, 1)), bias],
            reshaped(arrays.y, (1, batch, 1, classes))))


class FoldedConvolution:
    """One pass over activations, with a copy of the weights, folded and in the layout that oneDNN prefers."""

    def __init__(self, kernels: OneDNN, operation: api.FoldedConvolution, arrays: Arrays) -> None:
        self.w, self.gamma, self.beta, self.mean, self.var = (weight.value for weight in arrays.weights)
        x, y, add = arrays.x, arrays.y, arrays.add
        stride, pad = operation.convolution.stride, operation.convolution.pad
        self.bias, self.staging = np.empty_like(self.beta), kernels.inputs
        c, k, library = kernels.c, kernels, kernels.library
        src, dst, row = k.activation(x.value), k.activation(y.value), k.vector(self.bias)
        flat = library.layout(self.w.shape, c.dnnl_f32, c.dnnl_oihw)
        description = library.describe(
            c.dnnl_convolution_forward_primitive_desc_create, c.dnnl_forward_inference, c.dnnl_convolution_direct,
            src, library.layout(self.w.shape, k.type, c.dnnl_format_tag_any), row, dst,
            dims(stride, stride), dims(0, 0), dims(pad, pad), dims(pad, pad),
            attributes=library.attributes(operation.norm.relu, dst if add else None))
        inside = library.query(description, c.dnnl_query_weights_md)
        own = k.own(inside)
        bound = {c.DNNL_ARG_SRC: (src, x.value), c.DNNL_ARG_WEIGHTS: (inside, own),
                 c.DNNL_ARG_BIAS: (row, self.bias), c.DNNL_ARG_DST: (dst, y.value)}
        if add:
            bound[c.DNNL_ARG_ATTR_MULTIPLE_POST_OP_BASE | c.DNNL_ARG_SRC_1] = (dst, add.value)
        self.keep, self.output = k.reorder(flat, self.staging, inside, own), k.primitive(description, bound)

    def fold(self) -> None:
        scale = self.gamma / np.sqrt(self.var + EPSILON)
        np.multiply(self.mean, -scale, out=self.bias)
        self.bias += self.beta
        folded = self.staging.array[: self.w.nbytes].view(self.w.dtype).reshape(len(scale), -1)
        np.multiply(self.w.reshape(folded.shape), scale[:, None], out=folded)
        self.keep()

    def forward(self, training: bool) -> None:
        self.output()

    def backward(self) -> None:
        raise NotImplementedError           # for inference only


class BatchNorm:
    """One pass with ReLU; two with `add`, which oneDNN does not support on CPUs: y += add [ReLU] in place."""

    def __init__(self, kernels: OneDNN, operation: api.BatchNorm, arrays: Arrays) -> None:
        (gamma, beta, mean, var), relu = arrays.weights, operation.relu
        x, y, add = arrays.x, arrays.y, arrays.add
        self.kernels, self.x, self.gamma, self.beta, self.mean, self.var, self.y = kernels, x, gamma, beta, mean, var, y
        self.c, self.relu, self.add = kernels.c, relu, add
        self.fused = relu and add is None
        self.layout, self.row = kernels.activation(x.value), kernels.vector(mean.value)
        self.m, self.s = np.empty((2, mean.value.size), np.float32)     # of the batch
        count = x.value.size // mean.value.size
        self.unbias = count / max(count - 1, 1)
        self.flags = self.c.dnnl_use_scale | self.c.dnnl_use_shift | (self.c.dnnl_fuse_norm_relu if self.fused else 0)
        self.description = self.describe(self.c.dnnl_forward_training, self.flags)
        self.keep = self.workspace()
        after = [kernels.sum(y.value, add.value, y.value, relu)] if add else []
        self.training_steps = [self.output(self.description, self.m, self.s, self.keep), *after]
        inference = self.describe(self.c.dnnl_forward_inference, self.flags | self.c.dnnl_use_global_stats)
        self.inference_steps = [self.output(inference, mean.value, var.value, {}), *after]
        self.backward_steps = self.gradients() if y.grad is not None else []

    def forward(self, training: bool) -> None:
        run(self.training_steps if training else self.inference_steps)
        if training:
            np.subtract(self.mean.value, self.m, out=self.mean.grad)
            np.multiply(self.s, -self.unbias, out=self.var.grad)
            self.var.grad += self.var.value

    def backward(self) -> None:
        if self.add and not self.relu:
            np.copyto(self.add.grad, self.y.grad)
        run(self.backward_steps)

    def describe(self, prop: int, flags: int) -> Handle:
        return self.kernels.library.describe(self.c.dnnl_batch_normalization_forward_primitive_desc_create, prop,
                                             self.layout, self.layout, EPSILON, flags)

    def workspace(self) -> dict[int, tuple[Handle, Array]]:
        """Where a fused ReLU records, for the backward pass, which outputs are positive."""
        if not self.fused:
            return {}
        layout = self.kernels.library.query(self.description, self.c.dnnl_query_workspace_md)
        return {self.c.DNNL_ARG_WORKSPACE: (layout, self.kernels.own(layout))}

    def output(self, description: Handle, m: Array, s: Array, keep: dict[int, tuple[Handle, Array]]) -> Primitive:
        c = self.c
        return self.kernels.primitive(description, {
            c.DNNL_ARG_SRC: (self.layout, self.x.value), c.DNNL_ARG_DST: (self.layout, self.y.value),
            c.DNNL_ARG_MEAN: (self.row, m), c.DNNL_ARG_VARIANCE: (self.row, s),
            c.DNNL_ARG_SCALE: (self.row, self.gamma.value), c.DNNL_ARG_SHIFT: (self.row, self.beta.value), **keep})

    def gradients(self) -> list[Primitive]:
        c, k = self.c, self.kernels
        dy, before = self.y.grad, []
        if self.add and self.relu:          # what passes the ReLU is add's gradient, and batch norm's dy
            dy = self.add.grad
            before = [k.relu_gradient(self.y.value, self.y.grad, dy)]
        description = k.library.describe(
            c.dnnl_batch_normalization_backward_primitive_desc_create, c.dnnl_backward,
            self.layout, self.layout, self.layout, EPSILON, self.flags, self.description)
        return [*before, k.primitive(description, {
            c.DNNL_ARG_SRC: (self.layout, self.x.value), c.DNNL_ARG_DIFF_SRC: (self.layout, self.x.grad),
            c.DNNL_ARG_MEAN: (self.row, self.m), c.DNNL_ARG_VARIANCE: (self.row, self.s),
            c.DNNL_ARG_SCALE: (self.row, self.gamma.value), c.DNNL_ARG_DIFF_DST: (self.layout, dy),
            c.DNNL_ARG_DIFF_SCALE: (self.row, self.gamma.grad), c.DNNL_ARG_DIFF_SHIFT: (self.row, self.beta.grad),
            **self.keep})]


class Pool:
    """Maximum or average over windows; the maximum records its position in a workspace."""

    def __init__(self, kernels: OneDNN, algorithm: int, x: Tensor, y: Tensor, window: Shape, stride: int,
                 pad: int) -> None:
        c, describe, query = kernels.c, kernels.library.describe, kernels.library.query
        src, dst = kernels.activation(x.value), kernels.activation(y.value)
        geometry = (dims(stride, stride), dims(*window), dims(0, 0), dims(pad, pad), dims(pad, pad))
        prop = c.dnnl_forward_inference if y.grad is None else c.dnnl_forward_training
        forward = describe(c.dnnl_pooling_forward_primitive_desc_create, prop, algorithm, src, dst, *geometry)
        found = query(forward, c.dnnl_query_workspace_md)
        noted = found and kernels.library.size(found)
        keep = {c.DNNL_ARG_WORKSPACE: (found, kernels.own(found))} if noted else {}
        self.forward_step = kernels.primitive(
            forward, {c.DNNL_ARG_SRC: (src, x.value), c.DNNL_ARG_DST: (dst, y.value), **keep})
        self.backward_steps: list[Primitive] = []
        if x.grad is not None:
            backward = describe(c.dnnl_pooling_backward_primitive_desc_create, algorithm, src, dst, *geometry, forward)
            self.backward_steps = [kernels.primitive(
                backward, {c.DNNL_ARG_DIFF_SRC: (src, x.grad), c.DNNL_ARG_DIFF_DST: (dst, y.grad), **keep})]

    def forward(self, training: bool) -> None:
        self.forward_step()

    def backward(self) -> None:
        run(self.backward_steps)


class MaxPool(Pool):
    def __init__(self, kernels: OneDNN, operation: api.MaxPool, arrays: Arrays) -> None:
        window = (operation.window, operation.window)
        super().__init__(kernels, kernels.c.dnnl_pooling_max, arrays.x, arrays.y, window, operation.stride,
                         operation.pad)


class AveragePool(Pool):
    def __init__(self, kernels: OneDNN, operation: api.AveragePool, arrays: Arrays) -> None:
        n, *window, channels = arrays.x.value.shape
        one_pixel = reshaped(arrays.y, (n, 1, 1, channels))
        super().__init__(kernels, kernels.c.dnnl_pooling_avg_exclude_padding, arrays.x, one_pixel, tuple(window), 1, 0)


class CrossEntropy:
    """The reference's, on a float32 copy of the logits: they are few."""

    def __init__(self, kernels: OneDNN, logits: Tensor, smoothing: float) -> None:
        self.kernels, self.logits = kernels, logits
        shape = logits.value.shape
        self.copy = Tensor(np.empty(shape, np.float32), np.empty(shape, np.float32))
        self.loss = reference.CrossEntropy(self.copy, smoothing)

        self.put, self.get, self.later = self.loss.put, self.loss.get, self.loss.later

    def forward(self) -> None:
        self.copy.value[...] = self.kernels.get(self.logits.value)
        self.loss.forward()
        if self.logits.grad is not None:
            self.kernels.put(self.copy.grad, self.logits.grad)


OneDNN.operations = {
    api.Convolution: Convolution, api.BatchNorm: BatchNorm, api.FoldedConvolution: FoldedConvolution,
    api.Subsample: reference.Subsample,     # only copies, whatever the dtype
    api.MaxPool: MaxPool, api.AveragePool: AveragePool, api.Linear: Linear}
