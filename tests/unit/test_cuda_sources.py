"""What the compiler makes of the CUDA sources, as far as it can be seen without a GPU."""

import re
from functools import cache

import pytest

from dsgd_mpi.kernels.gpu.device import SOURCES, macros, source
from dsgd_mpi.kernels.gpu.tools import CHANNELS_A_THREAD, FORMATS, ROW_BUILDS
from tests.support.emulation.emulated import kernels

SHARED_BYTES = 48 << 10                     # of a block, unless it asks for more (CUDA C++ Programming Guide)
formats = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])


@pytest.fixture(autouse=True)
def nvrtc():
    reason = "this Python has no package cuda-bindings: the CUDA sources cannot be compiled here"
    pytest.importorskip("cuda.bindings.nvrtc", reason=reason)


def sizes(dtype):
    """All numbers of elements that are moved at a time."""
    return sorted({1, CHANNELS_A_THREAD, 128 // FORMATS[dtype].bits})


@cache
def compiled(code, arch, *options):
    """Compiles sources to machine code, without a driver; what the assembler says of it, and its PTX."""
    from cuda.bindings import nvrtc

    def call(function, *arguments):
        error, *results = function(*arguments)
        assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, (error, text(nvrtc.nvrtcGetProgramLogSize,
                                                                      nvrtc.nvrtcGetProgramLog))
        return results[0] if results else None

    def text(size, get):
        memory = b" " * size(program)[1]
        get(program, memory)
        return memory.decode(errors="replace")

    program = None
    program = call(nvrtc.nvrtcCreateProgram, code.encode(), b"kernels.cu", 0, [], [])
    arguments = [option.encode() for option in (f"--gpu-architecture={arch}", "--ptxas-options=-v", *options)]
    call(nvrtc.nvrtcCompileProgram, program, len(arguments), arguments)
    assert text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN).startswith("\x7fELF")
    return (text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog),
            text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX))


@pytest.mark.parametrize(("dtype", "arch"), [
    pytest.param(dtype, arch, marks=() if (dtype == "bfloat16") == (arch == "sm_90") else pytest.mark.soak)
    for dtype in ("float32", "bfloat16", "float16") for arch in ("sm_80", "sm_90")])
def test_every_kernel_compiles_and_none_spills_registers(dtype, arch):
    """The assembler refuses more shared memory than a block may have."""
    expected = {name for _, name in kernels(source())}
    assert len(expected) == sum(path.read_text().count('extern "C"') for path in SOURCES.glob("*.cu")) > 20
    for vec in {*sizes(dtype), *ROW_BUILDS[FORMATS[dtype].bits]}:
        log, _ = compiled(source(), arch, *macros(FORMATS[dtype], vec))
        used = re.findall(r"Function properties for (\w+)\n.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
                          r"(\d+) bytes spill loads", log)
        assert {name for name, *_ in used} == expected
        assert not [each for each in used if any(map(int, each[1:]))]


def test_more_shared_memory_than_a_block_may_have_does_not_compile():
    greedy = source().replace("sums[VEC][THREADS]", "sums[VEC][2 * THREADS]")
    with pytest.raises(AssertionError, match=r"uses too much shared data \(0x\w+ bytes, 0xc000 max\)"):
        compiled(greedy, "sm_90", *macros(FORMATS["bfloat16"], 8))


# Bytes that a thread loads and stores at a time, where activations are moved VEC at a time: `pack` of them, as many
# `taps` of maxima and partial sums in `floats`, and a byte of their signs; parameters and statistics, whose place in
# memory is not aligned, one by one. Nothing but these: so no activation is moved alone.
WIDTHS = {
    "batch_norm_statistics": ({"pack", "floats", "float"}, {"floats", "float"}),
    "batch_norm_apply": ({"pack", "float"}, {"pack", "byte"}),
    "batch_norm_gradient_statistics": ({"pack", "byte", "floats", "float"}, {"pack", "floats", "float"}),
    "batch_norm_gradient": ({"pack", "float"}, {"pack"}),
    "max_pool": ({"pack"}, {"pack", "taps"}),
    "max_pool_gradient": ({"pack", "taps"}, {"pack"}),
    "average_pool": ({"pack"}, {"pack"}),
    "average_pool_gradient": ({"pack"}, {"pack"}),
    "accumulate": ({"pack"}, {"pack"}),
    "narrowed": ({"float"}, {"pack"}),
    "images_in": ({"byte", "float"}, {"pack"}),
}
WIDEST = 16                                 # that a GPU before sm_100 moves at a time


def moved(ptx, kernel, instruction):
    """The sizes in bytes of a kernel's loads ("ld") from, or stores ("st") to, global memory."""
    body = re.search(rf"\.entry {kernel}\(.*?\n}}", ptx, re.DOTALL)[0]
    found = re.findall(rf"\b{instruction}\.global[.\w]*?(?:\.v(\d))?\.[a-z](\d+)\s", body)
    assert len(found) == body.count(f"{instruction}.global")
    return {int(count or 1) * int(bits) // 8 for count, bits in found}


@formats
def test_activations_are_moved_in_vectors(dtype):
    others = {name for _, name in kernels(source())} - WIDTHS.keys()
    seen = {}
    for vec in sizes(dtype):
        _, ptx = compiled(source(), "sm_90", *macros(FORMATS[dtype], vec))
        size = {"pack": vec * FORMATS[dtype].bits // 8, "taps": vec, "floats": min(WIDEST, 4 * vec), "float": 4,
                "byte": 1}
        found = {kernel: (moved(ptx, kernel, "ld"), moved(ptx, kernel, "st")) for kernel in {*WIDTHS, *others}}
        assert {kernel: found[kernel] for kernel in WIDTHS} == {
            kernel: tuple({size[thing] for thing in things} for things in both) for kernel, both in WIDTHS.items()}
        seen[vec] = {kernel: found[kernel] for kernel in others}
    assert all(each == seen[1] for each in seen.values())       # no vectors: a kernel that has some is in the table
