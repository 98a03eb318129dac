"""How arrays on GPUs travel: which GPU a rank has, and whether its arrays are staged, given to MPI or to NCCL."""

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
    """Collective: `host` for arrays on GPUs. UsageError, the same on all ranks, where that cannot be."""
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
    """Why MPI is not to be given device pointers; None if it may, or another rank of this node finds out."""
    if host.size == 1:
        return "there is one rank"
    return aware.refusal(aware.command("cupy", place["index"])) if local == 0 else None


def trusted(trials: list[str | None]) -> tuple[str, str]:
    """What "auto" is: MPI gets device pointers if it has shown on every node that it takes them. And why not."""
    reasons = [f"rank {rank}: {reason}" for rank, reason in enumerate(trials) if reason]
    return ("staged", f" (GPU-aware MPI not trusted: {reasons[0]})") if reasons else ("direct", "")


def refuse_nccl(places: list[Place], missing: list[str | None]) -> None:
    """UsageError where NCCL cannot take part."""
    way_out = "use --gpu-comm staged, or auto"
    for rank, reason in enumerate(missing):
        if reason:
            raise UsageError(f"--gpu-comm nccl: rank {rank} on {places[rank]['host']} has no NCCL: {reason}; {way_out}")
    if crowded := sharing(places):
        raise UsageError(f"--gpu-comm nccl: {len(crowded)} ranks share their GPU with another, which NCCL cannot "
                         f"(the first on {crowded[0]['host']}); {way_out}, or start one rank a GPU")
