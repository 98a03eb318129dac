"""How arrays on GPUs are sent: which GPU a rank has, and whether its arrays are staged or passed to MPI or NCCL."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.api import Host
from dsgd_mpi.net.gpu import aware, cuda, nccl
from dsgd_mpi.net.gpu.direct import DirectHost
from dsgd_mpi.net.gpu.staged import StagedHost
from dsgd_mpi.net.places import Place, refuse, sharing

if TYPE_CHECKING:
    from dsgd_mpi.net.mpi.host import MpiHost  # which would start MPI


def connected(host: Host, policy: str, share: bool) -> StagedHost:
    """Collective: `host` for arrays on GPUs. UsageError, the same on all ranks, if that is impossible."""
    local = host.local_rank()
    places = host.allgather(cuda.find(local))
    refuse(places, share)
    reason = ""
    if policy == "nccl":
        refuse_nccl(places, host.allgather(nccl.missing()))
    if policy == "auto":
        policy, reason = trusted(host.allgather(trial(host, local, places[host.rank])))
    device = cuda.CudaStreams(places[host.rank])
    if policy == "nccl":
        return nccl.NcclHost(host, device, nccl.Nccl(host))
    if policy == "direct":
        return DirectHost(cast("MpiHost", host), device)
    return StagedHost(host, device, reason)


def trial(host: Host, local: int, place: Place) -> str | None:
    """Why device pointers must not be passed to MPI; None if they may be, or if another rank of this node tests it."""
    if host.size == 1:
        return "there is only one rank"
    return aware.refusal(aware.command("cupy", place["index"])) if local == 0 else None


def trusted(trials: list[str | None]) -> tuple[str, str]:
    """What "auto" means: "direct" if the trial succeeded on every node, else "staged"; and the reason for that."""
    reasons = [f"rank {rank}: {reason}" for rank, reason in enumerate(trials) if reason]
    return ("staged", f" (GPU-aware MPI not trusted: {reasons[0]})") if reasons else ("direct", "")


def refuse_nccl(places: list[Place], missing: list[str | None]) -> None:
    """UsageError if NCCL cannot be used."""
    way_out = "use --gpu-comm staged, or auto"
    for rank, reason in enumerate(missing):
        if reason:
            raise UsageError(f"--gpu-comm nccl: rank {rank} on {places[rank]['host']} has no NCCL: {reason}; {way_out}")
    if crowded := sharing(places):
        raise UsageError(f"--gpu-comm nccl: {len(crowded)} ranks share their GPU with another, which NCCL does "
                         f"not support (the first on {crowded[0]['host']}); {way_out}, or start one rank per GPU")
