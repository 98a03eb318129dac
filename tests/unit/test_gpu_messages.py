"""The host side of messages from GPUs, without one: who gets which, what is trusted, what waits for what."""

import ctypes
import os
import signal
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.gpu.device import passed
from dsgd_mpi.net.gpu import aware
from dsgd_mpi.net.gpu.aware import alone, command, refusal
from dsgd_mpi.net.gpu.cuda import identity
from dsgd_mpi.net.gpu.nccl import NcclHost
from dsgd_mpi.net.gpu.staged import StagedHost
from dsgd_mpi.net.places import gpu_of, ranges, refuse
from dsgd_mpi.net.simulated.cluster import Cluster
from tests.support.numpy_device import Array, Event, NumpyDevice, on_host

# which GPU

def place(host, gpu):
    return {"host": host, "cores": "0", "device": "NumPy", "uuid": f"GPU-{host}-{gpu}", "index": gpu}


@pytest.mark.parametrize(("ranks", "visible", "expected"), [
    (1, 1, [0]), (4, 4, [0, 1, 2, 3]), (2, 4, [0, 1]), (4, 2, [0, 1, 0, 1]), (3, 2, [0, 1, 0]), (4, 1, [0] * 4)])
def test_the_ranks_of_a_node_take_its_gpus_in_turn(ranks, visible, expected):
    assert [gpu_of(rank, visible) for rank in range(ranks)] == expected


@pytest.mark.parametrize(("places", "message"), [
    ([place("a", 0), place("a", 1)], None),
    ([place("a", 0), place("b", 0)], None),                             # one on each of two nodes
    ([{**place("a", gpu), "index": 0} for gpu in range(4)], None),      # each rank is shown one of its own
    ([place("a", 0)] * 2, "2 ranks on a, but only 1 GPU; start 1 rank per node, or .* by --share-gpu"),
    ([place("a", 0), place("b", 0), place("b", 1), place("b", 0)],
     "3 ranks on b, but only 2 GPUs; start 2 ranks per node, or .* by --share-gpu")])
def test_several_ranks_share_a_gpu_only_if_asked(places, message):
    refuse(places, share=True)
    if message:
        with pytest.raises(UsageError, match=message):
            refuse(places, share=False)
    else:
        refuse(places, share=False)


@pytest.mark.parametrize(("numbers", "text"), [
    ([0], "0"), ([0, 1, 2, 3], "0-3"), ([0, 2], "0,2"), ([0, 1, 8, 9, 10, 12], "0-1,8-10,12")])
def test_cores_are_written_as_ranges(numbers, text):
    assert ranges(numbers) == text


@pytest.mark.parametrize(("status", "expected"), [(0, True), (600, False)])
def test_an_event_has_passed_or_not(monkeypatch, status, expected):
    runtime = pytest.importorskip("cupy.cuda", reason="CuPy is not installed").runtime
    monkeypatch.setattr(runtime, "eventQuery", lambda event: status if event == 7 else None)
    assert passed(SimpleNamespace(ptr=7)) is expected


def test_who_waits_for_a_gpu_that_has_failed_hears_of_it(monkeypatch):
    runtime = pytest.importorskip("cupy.cuda", reason="CuPy is not installed").runtime
    monkeypatch.setattr(runtime, "eventQuery", lambda event: 700)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        passed(SimpleNamespace(ptr=7))


class Driver:
    """libcuda of a machine with `count` GPUs."""

    def __init__(self, count, raw):
        self.count, self.raw = count, raw

    def cuInit(self, flags):
        return 0

    def cuDeviceGet(self, device, index):
        device._obj.value = index
        return 0 if index < self.count else 101

    def cuDeviceGetUuid_v2(self, into, device):
        assert device.value == self.count - 1
        into.raw = self.raw
        return 0


@pytest.mark.parametrize("raw", [bytes(range(16)), bytes(range(1, 17)), bytes(16)])    # zeros end no UUID
def test_a_uuid_reads_as_nvidia_smi_writes_it(monkeypatch, raw):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(4, raw))
    digits = raw.hex()
    assert f"GPU-{identity(3)}" == "GPU-" + "-".join(
        [digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]])


