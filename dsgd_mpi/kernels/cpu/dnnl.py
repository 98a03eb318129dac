"""oneDNN's C interface, version 3, through cffi in ABI mode: no compiler is needed, and a primitive is one C call.

Names are the C library's own, so that its guide (https://oneapi-src.github.io/oneDNN) explains them. Descriptors have
logical dimensions N, C, H, W, whatever the order in memory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from weakref import WeakSet

import cffi
import numpy as np

from dsgd_mpi.arrays.flat import Array, Shape
from dsgd_mpi.errors import UsageError

ALIGNMENT = 64                              # bytes: a cache line, and the widest vector register
Handle = Any                                # an opaque pointer of the C library; freed with its last Python reference
WAY_OUT = "install the package onednn-cpu-gomp, or set DSGD_ONEDNN to the path of a libdnnl.so of version 3"

ffi = cffi.FFI()
ffi.cdef("""
typedef enum { dnnl_success, dnnl_out_of_memory, dnnl_invalid_arguments, dnnl_unimplemented, dnnl_last_impl_reached,
    dnnl_runtime_error, dnnl_not_required } dnnl_status_t;
enum { dnnl_cpu = 1, dnnl_stream_in_order = 1, dnnl_scratchpad_mode_user = 1 };
enum { dnnl_bf16 = 2, dnnl_f32 = 3 };
enum { dnnl_format_tag_any = 1, dnnl_a = 2, dnnl_ab = 3, dnnl_oihw = 5, dnnl_ba = 14, dnnl_nhwc = 22 };
enum { dnnl_forward_training = 64, dnnl_forward_inference = 96, dnnl_backward = 128 };
enum { dnnl_convolution_direct = 1, dnnl_eltwise_relu = 0x20, dnnl_eltwise_relu_use_dst_for_bwd = 0x100,
    dnnl_pooling_max = 0x1ff, dnnl_pooling_avg_exclude_padding = 0x3ff, dnnl_binary_add = 0x1fff0 };
enum { dnnl_use_global_stats = 1, dnnl_use_scale = 2, dnnl_use_shift = 4, dnnl_fuse_norm_relu = 8 };
enum { dnnl_query_impl_info_str = 8, dnnl_query_src_md = 129, dnnl_query_weights_md = 131,
    dnnl_query_diff_weights_md = 132, dnnl_query_diff_dst_md = 134, dnnl_query_workspace_md = 135,
    dnnl_query_scratchpad_md = 136 };
enum { dnnl_cpu_isa_avx512_core = 0x27 };
#define DNNL_RUNTIME_OMP 2
#define DNNL_ARG_SRC 1
#define DNNL_ARG_SRC_1 2
#define DNNL_ARG_DST 17
#define DNNL_ARG_WEIGHTS 33
#define DNNL_ARG_BIAS 41
#define DNNL_ARG_MEAN 49
#define DNNL_ARG_VARIANCE 50
#define DNNL_ARG_SCALE 51
#define DNNL_ARG_SHIFT 52
#define DNNL_ARG_WORKSPACE 64
#define DNNL_ARG_SCRATCHPAD 80
#define DNNL_ARG_DIFF_SRC 129
#define DNNL_ARG_DIFF_DST 145
#define DNNL_ARG_DIFF_WEIGHTS 161
#define DNNL_ARG_DIFF_BIAS 169
#define DNNL_ARG_DIFF_SCALE 255
#define DNNL_ARG_DIFF_SHIFT 256
#define DNNL_ARG_ATTR_MULTIPLE_POST_OP_BASE 32768

