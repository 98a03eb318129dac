"""How arrays on GPUs travel: what `--gpu-comm` chooses, and what it says of its choice."""

import json
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest

from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.gpu import nccl, policy
from dsgd_mpi.net.gpu.direct import DirectHost
from dsgd_mpi.net.gpu.nccl import NcclHost
from dsgd_mpi.net.gpu.staged import StagedHost
from dsgd_mpi.net.places import gpu_of
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.net.simulated.machine import Machine
from tests.support.numpy_device import NumpyDevice

OWN = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]      # a GPU for each of four ranks on two nodes
SHARED = [("a", 0), ("a", 1), ("b", 0), ("b", 0)]
NEW, OLD, NONE = 22707, 21805, "its library is not installed"
CRASH = "the trial died of SIGSEGV"
NOT_TRUSTED = "GPU-aware MPI not trusted: rank 2: the trial died of SIGSEGV"
NO_NCCL = "rank 1 on a has no NCCL: its library is not installed"
UNEQUAL = "rank 3 on b has NCCL 2.18.5, but rank 0 on a 2.27.7"
CROWDED = "2 ranks share their GPU with another, which NCCL does not support (the first on b)"


def place(host, gpu):
    return {"host": host, "uuid": f"GPU-{host}-{gpu}", "index": gpu}


class Asked:
    """What is found out about all ranks, if it is asked for."""

    def __init__(self, answer):
        self.answer, self.times = answer, 0

    def __call__(self):
        self.times += 1
        return self.answer


@pytest.mark.parametrize(("asked", "gpus", "libraries", "trials", "way", "reason", "tried"), [
    ("auto", OWN, [NEW] * 4, [None] * 4, "nccl", " 2.27.7", False),
    ("auto", OWN, [NEW, NONE, NEW, NEW], [None] * 4, "direct", f" ({NO_NCCL})", True),
    ("auto", OWN, [NEW, NONE, NEW, NEW], [None, None, CRASH, None], "staged", f" ({NO_NCCL}; {NOT_TRUSTED})", True),
    ("auto", OWN, [NEW, NEW, NEW, OLD], [None] * 4, "direct", f" ({UNEQUAL})", True),
    ("auto", SHARED, [NEW] * 4, [None] * 4, "direct", f" ({CROWDED})", True),
    ("auto", SHARED, [NEW] * 4, [None, None, CRASH, None], "staged", f" ({CROWDED}; {NOT_TRUSTED})", True),
    ("auto", OWN[:1], [NEW], [None], "staged", " (there is only one rank)", False),
    ("nccl", OWN, [NEW] * 4, [CRASH] * 4, "nccl", " 2.27.7", False),
    ("nccl", OWN[:1], [OLD], [CRASH], "nccl", " 2.18.5", False),
    ("direct", SHARED, [NONE] * 4, [CRASH] * 4, "direct", "", False),
    ("staged", OWN, [NEW] * 4, [None] * 4, "staged", "", False)])
def test_what_is_chosen_and_what_is_said_of_it(asked, gpus, libraries, trials, way, reason, tried):
    libraries, trials = Asked(libraries), Asked(trials)
    assert policy.choice(asked, [place(*gpu) for gpu in gpus], libraries, trials) == (way, reason)
    assert trials.times == tried            # a process for each node is started for an answer that matters only
    assert libraries.times == (asked == "nccl" or (asked == "auto" and len(gpus) > 1))


@pytest.mark.parametrize(("gpus", "libraries", "reason"), [
    (OWN, [NEW, NONE, NEW, NEW], NO_NCCL), (OWN, [NEW, NEW, NEW, OLD], UNEQUAL), (SHARED, [NEW] * 4, CROWDED)])
def test_nccl_is_refused_where_it_is_asked_for_and_impossible(gpus, libraries, reason):
    trials = Asked([None] * 4)
    message = f"--gpu-comm nccl: {reason}; use --gpu-comm staged, or auto"
    with pytest.raises(UsageError, match=re.escape(message)):
        policy.choice("nccl", [place(*gpu) for gpu in gpus], lambda: libraries, trials)
    assert not trials.times


# what is found out

def library(monkeypatch, **names):
    """A stand-in for `cupy.cuda.nccl`."""
    module = ModuleType("cupy.cuda.nccl")
    vars(module).update({"available": True, "NCCL_FLOAT32": 7, "NCCL_FLOAT64": 8, "NCCL_AVG": 4, **names})
    cuda = ModuleType("cupy.cuda")
    cuda.nccl = module
    cupy = ModuleType("cupy")
    cupy.cuda = cuda
    for name, each in (("cupy", cupy), ("cupy.cuda", cuda), ("cupy.cuda.nccl", module)):
        monkeypatch.setitem(sys.modules, name, each)


NAME = bytes([0, 127, 128, 255])            # CuPy gives bytes since version 14


def as_json(item):
    """What the ranks of `allgather` send is."""
    return json.loads(json.dumps([item, None]))


def raising(error):
    def call(*arguments):
        raise error
    return call