def test_a_driver_that_does_not_tell_the_uuid_is_reported_with_its_error(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(4, bytes(16)))
    with pytest.raises(RuntimeError, match=r"GPU 4's UUID \(CUDA error 101\)"):
        identity(4)


# what is trusted

def says(program, *text):
    return [sys.executable, "-c", program, *text]


def test_mpi_passes_the_trial_with_arrays_that_it_knows():
    assert refusal(command("numpy")) is None


@pytest.mark.parametrize(("program", "limit_s", "reason"), [
    (f"import os; os.kill(os.getpid(), {signal.SIGSEGV:d})", 20, "died of SIGSEGV"),
    (f"print({aware.ANSWER}, flush=True); import os; os.abort()", 20, "died of SIGABRT"),
    ("print(499500)", 20, f"sum should have been {aware.ANSWER} and was 499500"),
    ("", 20, "and was nothing"),
    ("import sys; sys.exit('no CUDA here')", 20, "ended with status 1: no CUDA here"),
    ("import time; time.sleep(60)", 0.3, "was still running after 0.3 s")])
def test_mpi_is_not_trusted_if_the_trial_goes_wrong(program, limit_s, reason):
    assert reason in refusal(says(program), limit_s)


def test_the_trial_is_no_rank_of_this_job_but_keeps_the_settings():
    given = {"PMI_RANK": "3", "PMI_FD": "9", "PMIX_NAMESPACE": "a", "OMPI_COMM_WORLD_RANK": "3", "SLURM_PROCID": "3",
             "OMPI_MCA_ess_base_jobid": "1", "MPI_LOCALRANKID": "0", "HYDI_CONTROL_FD": "8", "PALS_RANKID": "0"}
    settings = {"PATH": "/bin", "OMPI_MCA_pml": "ucx", "UCX_TLS": "cuda_copy", "MPICH_GPU_SUPPORT_ENABLED": "1",
                "CUDA_VISIBLE_DEVICES": "1"}
    assert alone({**given, **settings}) == settings


# what waits for what

def buckets(inner, device, log):
    """Four buckets of a gradient, all enqueued before anything is computed, and their means; the last one first."""
    host, carried = StagedHost(inner, device), inner.mean
    g = device.empty(40, "float64")

    def kernel(bucket):
        log.append(("computed", bucket))
        np.asarray(g).view(np.ndarray)[10 * bucket : 10 * bucket + 10] = 10.0 * host.rank + bucket

    def mean(x, half):
        log.append(("travels", round(float(x[0])) % 10))
        return carried(x)
    inner.mean = mean
    under_way = []
    for bucket in (3, 2, 1, 0):
        device.launch(partial(kernel, bucket))
        under_way.append(host.mean(g[10 * bucket : 10 * bucket + 10]))
    assert not log
    return host, g, under_way


def test_a_bucket_travels_before_the_next_one_is_computed():
    def main(inner):
        log = []
        host, g, under_way = buckets(inner, NumpyDevice(), log)
        while len(log) < 8:
            host.progress()                 # nothing is waited for
        for pending in under_way:
            pending.wait()
        return log, on_host(g)
    for log, g in Cluster(2).run(main):
        assert log == [(what, bucket) for bucket in (3, 2, 1, 0) for what in ("computed", "travels")]
        assert np.array_equal(g, np.repeat([5.0, 6, 7, 8], 10))


def test_a_bucket_is_back_before_the_next_one_is_computed():
    """A device that nobody polls forward: one kernel at a time runs, and what depends on it and on no other."""
    class Patient(Event):
        def done(self):
            return self.reached

    class Slow(NumpyDevice):
        event = Patient

    def main(inner):
        log, device = [], Slow()
        host, g, under_way = buckets(inner, device, log)
        for count, (bucket, pending) in enumerate(zip((3, 2, 1, 0), under_way, strict=True), start=1):
            pending.buffer.copy.synchronise()       # as if it had just come to pass
            while not pending.test():
                host.idle()
            pending.back.synchronise()
            assert len([what for what, _ in log if what == "computed"]) == count
            assert (np.asarray(g).view(np.ndarray)[10 * bucket : 10 * bucket + 10] == 5 + bucket).all()
    Cluster(2).run(main)


