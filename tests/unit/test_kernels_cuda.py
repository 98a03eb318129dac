"""What is the GPU's own, as far as it can be seen without one: compilation, recording, loss scaling, memory, words."""

import re
import time
import weakref
from contextlib import closing
from itertools import pairwise
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest

from dsgd_mpi.algorithms.allreduce import Allreduce
from dsgd_mpi.arrays.flat import Buckets, Layout
from dsgd_mpi.data import Batches, evaluation_batches, open_dataset
from dsgd_mpi.data.augment import Transform
from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.api import Arrays, AveragePool, BatchNorm, Bytes, Convolution, Linear, Tensor
from dsgd_mpi.kernels.gpu.cudnn import CuDNN, Fetched
from dsgd_mpi.kernels.gpu.device import PageLocked, Staging, problem
from dsgd_mpi.kernels.gpu.tools import FORMATS, ROW_BUILDS
from dsgd_mpi.kernels.gpu.tuner import Choices
from dsgd_mpi.kernels.reference import Reference
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.nn import resnet
from dsgd_mpi.nn.activations import image_shape
from dsgd_mpi.nn.layers import Graph
from dsgd_mpi.nn.model import Model
from dsgd_mpi.optim.adamw import AdamW
from dsgd_mpi.optim.sgd import Sgd
from dsgd_mpi.training.checkpoint import Checkpoints
from tests.support.emulation.emulated import COMPILER, Emulated
from tests.support.jobs import run
from tests.support.numpy_device import NumpyDevice, raw

needs_compiler = pytest.mark.skipif(not COMPILER, reason="g++ is not installed: the kernels cannot be run on this CPU")
NOT_RUN = "this Python has no package {}: the CUDA sources cannot be compiled here"


def batch(image, n, seed=0):
    draw = np.random.default_rng(seed)
    return draw.standard_normal((n, *image)).astype("float32"), draw.integers(0, 10, n)


def emulated(name="resnet8", image=(12, 12, 1), n=4, dtype="float32", **device):
    return resnet(name, 10, image, n, CuDNN(dtype, device=lambda form: Emulated(form, **device)))


# recording

@needs_compiler
def test_what_is_replayed_equals_what_is_run_to_the_bit():
    model, (images, labels) = emulated(), batch((12, 12, 1), 4)
    losses, gradients = [], []
    for _ in range(3):                      # run, recorded and replayed, replayed
        losses.append(model.loss_and_gradient(images, labels))
        gradients.append(model.flat_gradient.copy())
        model.flat_gradient[:] = np.nan
    assert losses[0] == losses[1] == losses[2]
    assert np.array_equal(gradients[0], gradients[1])
    assert np.array_equal(gradients[0], gradients[2])


@needs_compiler
@pytest.mark.parametrize("piece", [1, 12_500, 10**9])
def test_finished_stretches_are_handed_out_between_the_pieces_of_a_recording(piece):
    """In order, all of the gradient, each when it is final and what comes after it has not begun."""
    model, (images, labels) = emulated(), batch((12, 12, 1), 4)
    model.loss_and_gradient(images, labels)
    expected = model.flat_gradient.copy()
    for _ in range(2):
        model.flat_gradient[:] = np.nan
        seen, polls = [], []

        def hear(part, seen=seen):
            assert np.isnan(model.flat_gradient[: part.start]).all()
            seen.append((part, model.flat_gradient[part].copy()))
        model.loss_and_gradient(images, labels, Buckets(piece, hear), lambda polls=polls: polls.append(None))
        assert all(np.array_equal(values, expected[part]) for part, values in seen)
        assert all(later.stop == earlier.start for (earlier, _), (later, _) in pairwise(seen))
        assert (seen[0][0].stop, seen[-1][0].start) == (model.layout.size, 0)
    sizes = [len(values) for _, values in seen]
    assert all(size >= piece for size in sizes[:-1])
    assert len(seen) == 1 if piece == 10**9 else len(seen) > 3


@needs_compiler
@pytest.mark.parametrize("least", [0, 700, 20_000])
def test_a_gradient_is_handed_out_in_the_same_parts_as_on_a_cpu(least):
    """So that an option in megabytes means the same on both."""
    images, labels = batch((12, 12, 1), 4)
    heard = []
    for model in (emulated(), resnet("resnet8", 10, (12, 12, 1), 4, "reference")):
        for _ in range(2):                  # on a GPU the second is a replay
            heard.append([])
            model.loss_and_gradient(images, labels, Buckets(least, heard[-1].append))
    assert heard[0] == heard[1] == heard[2] == heard[3]