typedef struct { int major, minor, patch; const char *hash; unsigned cpu_runtime, gpu_runtime; } dnnl_version_t;
typedef struct { int arg; void *memory; } dnnl_exec_arg_t;
typedef const int64_t *dims;
const dnnl_version_t *dnnl_version(void);
int dnnl_get_effective_cpu_isa(void);
int dnnl_engine_create(void **engine, int kind, size_t index);
int dnnl_stream_create(void **stream, void *engine, unsigned flags);
int dnnl_memory_desc_create_with_tag(void **md, int ndims, dims shape, int type, int tag);
int dnnl_memory_desc_destroy(void *md);
int dnnl_memory_desc_equal(const void *md, const void *other);
size_t dnnl_memory_desc_get_size(const void *md);
int dnnl_memory_create(void **memory, const void *md, void *engine, void *handle);
int dnnl_memory_set_data_handle(void *memory, void *handle);
int dnnl_memory_destroy(void *memory);
int dnnl_primitive_attr_create(void **attr);
int dnnl_primitive_attr_destroy(void *attr);
int dnnl_primitive_attr_set_scratchpad_mode(void *attr, int mode);
int dnnl_primitive_attr_set_post_ops(void *attr, const void *post_ops);
int dnnl_post_ops_create(void **post_ops);
int dnnl_post_ops_destroy(void *post_ops);
int dnnl_post_ops_append_eltwise(void *post_ops, int alg, float alpha, float beta);
int dnnl_post_ops_append_binary(void *post_ops, int alg, const void *src1);
const void *dnnl_primitive_desc_query_md(const void *pd, int what, int index);
int dnnl_primitive_desc_query(const void *pd, int what, int index, void *result);
int dnnl_primitive_desc_destroy(void *pd);
int dnnl_primitive_create(void **primitive, const void *pd);
int dnnl_primitive_destroy(void *primitive);
int dnnl_primitive_execute(const void *primitive, void *stream, int nargs, const dnnl_exec_arg_t *args);
int dnnl_reorder_primitive_desc_create(void **pd, const void *src, void *src_engine, const void *dst, void *dst_engine,
    const void *attr);
int dnnl_binary_primitive_desc_create(void **pd, void *engine, int alg, const void *src0, const void *src1,
    const void *dst, const void *attr);
int dnnl_eltwise_forward_primitive_desc_create(void **pd, void *engine, int prop, int alg, const void *src,
    const void *dst, float alpha, float beta, const void *attr);
int dnnl_eltwise_backward_primitive_desc_create(void **pd, void *engine, int alg, const void *diff_src,
    const void *diff_dst, const void *data, float alpha, float beta, const void *hint, const void *attr);
int dnnl_matmul_primitive_desc_create(void **pd, void *engine, const void *src, const void *weights, const void *bias,
    const void *dst, const void *attr);
int dnnl_convolution_forward_primitive_desc_create(void **pd, void *engine, int prop, int alg, const void *src,
    const void *weights, const void *bias, const void *dst, dims strides, dims dilates, dims pad_l, dims pad_r,
    const void *attr);
int dnnl_convolution_backward_data_primitive_desc_create(void **pd, void *engine, int alg, const void *diff_src,
    const void *weights, const void *diff_dst, dims strides, dims dilates, dims pad_l, dims pad_r, const void *hint,
    const void *attr);
int dnnl_convolution_backward_weights_primitive_desc_create(void **pd, void *engine, int alg, const void *src,
    const void *diff_weights, const void *diff_bias, const void *diff_dst, dims strides, dims dilates, dims pad_l,
    dims pad_r, const void *hint, const void *attr);
int dnnl_batch_normalization_forward_primitive_desc_create(void **pd, void *engine, int prop, const void *src,
    const void *dst, float epsilon, unsigned flags, const void *attr);
int dnnl_batch_normalization_backward_primitive_desc_create(void **pd, void *engine, int prop, const void *diff_src,
    const void *diff_dst, const void *src, float epsilon, unsigned flags, const void *hint, const void *attr);
int dnnl_pooling_forward_primitive_desc_create(void **pd, void *engine, int prop, int alg, const void *src,
    const void *dst, dims strides, dims kernel, dims dilation, dims pad_l, dims pad_r, const void *attr);
int dnnl_pooling_backward_primitive_desc_create(void **pd, void *engine, int alg, const void *diff_src,
    const void *diff_dst, dims strides, dims kernel, dims dilation, dims pad_l, dims pad_r, const void *hint,
    const void *attr);