@pytest.mark.parametrize(("where", "what"), [(StagedHost, "_settled"), (NumpyDevice, "hold_kernels")])
def test_without_its_waits_the_mean_would_be_wrong(where, what, monkeypatch):
    """The test of the tests: on this device no missing wait goes unnoticed."""
    def main(inner):
        host = StagedHost(inner, NumpyDevice())
        x = host.device.array(np.full(5, float(host.rank)))
        return on_host(host.mean(x).wait())
    assert all((x == 0.5).all() for x in Cluster(2).run(main))
    monkeypatch.setattr(where, what, lambda self, given: getattr(given, "array", None))
    assert not any((x == 0.5).all() for x in Cluster(2).run(main))


def test_buffers_are_pinned_once():
    def main(inner):
        device = NumpyDevice()
        pinned, made = device.pinned, []
        device.pinned = lambda size, dtype: made.append(size) or pinned(size, dtype)
        host, x = StagedHost(inner, device), device.array(np.ones(100))
        for _ in range(20):
            for pending in [host.mean(x[:60]), host.mean(x[60:]), host.exchange(x, 1 - host.rank)]:
                pending.wait()
            host.post(x, 1 - host.rank)
            for letter in host.collect(least=1):
                assert float(letter.array[0]) == 1
            on_host(x)
            device.inward.run()             # as if the time of these copies had passed
        return sorted(made)
    assert all(set(made) == {40, 60, 100} and len(made) <= 6 for made in Cluster(2).run(main))


def test_what_nccl_averages_follows_the_gradient_and_precedes_the_step():
    streams = []

    class Averager:
        def average(self, x, stream):
            streams.append(stream)
            x *= 2                          # as if the others had more

    def main(inner):
        device = NumpyDevice()
        host = NcclHost(inner, device, Averager())
        g = device.empty(6, "float64")
        device.launch(lambda: np.asarray(g).view(np.ndarray).fill(3))
        buckets = [host.mean(g[:4]), host.mean(g[4:])]
        for pending in buckets:
            mean = pending.wait()
            mean += 1
        assert streams.count(device.inward) == 2
        return isinstance(mean, Array), on_host(g), host.traffic.bytes_sent
    for on_device, mean, sent in Cluster(4).run(main):
        assert on_device
        assert (mean == 7).all()
        assert sent == 2 * 3 * 32 // 4 + 2 * 3 * 16 // 4


@pytest.mark.parametrize(("size", "half", "on_device"), [(5, "bfloat16", True), (0, None, True), (5, None, False)])
def test_what_is_empty_or_sent_in_16_bits_or_in_host_memory_is_not_for_nccl(size, half, on_device):
    def main(inner):
        host = NcclHost(inner, NumpyDevice(), averager=None)
        values = np.full(size, float(host.rank))
        return on_host(host.mean(host.device.array(values) if on_device else values, half).wait())
    for mean in Cluster(3).run(main):
        assert np.array_equal(mean, np.ones(size))


def test_arrays_of_a_device_and_of_the_host_travel_in_the_order_of_the_calls():
    """However far each rank's device has come: MPI's collectives must begin in one order on all ranks."""
    def main(inner):
        order, carried = [], inner.mean
        inner.mean = lambda x, half: order.append(x.size) or carried(x)
        host = StagedHost(inner, NumpyDevice())
        pending = [host.mean(host.device.array(np.zeros(size))) for size in (1, 2)]
        for _ in range(4 * host.rank):
            host.progress()
        pending.append(host.mean(np.zeros(3)))
        pending.append(host.mean(host.device.array(np.zeros(4))))
        for each in reversed(pending):
            each.wait()
        return order
    assert Cluster(3).run(main) == [[1, 2, 3, 4]] * 3


def test_no_mpi_variable_of_this_process_reaches_the_trial(monkeypatch):
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "2")
    program = f"import os; print({aware.ANSWER} if 'PMI_RANK' not in os.environ else 0)"
    assert refusal(says(program)) is None
    assert os.environ["PMI_RANK"] == "1"