@pytest.mark.alone
def test_other_threads_go_on_while_a_rank_waits_for_the_gpu():
    """One that needs Python's lock again and again would get it every 5 ms only."""
    end, turns = time.perf_counter() + 0.5, []

    def others_work():
        while time.perf_counter() < end:
            turns.append(time.sleep(0))
    thread = Thread(target=others_work)
    thread.start()
    polls = []
    busy = SimpleNamespace(mark=lambda: lambda: time.perf_counter() > end, fetch=lambda x, into: into.fill(1),
                           page_locked=lambda shape: np.empty(shape, np.uint8))
    loss = Fetched(busy, np.zeros(1, np.float32))
    assert not loss.done()
    assert loss.wait(lambda: polls.append(None)) == 1
    thread.join()
    assert len(turns) > 500
    assert len(polls) > 500


@needs_compiler
def test_a_batch_of_another_size_and_predictions_do_not_disturb_a_recording():
    model, (images, labels) = emulated(), batch((12, 12, 1), 4)
    first = [model.loss_and_gradient(images, labels) for _ in range(2)]
    model.predict(images)
    model.loss_and_gradient(images[:3], labels[:3])
    model.loss_and_gradient(*batch((12, 12, 1), 9))
    assert [model.loss_and_gradient(images, labels) for _ in range(2)] == first


@needs_compiler
def test_an_activation_with_three_readers_gets_the_sum_of_their_gradients():
    """Two terms: its batch norm adds one, the other is added before."""
    graph = Graph((6, 6, 3))
    x = graph.add("n1", BatchNorm(relu=True), graph.add("c1", Convolution(8, 3, 1, 1), "images"))
    one = graph.add("n2", BatchNorm(relu=True), graph.add("c2", Convolution(8, 1), x), add=x)
    two = graph.add("n3", BatchNorm(relu=True), graph.add("c3", Convolution(8, 1), x), add=one)
    graph.add("fc", Linear(10), graph.add("mean", AveragePool(), two))
    images, labels = batch((6, 6, 3), 4)
    model, exact = (Model(graph, 4, k) for k in (CuDNN("float32", device=Emulated), Reference("float64")))
    bound = model.plan(4).activations.bound
    assert sum(term is not None for *_, term, _ in bound) == sum(len(sums) for *_, sums in bound) == 1
    for _ in range(2):
        assert model.loss_and_gradient(images, labels) == pytest.approx(exact.loss_and_gradient(images, labels))
        np.testing.assert_allclose(model.flat_gradient, exact.flat_gradient, rtol=1e-4, atol=1e-5)


class Counted(Emulated):
    """`recordings`: how often a recording has begun; `launches`: single ones since."""

    recordings = launches = 0

    def begin(self):
        self.recordings += 1
        super().begin()

    def kernel(self, *arguments):
        launch = super().kernel(*arguments)

        def counted():
            self.launches += 1
            launch()
        return counted


def started(optimizer, x, kernels=None):
    """For vectors like x, whose last 100 numbers are statistics."""
    return optimizer.start(Layout({"a": (x.size - 150, 1), "b": (50,)}, {"r": (100,)}), x, kernels)


@needs_compiler
@pytest.mark.parametrize("optimizer", [Sgd, AdamW])
@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=pytest.mark.soak), "float16"])
def test_one_recording_of_the_update_serves_every_learning_rate(optimizer, dtype):
    k, draw = CuDNN(dtype, device=Counted), np.random.default_rng(0)
    x, g = draw.standard_normal((2, 1000)).astype("float32")
    x_ = x.copy()
    fused, written = started(optimizer(), x, k), started(optimizer(), x)
    for step in range(6):
        g[:] = draw.standard_normal(1000)
        fused.update(x, g, 0.1 / (1 + step))
        written.update(x_, g, 0.1 / (1 + step))
        np.testing.assert_allclose(x, x_, atol=1e-5)
        for name, expected in written.state.items():
            np.testing.assert_allclose(fused.state[name], expected, atol=1e-5)
    one_by_one = {Sgd: 1, AdamW: 2}[optimizer] + (2 if dtype == "float16" else 0)
    assert (k.device.recordings, k.device.launches) == (1, 2 * one_by_one)      # the first step, and the recording