def test_the_library_that_is_found_is_named_by_its_version(monkeypatch):
    library(monkeypatch, get_version=lambda: 22707)
    assert nccl.found() == 22707
    library(monkeypatch, available=False)
    assert "its library is not installed" in nccl.found()
    library(monkeypatch, get_version=raising(RuntimeError("it is broken\nand more")))
    assert nccl.found() == "it is broken"


@pytest.mark.parametrize(("what", "broken"), [
    ("starting", {"get_unique_id": raising(RuntimeError("NCCL_ERROR_SYSTEM_ERROR: unhandled system error"))}),
    ("connecting the GPUs", {"NcclCommunicator": raising(RuntimeError("NCCL_ERROR_SYSTEM_ERROR: unhandled"))}),
    ("connecting the GPUs", {"NcclCommunicator": raising(KeyError(7))}),    # an error newer than CuPy's names
    ("averaging", {"NcclCommunicator": lambda *_: SimpleNamespace(allReduce=raising(KeyError(7)))})])
def test_what_fails_in_nccl_is_told_in_one_line_with_a_way_out(monkeypatch, what, broken):
    library(monkeypatch, **{"get_unique_id": lambda: NAME, "NcclCommunicator": None, **broken})
    host = SimpleNamespace(rank=0, size=2, allgather=as_json)
    x = SimpleNamespace(data=SimpleNamespace(ptr=1), size=4, dtype=SimpleNamespace(name="float32"))
    with pytest.raises(RuntimeError, match=f"^NCCL failed while {what} .*; NCCL_DEBUG=INFO .*staged") as told:
        nccl.Nccl(host).average(x, SimpleNamespace(ptr=9))
    assert "\n" not in str(told.value)


def test_the_mean_is_enqueued_on_the_stream_that_is_named(monkeypatch):
    calls = []
    library(monkeypatch, get_unique_id=lambda: NAME, NcclCommunicator=lambda size, name, rank: SimpleNamespace(
        allReduce=lambda *arguments: calls.append((size, name, rank, *arguments))))
    x = SimpleNamespace(data=SimpleNamespace(ptr=1), size=4, dtype=SimpleNamespace(name="float32"))
    host = SimpleNamespace(rank=0, size=2, allgather=as_json)
    nccl.Nccl(host).average(x, SimpleNamespace(ptr=9))
    assert calls == [(2, NAME, 0, 1, 1, 4, 7, 4, 9)]


# all together

@pytest.fixture
def machine(monkeypatch):
    """Nodes of two GPUs, as NumPy devices; `trial` and `nccl` are what is found out about them."""
    class Machine:
        trial, nccl = None, NEW

    def device(place):
        made = NumpyDevice()
        made.place = place
        return made
    monkeypatch.setattr(policy.cuda, "find", lambda local: place("node", gpu_of(local, 2)))
    monkeypatch.setattr(policy.cuda, "CudaStreams", device)
    monkeypatch.setattr(policy.aware, "refusal", lambda command: Machine.trial)
    monkeypatch.setattr(policy.nccl, "found", lambda: Machine.nccl)
    monkeypatch.setattr(policy.nccl, "Nccl", lambda host: None)
    return Machine


def connected(ranks, way, share=False):
    return Cluster(ranks, Machine(ranks_per_node=ranks)).run(lambda host: policy.connected(host, way, share))


def test_each_rank_gets_what_was_chosen_and_the_banner_says_why(machine, monkeypatch):
    monkeypatch.setattr(DirectHost, "__init__", StagedHost.__init__)
    hosts = connected(2, "auto")
    assert {type(host) for host in hosts} == {NcclHost}
    assert hosts[1].library().endswith("host memory, except for averages, which use NCCL 2.27.7")
    machine.nccl = NONE
    hosts = connected(2, "auto")
    assert {type(host) for host in hosts} == {DirectHost}
    assert hosts[1].library().endswith("directly to GPU-aware MPI (rank 0 on node has no NCCL: "
                                       "its library is not installed)")
    machine.trial = CRASH
    hosts = connected(2, "auto")
    assert {type(host) for host in hosts} == {StagedHost}
    assert hosts[1].library().endswith("pinned host memory (rank 0 on node has no NCCL: its library is not installed; "
                                       "GPU-aware MPI not trusted: rank 0: the trial died of SIGSEGV)")
    assert [host.place()["uuid"] for host in hosts] == ["GPU-node-0", "GPU-node-1"]
    assert {type(host) for host in connected(2, "direct")} == {DirectHost}      # whoever asks for it gets it


def test_one_rank_alone_tries_nothing(machine):
    machine.trial = machine.nccl = "never asked"
    assert connected(1, "auto")[0].library().endswith("pinned host memory (there is only one rank)")


def test_ranks_share_a_gpu_with_nccl_in_no_case(machine):
    with pytest.raises(UsageError, match="3 ranks on node, but only 2 GPUs"):
        connected(3, "nccl")
    with pytest.raises(UsageError, match=r"--gpu-comm nccl: 2 ranks share their GPU .* on node\); use --gpu-comm"):
        connected(3, "nccl", share=True)
    machine.trial = CRASH
    assert {type(host) for host in connected(3, "auto", share=True)} == {StagedHost}