void omp_set_num_threads(int threads);
int omp_get_max_threads(void);
""")


def candidates() -> list[str]:
    """Where the library may be, best first. If DSGD_ONEDNN is set, nowhere else."""
    if "DSGD_ONEDNN" in os.environ:
        return [os.environ["DSGD_ONEDNN"]]
    found = [Path(sys.prefix) / "lib" / "libdnnl.so.3"]
    try:
        files = metadata.files("onednn-cpu-gomp") or []
        found += [Path(str(file.locate())) for file in files if file.name == "libdnnl.so.3"]
    except metadata.PackageNotFoundError:
        pass
    return [str(path) for path in found if path.exists()] + ["libdnnl.so.3"]    # the last: the system's search path


def library() -> Library:
    """oneDNN, loaded once; UsageError if it is missing or not the right one."""
    return loaded(candidates()[0])


@cache
def loaded(path: str) -> Library:
    # libgomp reads it when loaded: how many times a waiting thread polls before it sleeps. The default, 300,000, takes
    # milliseconds: harmless on idle cores, but on cores shared with others, waiting threads keep out working ones.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        c = ffi.dlopen(path)
        version = c.dnnl_version()
    except (OSError, AttributeError) as reason:
        raise UsageError(f"oneDNN cannot be loaded ({reason}); {WAY_OUT}") from None
    if version.major != 3:
        raise UsageError(f"{path}: expected oneDNN 3, found {version.major}.{version.minor}; {WAY_OUT}")
    # A SYCL build runs asynchronously: NumPy would read results before they are written.
    if version.cpu_runtime != c.DNNL_RUNTIME_OMP:
        raise UsageError(f"{path} is not built for OpenMP; {WAY_OUT}")
    return Library(c)


def check(status: int) -> None:
    if status:
        raise RuntimeError(f"oneDNN: {ffi.string(ffi.cast('dnnl_status_t', status))}")


class Library:
    """The C library, its one engine (the CPU) and its one stream, which both live as long as the process."""

    def __init__(self, c: Any) -> None:
        self.c = c
        self.engine = self.new(c.dnnl_engine_create, None, c.dnnl_cpu, 0)
        self.stream = self.new(c.dnnl_stream_create, None, self.engine, c.dnnl_stream_in_order)
        self.plain = self.attributes()
        self.then_relu = self.attributes(relu=True)

    def new(self, create: Any, destroy: Any, *args: Any) -> Handle:
        """What `create` creates, to be freed by `destroy` with the last reference."""
        out = ffi.new("void **")
        check(create(out, *args))
        return ffi.gc(out[0], destroy) if destroy else out[0]

    def attributes(self, relu: bool = False, add: Handle = None) -> Handle:
        """Scratchpads are provided by us; an array of layout `add` is added to the result, and `relu` applied."""
        c = self.c
        attributes = self.new(c.dnnl_primitive_attr_create, c.dnnl_primitive_attr_destroy)
        check(c.dnnl_primitive_attr_set_scratchpad_mode(attributes, c.dnnl_scratchpad_mode_user))
        post_ops = self.new(c.dnnl_post_ops_create, c.dnnl_post_ops_destroy)
        if add is not None:
            check(c.dnnl_post_ops_append_binary(post_ops, c.dnnl_binary_add, add))
        if relu:
            check(c.dnnl_post_ops_append_eltwise(post_ops, c.dnnl_eltwise_relu, 0.0, 0.0))
        check(c.dnnl_primitive_attr_set_post_ops(attributes, post_ops))
        return attributes

    def layout(self, shape: Shape, dtype: int, tag: int) -> Handle:
        """A memory descriptor: logical shape, dtype and order in memory."""
        c = self.c
        return self.new(c.dnnl_memory_desc_create_with_tag, c.dnnl_memory_desc_destroy, len(shape), dims(*shape),
                        dtype, tag)

    def describe(self, create: Any, *args: Any, attributes: Handle = None) -> Handle:
        """A primitive descriptor for the CPU."""
        return self.new(create, self.c.dnnl_primitive_desc_destroy, self.engine, *args, attributes or self.plain)

    def describe_reorder(self, source: Handle, target: Handle) -> Handle:
        c = self.c
        return self.new(c.dnnl_reorder_primitive_desc_create, c.dnnl_primitive_desc_destroy,
                        source, self.engine, target, self.engine, self.plain)

    def query(self, description: Handle, what: int) -> Handle:
        """The layout that a primitive has chosen, valid for as long as its description."""
        return self.c.dnnl_primitive_desc_query_md(description, what, 0)

    def size(self, layout: Handle) -> int:
        """Bytes."""
        return int(self.c.dnnl_memory_desc_get_size(layout))


def dims(*values: int) -> Any:
    return ffi.new("int64_t[]", values)


def pointer(x: Array) -> Any:
    return ffi.cast("void *", x.ctypes.data)


def aligned(size: int) -> Array:
    """An uninitialised array of `size` bytes that starts at a multiple of ALIGNMENT."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start:start + size]