@needs_compiler
def test_an_update_of_other_vectors_is_no_replay_and_keeps_only_the_last_alive():
    k = CuDNN("float32", device=Counted)
    x = np.zeros(1000, np.float32)
    sgd, gone = started(Sgd(0.0, weight_decay=0.0), x, k), []
    for step in range(5):
        g = np.full(1000, step, np.float32)
        before = x.copy()
        sgd.update(x, g, 1.0)
        np.testing.assert_allclose(before - x, [step] * 900 + [0.1 * step] * 100, rtol=1e-5)
        gone.append(weakref.ref(g))
    assert k.device.recordings == 0
    del g
    assert [reference() is None for reference in gone] == [True] * 4 + [False]
    started(Sgd(0.5), x, k).update(x, gone[-1](), 1.0)  # the same, but for the momentum
    assert k.device.recordings == 0
    sgd.update(x, gone[-1](), 1.0)
    assert k.device.recordings == 1


# builds of the kernels

class Clocked(Emulated):
    """Takes the seconds that `clock` says, by build; `timed`: those that have been asked for."""

    clock, timed, last = {}, [], None

    def kernel(self, name, vec, *arguments):
        if name == "batch_norm_apply":
            self.last = vec
        return super().kernel(name, vec, *arguments)

    def seconds(self, replay):
        self.timed.append(self.last)
        return self.clock[self.last]


@needs_compiler
def test_the_fastest_build_of_batch_norm_is_found_once_for_each_shape_and_used_by_all_ranks(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Clocked, "timed", timed := [])
    default, other = ROW_BUILDS[32]

    def bound(clock, channels=8):
        k = CuDNN("float32", device=Clocked)
        monkeypatch.setattr(k.device, "clock", clock)
        k.choices = Choices("clocked")
        tensors = [Tensor(k.empty(shape), k.empty(shape)) for shape in ((2, 3, 3, channels), *4 * [(channels,)])]
        return k, k.bind(BatchNorm(relu=True), Arrays(tensors[0], tensors[1:], tensors[0], tensors[0]))

    k, first = bound({default: 2.0, other: 1.0})
    assert (first.vec, set(timed)) == (other, {default, other})
    assert k.own_bytes == 5 * 4 * 8 + first.signs.nbytes        # nothing is left of what was tried
    count = len(timed)
    assert bound({default: 1.0, other: 2.0})[1].vec == other    # a later rank, whose clock says otherwise
    assert bound({}, channels=7)[1].vec == 1                    # for these there is no choice
    assert len(timed) == count
    assert bound({default: 1.0, other: 2.0}, channels=16)[1].vec == default


@needs_compiler
def test_nothing_is_timed_on_what_is_no_gpu():
    model = emulated()
    assert model.kernels.choices is None
    assert {step.operation.vec for step in model.plan(4).steps if hasattr(step.operation, "vec")} == {ROW_BUILDS[32][0]}


# loss scaling

@needs_compiler
def test_float16_gradients_are_not_scaled_when_they_leave_the_kernels():
    half, whole = emulated(dtype="float16"), resnet("resnet8", 10, (12, 12, 1), 4, "reference", "float64")
    images, labels = batch((12, 12, 1), 4)
    assert half.loss_and_gradient(images, labels) == pytest.approx(whole.loss_and_gradient(images, labels), rel=1e-2)
    n = half.parameters
    angle = half.flat_gradient[:n] @ whole.flat_gradient[:n]
    assert angle > 0.995 * np.linalg.norm(half.flat_gradient[:n]) * np.linalg.norm(whole.flat_gradient[:n])
    assert np.linalg.norm(half.flat_gradient[:n]) == pytest.approx(np.linalg.norm(whole.flat_gradient[:n]), rel=3e-2)


