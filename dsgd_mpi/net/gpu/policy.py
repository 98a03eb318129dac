"""How arrays on GPUs are sent: which GPU a rank has, and whether its arrays are staged or passed to MPI or NCCL."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.api import Host
from dsgd_mpi.net.gpu import aware, cuda, nccl
from dsgd_mpi.net.gpu.direct import DirectHost
from dsgd_mpi.net.gpu.staged import StagedHost
from dsgd_mpi.net.places import Place, refuse

if TYPE_CHECKING:
    from dsgd_mpi.net.mpi.host import MpiHost  # which would start MPI

Trial = str | None                          # why device pointers must not be passed to MPI; None if nothing was found


def connected(host: Host, policy: str, share: bool) -> StagedHost:
    """Collective: `host` for arrays on GPUs. UsageError, the same on all ranks, if that is impossible."""
    local = host.local_rank()
    places = host.allgather(cuda.find(local))
    refuse(places, share)
    way, reason = choice(policy, places, lambda: host.allgather(nccl.found()),
                         lambda: host.allgather(trial(local, places[host.rank])))
    device = cuda.CudaStreams(places[host.rank])
    if way == "nccl":
        return nccl.NcclHost(host, device, nccl.Nccl(host), reason)
    if way == "direct":
        return DirectHost(cast("MpiHost", host), device, reason)
    return StagedHost(host, device, reason)


def choice(policy: str, places: list[Place], libraries: Callable[[], list[nccl.Found]],
           trials: Callable[[], list[Trial]]) -> tuple[str, str]:
    """"staged", "direct" or "nccl", and what `library` adds to it. UsageError if NCCL is asked for and impossible.

    "auto" is the first that works of NCCL, GPU-aware MPI and staging. `places` of all ranks; `libraries()` and
    `trials()` find out about all ranks, take time, and are called only if the answer depends on them.
    """
    if policy in ("staged", "direct"):
        return policy, ""
    if policy == "auto" and len(places) == 1:
        return "staged", " (there is only one rank)"
    versions = libraries()
    no_nccl = nccl.refusal(places, versions)
    if no_nccl is None:
        return "nccl", f" {nccl.version(int(versions[0]))}"
    if policy == "nccl":
        raise UsageError(f"--gpu-comm nccl: {no_nccl}; use --gpu-comm staged, or auto")
    for rank, reason in enumerate(trials()):
        if reason:
            return "staged", f" ({no_nccl}; GPU-aware MPI not trusted: rank {rank}: {reason})"
    return "direct", f" ({no_nccl})"


def trial(local: int, place: Place) -> Trial:
    """Tested by the first rank of each node alone."""
    return aware.refusal(aware.command("cupy", place["index"])) if local == 0 else None
