"""What is oneDNN's own: finding the library, threads, memory, and bfloat16 as bits."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest

from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.api import Arrays, BatchNorm, Convolution, Tensor
from dsgd_mpi.kernels.load import load
from tests.support.kernel_cases import filled, flat_tensors, fresh, poisoned


@pytest.fixture
def onednn():
    try:
        return load("onednn")
    except UsageError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("path", ["/nowhere/libdnnl.so.3", "libm.so.6"])
def test_a_library_that_is_not_onednn_is_refused_with_the_way_out(path, monkeypatch):
    monkeypatch.setenv("DSGD_ONEDNN", path)
    with pytest.raises(UsageError, match=rf"{path}.*install the package onednn-cpu-gomp"):
        load("onednn")


def test_float64_is_the_reference_s(onednn):
    with pytest.raises(UsageError, match="float64; use one of float32, bfloat16, or the reference kernels"):
        load("onednn", "float64")
    assert load("auto", "float32", "cpu").name == "onednn"


def convolution(k, rng):
    """An operation that has run forward and backward, and its tensors."""
    x, y = filled(k, rng.standard_normal((4, 16, 16, 8))), poisoned(k, (4, 16, 16, 8))
    w = flat_tensors(k, {"w": rng.standard_normal((8, 8, 3, 3))})["w"]
    k.put(rng.standard_normal(y.value.shape), y.grad)
    operation = k.bind(Convolution(8, window=3, pad=1), Arrays(x, [w], y))
    operation.forward(True)
    operation.backward()
    return operation, y.value, x.grad, w.grad


def test_the_number_of_threads_can_be_set_and_does_not_matter(onednn):
    before = onednn.c.omp_get_max_threads()
    seed = fresh().integers(1 << 32)
    results = []
    try:
        for threads in (1, 2):
            k = load("onednn")
            k.set_threads(threads)
            assert k.c.omp_get_max_threads() == threads
            results.append(convolution(k, np.random.default_rng(seed))[1:])
    finally:
        onednn.c.omp_set_num_threads(before)
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5 * np.abs(one).max())


def test_the_number_of_threads_cannot_change_under_an_operation(onednn):
    made = convolution(onednn, fresh())
    with pytest.raises(AssertionError, match="made for a number of threads"):
        onednn.set_threads(2)
    del made


def test_workspaces_are_counted(onednn):
    """Batch norm with ReLU keeps a bit or a byte for each number that it may have cut off."""
    before = onednn.held_bytes
    x, y = (Tensor(onednn.empty((2, 8, 8, 16)), onednn.empty((2, 8, 8, 16))) for _ in "xy")
    rows = [Tensor(*np.ones((2, 16), "float32")) for _ in range(4)]
    onednn.bind(BatchNorm(relu=True), Arrays(x, rows, y))
    assert onednn.held_bytes - before >= x.value.size / 8


def test_an_operation_that_is_forgotten_leaves_nothing_behind(onednn):
    operation, *_ = convolution(onednn, fresh())
    assert onednn.scratchpad.memories
    assert onednn.weights.memories
    del operation
    gc.collect()
    assert not onednn.scratchpad.memories
    assert not onednn.weights.memories


def test_activations_are_aligned(onednn):
    for shape in [(1,), (3, 5, 7, 1), (2, 2)]:
        assert onednn.empty(shape).ctypes.data % 64 == 0


@pytest.mark.parametrize(("given", "spins"), [
    ({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, None)])
def test_waiting_threads_soon_sleep_unless_the_user_has_said_otherwise(onednn, given, spins):
    """libgomp tells, while it is loaded, what it has read."""
    program = """if 1:
        import os; from dsgd_mpi.kernels.load import load
        load("onednn"); print(os.environ.get("GOMP_SPINCOUNT"))"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_"))}
    done = subprocess.run([sys.executable, "-c", program], env={**environment, **given, "OMP_DISPLAY_ENV": "verbose"},
                          capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(spins)
    if spins:
        assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