@needs_compiler
def test_a_step_that_overflows_is_left_out_and_the_scale_halved():
    k = CuDNN("float16", device=Emulated)
    x, g = (np.full(1000, value, np.float32) for value in (1, 0.5))
    sgd = started(Sgd(weight_decay=0), x, k)
    sgd.update(x, g, 0.1)
    np.testing.assert_allclose(x[:900], 1 - 0.1 * (0.5 + 0.9 * 0.5), rtol=1e-6)
    np.testing.assert_allclose(x[900:], 1 - 0.1 * 0.5, rtol=1e-6)
    before = x.copy(), sgd.state["v"].copy()
    for place, bad in ((777, np.inf), (777, -np.inf), (999, np.nan)):
        g[place] = bad
        sgd.update(x, g, 0.1)
        g[place] = 0.5
        assert np.array_equal(before[0], x)
        assert np.array_equal(before[1], sgd.state["v"])
    np.testing.assert_array_equal(k.scaling, [65536 / 8, 8 / 65536, 0, 0])
    sgd.update(x, g, 0.1)
    assert (x < before[0]).all()
    k.scaling[3] = 1999                     # good steps in a row
    sgd.update(x, g, 0.1)
    np.testing.assert_array_equal(k.scaling, [65536 / 4, 4 / 65536, 0, 0])


@needs_compiler
@pytest.mark.parametrize("optimizer", [Sgd, AdamW])
def test_a_step_that_overflows_was_never_taken(optimizer):
    """Neither momentum nor the count of steps knows of it."""
    k, draw = CuDNN("float16", device=Emulated), np.random.default_rng(0)
    x, g = draw.standard_normal((2, 1000)).astype("float32")
    x_ = x.copy()
    fused, written = started(optimizer(), x, k), started(optimizer(), x)
    for step in range(12):
        g[:] = draw.standard_normal(1000)
        if step % 3 == 1:
            g[draw.integers(1000)] = np.nan if step % 2 else np.inf
        else:
            written.update(x_, g, 0.1)
        fused.update(x, g, 0.1)
    np.testing.assert_allclose(x, x_, atol=1e-5)
    for name, expected in written.state.items():
        np.testing.assert_allclose(fused.state[name], expected, atol=1e-5)


@pytest.mark.soak
@needs_compiler
def test_a_scale_that_is_too_large_is_found_by_training_and_costs_only_the_first_steps():
    model, (images, labels) = emulated(dtype="float16"), batch((12, 12, 1), 4)
    model.kernels.scaling[:2] = 2.0**24, 2.0**-24
    sgd = Sgd(weight_decay=0).start(model.layout, model.flat, model.kernels)
    losses = []
    for _ in range(30):
        losses.append(model.loss_and_gradient(images, labels))
        sgd.update(model.flat, model.flat_gradient, 0.01)
    assert losses[0] == losses[1]
    assert losses[-1] < losses[0] / 2
    assert model.kernels.scaling[0] < 2.0**24


@pytest.mark.soak
@needs_compiler
def test_float16_stopped_and_resumed_equals_never_stopped_to_the_bit(tmp_path):
    """The scale shrinks before the stop and grows after it; what goes on knows nothing but the checkpoint."""
    def begun(host):
        model = emulated(dtype="float16")
        sgd = Sgd(weight_decay=0).start(model.layout, model.flat, model.kernels)
        return model, sgd, Checkpoints(host, tmp_path, {}, model.kernels.state)

    def take(steps, model, sgd):
        for _ in range(steps):
            model.loss_and_gradient(*batch((12, 12, 1), 4))
            sgd.update(model.flat, model.flat_gradient, 0.01)

    def main(host):
        model, sgd, checkpoints = begun(host)
        model.kernels.scaling[:2] = 2.0**24, 2.0**-24
        take(9, model, sgd)
        stopped_at = model.kernels.scaling[0]
        assert stopped_at < 2.0**24
        model.kernels.scaling[3] = 1998     # good steps in a row
        checkpoints.save(9, model.flat, sgd, Allreduce(), {})
        checkpoints.finish()
        take(2, model, sgd)
        assert model.kernels.scaling[0] == 2 * stopped_at
        take(4, model, sgd)

        again, its_sgd, checkpoints = begun(host)
        checkpoints.restore(again.flat, its_sgd, Allreduce())
        take(6, again, its_sgd)
        assert np.array_equal(model.flat, again.flat)
        assert np.array_equal(sgd.state["v"], its_sgd.state["v"])
        assert np.array_equal(model.kernels.scaling, again.kernels.scaling)
    Cluster(1).run(main)