class Shared:
    """A buffer that all operations use, one after another; it grows to the most that any of them needs."""

    def __init__(self, c: Any) -> None:
        self.c, self.array = c, aligned(0)
        self.memories: WeakSet[Any] = WeakSet()

    def bind(self, memory: Handle, size: int) -> None:
        """Points `memory` to this buffer, now and whenever it grows."""
        self.memories.add(memory)
        if size <= self.array.size:
            check(self.c.dnnl_memory_set_data_handle(memory, pointer(self.array)))
            return
        self.array = aligned(size)
        for other in self.memories:
            check(self.c.dnnl_memory_set_data_handle(other, pointer(self.array)))


class Primitive:
    """A primitive bound to its arrays; call it to run it.

    `bound` gives each argument's layout and its place: an array, which must not move from then on, or a Shared buffer.
    """

    def __init__(self, library: Library, description: Handle, bound: Mapping[int, tuple[Handle, Array | Shared]],
                 scratchpad: Shared) -> None:
        c = library.c
        self.library = library
        self.places: dict[int, Array | Shared] = {}
        needed = library.query(description, c.dnnl_query_scratchpad_md)
        bound = {**bound, c.DNNL_ARG_SCRATCHPAD: (needed, scratchpad)}
        self.sizes = {arg: library.size(layout) for arg, (layout, _) in bound.items()}
        self.memories = {arg: library.new(c.dnnl_memory_create, c.dnnl_memory_destroy, layout, library.engine, ffi.NULL)
                         for arg, (layout, _) in bound.items()}
        for arg, (_, place) in bound.items():
            self.bind(arg, place)
        self.primitive = library.new(c.dnnl_primitive_create, c.dnnl_primitive_destroy, description)
        self.arguments = ffi.new("dnnl_exec_arg_t[]", list(self.memories.items()))
        self.call = (self.primitive, library.stream, len(self.memories), self.arguments)
        self.execute = c.dnnl_primitive_execute         # synchronous with OpenMP: there is nothing to wait for
        self.implementation = self.name(description)

    def bind(self, arg: int, place: Array | Shared) -> None:
        self.places[arg] = place            # kept alive
        if isinstance(place, Shared):
            place.bind(self.memories[arg], self.sizes[arg])
        else:
            assert place.nbytes >= self.sizes[arg], (place.nbytes, self.sizes[arg])
            assert place.flags.c_contiguous
            self.point(arg, pointer(place))

    def point(self, arg: int, address: Any) -> None:
        """Redirects an argument for the next call, unchecked; the caller keeps the memory alive."""
        check(self.library.c.dnnl_memory_set_data_handle(self.memories[arg], address))

    def name(self, description: Handle) -> str:
        """oneDNN's name for the implementation it has chosen, such as "jit:avx2"."""
        c, out = self.library.c, ffi.new("const char **")
        check(c.dnnl_primitive_desc_query(description, c.dnnl_query_impl_info_str, 0, out))
        return bytes(ffi.string(out[0])).decode()

    def __call__(self) -> None:
        if status := self.execute(*self.call):
            check(status)