@pytest.mark.parametrize("dtype", FORMATS)
def test_only_where_the_loss_is_scaled_is_there_something_to_keep(dtype):
    assert list(CuDNN(dtype, device=Emulated).state) == ["loss_scaling"] * (dtype == "float16")


# images

@needs_compiler
@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bytes_become_the_images_that_the_host_would_make_of_them(augmented, dtype):
    draw, image, n = np.random.default_rng(0), (16, 24, 3), 9
    transform = Transform(n, image, np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.3]))
    stored, draws = draw.integers(0, 256, (n, *image), np.uint8), draw.random((n, 3)) if augmented else None
    expected, k = np.empty(stored.shape, np.float32), CuDNN(dtype, device=Emulated)
    if augmented:
        transform.augment(stored, expected, draws)
    else:
        transform.normalise(stored, expected)
    found = k.empty(stored.shape)
    k.put(transform.bytes(stored, draws), found)
    np.testing.assert_allclose(k.get(found), expected, rtol=0, atol=1e-6 if dtype == "float32" else 2e-3)


class Padding(CuDNN):
    """Pads channels, as where cuDNN is there."""

    def padded(self, channels):
        return -(-channels // 8) * 8


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.soak)])
@pytest.mark.parametrize("channels", [1, 3, 8])
def test_images_come_with_zeros_in_the_channels_that_convolutions_like_to_have(channels, dtype):
    draw, k, shape = np.random.default_rng(0), Padding(dtype, device=Emulated), (3, 5, 7, channels)
    stored, row = draw.integers(0, 256, shape, np.uint8), np.ones(channels, np.float32)
    for values in (Bytes(stored, None, row, 0 * row, 0), stored.astype(np.float32)):
        wide, same = k.empty((*shape[:-1], 8)), k.empty(shape)
        for into in (wide, same):
            k.put(values, into)
            np.testing.assert_array_equal(k.get(into)[..., :channels], stored)
            assert not k.get(into)[..., channels:].any()
    with pytest.raises(AssertionError):
        k.put(stored.astype(np.float32), k.empty((*shape[:-1], 16)))


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_net_on_images_with_padded_channels_is_the_same_net(dtype):
    images, labels = batch((12, 12, 1), 4)
    plain, padding = (resnet("resnet8", 10, (12, 12, 1), 4, k(dtype, device=Emulated)) for k in (CuDNN, Padding))
    losses = [model.loss_and_gradient(images, labels) for model in (plain, padding)]
    assert padding.plan(4).images.shape == (4, 12, 12, 8)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    np.testing.assert_allclose(plain.flat_gradient, padding.flat_gradient, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(plain.predict(images[:3]), padding.predict(images[:3]), rtol=1e-6)


def test_images_keep_their_channels_where_not_only_convolutions_read_them():
    k, graph = Padding("float32", device=Emulated), Graph((8, 8, 3))
    graph.add("c", Convolution(4, 3, 1, 1), "images")
    assert image_shape(graph, k) == (8, 8, 8)
    graph.add("b", BatchNorm(relu=True), "images")
    assert image_shape(graph, k) == (8, 8, 3)


@needs_compiler
def test_training_on_bytes_is_training_on_floats():
    split = open_dataset("fashion-mnist-12k").train
    model, losses = emulated(image=(28, 28, 1), n=4), []
    for memory in (None, model.kernels.byte_memory):
        with closing(Batches(split, 4, augment=True, byte_memory=memory).stream(7)) as batches:
            losses.append([model.loss_and_gradient(*next(batches)) for _ in range(2)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][0] != losses[0][1]


@needs_compiler
def test_predictions_from_bytes_are_those_from_floats():
    split = open_dataset("fashion-mnist-12k").test
    model, logits = emulated(image=(28, 28, 1), n=4), []
    for memory in (None, model.kernels.byte_memory):
        images, _ = next(evaluation_batches(split, 7, byte_memory=memory))      # a batch and a part
        logits.append(model.predict(images))
    assert logits[0].shape == (7, 10)
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-4, atol=1e-5)


def test_what_is_put_is_copied_while_the_host_goes_on_and_never_overwritten_before():
    """On a device that does everything as late as it may."""
    device, pinned = NumpyDevice(), []

    def page_locked(shape):
        pinned.append(shape)
        return np.empty(shape, np.uint8).view(PageLocked)

    staging = Staging(page_locked, lambda values, into: device.copy_in(values, into).synchronise)
    values = [np.full((5, 7), number, np.float32) for number in range(6)]
    into = [device.empty((5, 7), np.float32) for _ in values]
    label = device.empty(3, np.float32)
    for value, array in zip(values[:2], into, strict=False):
        staging.put(value, array)
        value[:] = -1                       # it is the caller's again
    staging.put(np.arange(6, dtype=np.float32)[::2], label)
    assert np.isnan(raw(into[0])).all()     # nobody has waited
    for value, array in zip(values[2:], into[2:], strict=True):
        staging.put(value, array)
    device.inward.run()
    assert [np.unique(raw(array)).tolist() for array in into] == [[number] for number in range(6)]
    assert raw(label).tolist() == [0, 2, 4]
    assert pinned == [(140,), (140,), (12,)]


def test_what_is_put_from_page_locked_memory_is_copied_from_there_and_nowhere_else():
    device = NumpyDevice()
    staging = Staging(lambda shape: pytest.fail("a buffer was made"),
                      lambda values, into: device.copy_in(values, into).synchronise)
    values, into = np.zeros((3, 4), np.uint8).view(PageLocked), device.empty((3, 4), np.uint8)
    staging.put(values, into)
    values[:] = 7                           # its owner should not, and here sees when it is read
    device.inward.run()
    assert raw(into).tolist() == [[7] * 4] * 3


# memory

@needs_compiler
def test_out_of_memory_says_which_batch_would_fit_and_it_does():
    model = emulated(image=(28, 28, 1), room=100_000_000)
    with pytest.raises(UsageError, match=r"batch 999: there is not enough memory .* use --batch (\d+) or less") as told:
        model.loss_and_gradient(*batch((28, 28, 1), 999))
    fits = int(re.search(r"--batch (\d+)", told.value.message)[1])
    assert fits > 50
    model.plan(fits)
    model.plans.clear()
    with pytest.raises(UsageError):         # and it was not far off
        model.plan(2 * fits)


@needs_compiler
def test_memory_is_flat_from_the_second_step_on():
    model, (images, labels) = emulated(), batch((12, 12, 1), 4)
    sgd = Sgd(weight_decay=0).start(model.layout, model.flat, model.kernels)
    given = []
    for _ in range(4):
        model.loss_and_gradient(images, labels)
        sgd.update(model.flat, model.flat_gradient, 0.01)
        given.append(model.kernels.device.given)
    assert given[1] == given[2] == given[3]


# without a GPU, and without CuPy

TRAIN = "import sys; sys.argv[0] = 'train'; from dsgd_mpi.train import main; main()"
WITHOUT_CUPY = "import sys; sys.modules['cupy'] = None; "
CUPY = "CuPy is not installed", "there is no NVIDIA driver"


@pytest.mark.skipif(not problem(), reason="here is a GPU: how the program fails without one cannot be seen")
@pytest.mark.parametrize("without", ["CuPy", "a driver"])
def test_one_line_says_why_there_is_no_gpu_and_what_to_do(without):
    if without == "a driver":
        pytest.importorskip("cupy", reason="CuPy is not installed: how it fails without a driver cannot be seen")
    reason = "no GPU can be used: " + dict(zip(("CuPy", "a driver"), CUPY, strict=True))[without]
    start = WITHOUT_CUPY * (without == "CuPy") + TRAIN
    for arguments, status, said in (
            (["--help"], 0, "--device"),
            (["--dry-run"], 0, "configuration OK"),
            (["--dry-run", "--device", "gpu"], 2, reason),
            (["--dry-run", "--kernels", "cudnn"], 2, reason),
            (["--dry-run", "--device", "cpu", "--kernels", "cudnn"], 2, "cudnn kernels do not run with --device cpu"),
            (["--dry-run", "--device", "gpu", "--kernels", "onednn"], 2, "onednn kernels do not run with --device gpu"),
            (["--dry-run", "--dtype", "float16"], 2, "do not support float16")):
        found, output, errors = run("-c", start, *arguments)
        assert found == status, errors
        assert said in (errors if status else output)
        assert errors.count("\n") == (1 if status else 0), errors
        assert not status or "; " in errors             # and the way out
