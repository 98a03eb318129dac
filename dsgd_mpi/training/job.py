"""One run on this rank, from the start of MPI to the end: set up, train, write the results.

An error on any rank ends the whole job at once, with that rank's message; the others would wait for it forever.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np

from dsgd_mpi import __version__
from dsgd_mpi.arrays.flat import to_numpy
from dsgd_mpi.arrays.hdf5 import atomic, read_finite
from dsgd_mpi.arrays.strict import to_json
from dsgd_mpi.config import Config
from dsgd_mpi.data import Dataset, partition
from dsgd_mpi.errors import RunError, UsageError
from dsgd_mpi.net.api import Host
from dsgd_mpi.net.launch import launched
from dsgd_mpi.net.start import started_mpi
from dsgd_mpi.training import agreement
from dsgd_mpi.training.build import Prepared, among, assemble, connect, fit, on_gpu, paced, prepare
from dsgd_mpi.training.checkpoint import steps_in
from dsgd_mpi.training.deadline import BatchJob, batch_job
from dsgd_mpi.training.display import Display, shown
from dsgd_mpi.training.folder import claimed, inherited
from dsgd_mpi.training.loop import train
from dsgd_mpi.training.nonfinite import Diverged
from dsgd_mpi.training.parts import Training
from dsgd_mpi.training.record import Record
from dsgd_mpi.training.results import keep_config, lacking
from dsgd_mpi.training.resume import Consent, changes, course_of, gone_on
from dsgd_mpi.training.signals import STATUS, StopRequest
from dsgd_mpi.training.staging import staged
from dsgd_mpi.training.survive import Survivor
from dsgd_mpi.training.watch import Watch

PATIENCE_S = 1.0                            # in which rank 0 ends the job
PRINTED = ("the command line asks for output alone, as --help does, but that of other ranks does not; start all ranks "
           "with the same command")
SHOWN = 16                                  # ranks that the banner lists with their GPUs
Result = TypeVar("Result")
log = logging.getLogger("dsgd_mpi")


def run(config: Config | None, problem: UsageError | None = None) -> int:
    """Trains as configured, on all ranks of the job, unless this rank has a problem already; the exit status.

    `config`: None if this rank has only printed, which is all there is to do if all have.
    0, 2 for a usage error, 3 if the run diverged, 4 if ranks hung, 75 if it was asked to stop.
    """
    stop, printed = StopRequest(), config is None and not problem
    rank, size, _ = launched()
    config, problem = config or Config(), UsageError(PRINTED) if printed else problem
    logging.basicConfig(format=f"rank {rank}: %(message)s", level=logging.WARNING if rank == 0 else logging.CRITICAL)
    job = batch_job() if rank == 0 else None
    if job:
        stop.deadline = job.deadline(config.time_left)
    parts, problem = (None, problem) if problem else attempted(prepare, config, size)
    if problem and size == 1:
        problem.show()
        return problem.exit_code
    host, unusable = attempted(started_mpi, max(size or 0, rank + 1))
    if unusable:
        if printed:
            return 0
        if rank == (0 if size else 1):      # if the number is not known, rank 0 may take itself for the only one
            (problem or unusable).show()
        else:
            time.sleep(PATIENCE_S)          # a launcher ends all once the first has ended
        return unusable.exit_code
    assert host
    stop.listen()
    try:
        threading.excepthook = lambda failure: fail(host, failure.exc_value)
        logging.getLogger().setLevel(logging.WARNING)
        watch = Watch(host, config.hang_timeout, stop)
        if all(host.allgather(printed)):
            watch.close()
            host.close()
            return 0
        if not problem and config.survive:
            _, problem = attempted(host.prepare_to_survive)
        if told(host, problem):
            return UsageError.exit_code
        assert parts
        _, problem = attempted(fit, parts, host.size)       # MPI's count decides
        if told(host, problem):
            return UsageError.exit_code
        _, problem = attempted(on_gpu, parts, host)         # has a better word for kernels that differ
        if not problem:
            own = agreement.about(config, parts.dataset, parts.kernels.name, parts.algorithm.graphs())
            _, problem = attempted(agreement.check, host, own)
        if told(host, problem):
            return UsageError.exit_code
        host.ranks_per_node = config.ranks_per_node
        net, problem = attempted(connect, parts, host)
        claim, problem = (None, problem) if problem else attempted(claimed, config, host.rank, host.size)
        if told(host, problem):
            return UsageError.exit_code
        assert net
        with ExitStack() as claims:
            if claim:
                claims.enter_context(claim)
            where = watch.folder = Path(host.allgather(claim and str(claim.folder))[0])
            copying = staged(config, parts.dataset, host, stop)
            status = work(parts, net, where, stop, job, claims, copying)
            if status == UsageError.exit_code and claim and claim.made:
                claim.unmake()
        watch.close()
        host.close(status)
        return status
    except BaseException as failure:
        fail(host, host.failed("the run", failure) if host.lost(failure) else failure)
        raise                               # never reached: the job is gone


def attempted(act: Callable[..., Result], *args: Any) -> tuple[Result | None, UsageError | None]:
    """Its result, or the usage error that it raises, which is not to be reported before all ranks know of it."""
    try:
        return act(*args), None
    except UsageError as problem:
        return None, problem


def told(host: Host, problem: UsageError | None) -> bool:
    """Collective: whether any rank has a problem; rank 0 prints each once."""
    problems = host.allgather(problem and problem.message)
    if host.rank == 0:
        for message in sorted({message for message in problems if message}):
            ranks = [rank for rank, each in enumerate(problems) if each == message]
            UsageError(message if 0 in ranks else f"ranks {ranks}: {message}").show()
    return any(problems)


def fail(host: Any, failure: BaseException | None) -> None:
    """Reports what happened on this rank and ends the job."""
    sys.stdout.flush()
    if isinstance(failure, OSError) and no_room(failure):
        where = f"rank {host.rank} on {platform.node()}"
        failure = RunError(f"{failure} ({where}); make room there, and continue with --resume", 1)
    if isinstance(failure, click.ClickException):
        time.sleep(PATIENCE_S if host.rank else 0)      # others may have found the same: rank 0 says it for all
        print(f"Error: {failure.message}", file=sys.stderr, flush=True)
        host.abort(failure.exit_code)
    trace = "".join(traceback.format_exception(failure))
    print(f"{trace}rank {host.rank} on {platform.node()} failed: {failure!r}; ending the job", file=sys.stderr,
          flush=True)
    host.abort(1)


def no_room(failure: BaseException | None) -> bool:
    """Whether a full disk or a used-up quota is at the bottom of it."""
    return failure is not None and (getattr(failure, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
                                    or no_room(failure.__cause__))


def work(parts: Prepared, host: Host, folder: Path, stop: StopRequest, job: BatchJob | None, claims: ExitStack,
         copying: AbstractContextManager[tuple[Dataset, str]] | None = None) -> int:
    """Collective: one run in its folder. `claims` holds this rank's claim on it, if any.

    `copying`: gives what the data set is read from, once it is known that there is something to do.
    """
    config = parts.config
    training = assemble(parts, host, folder)
    display = Display(host.rank == 0 and not config.quiet, training.steps)
    first, totals, row, changed = 0, None, {}, ""
    if config.resume or config.auto_resume:
        found, problem = attempted(training.checkpoints.restore, training.model.flat, training.optimizer,
                                   training.algorithm, config.resume is not None,
                                   Consent("data" in config.given, config.resume_as == "mean"))
        if told(host, problem):
            return UsageError.exit_code
        assert found
        first, totals = found
        training, changed = resumed(parts, training, first)
        display.steps = training.steps
        if first > training.steps:
            display.print(f"{folder}: already at step {first}, beyond the {training.steps} asked for; nothing was done")
            return 0
        if first == training.steps:
            missing, row = host.allgather(lacking(folder, first) if host.rank == 0 else None)[0]
            display.print(f"{folder}: already finished, at step {first}"
                          + (f", but for {', '.join(missing)}" if missing else ""))
            if not missing:
                return 0
        if host.rank == 0:
            keep_config(folder, config)
    if copying:
        copied, problem = attempted(claims.enter_context, copying)
        if told(host, problem):
            return UsageError.exit_code
        assert copied
        parts.dataset, parts.staged = copied
        training.batches.split, training = parts.dataset.train, replace(training, test=parts.dataset.test)
    machine = {**environment(parts, host, training.threads), **shares(parts, training)}
    display.table("dsgd_mpi", {**banner(parts, training, machine, folder, first),
                               **({"changed": changed} if changed else {}),
                               **({"job": job.described()} if job else {})})
    if shared := machine.get("partition"):
        display.print("images by class and rank\n" + partition.table(
            np.array(shared["images"]), shared["classes"], shared["first_rank"]))
    record = Record(host, training.algorithm, folder, display, training.steps_per_epoch, config.batch,
                    training.ranks_per_step, config.log_every, first, totals, training.course,
                    training.batches.advice(parts.cores, training.threads, config.data, bool(parts.staged)))
    record.row = row
    if record.output:                       # rank 0
        record.output.put("env.json", to_json(machine, indent=2) + "\n")
    summary: dict[str, Any] = {}
    writes = host.rank == 0

    def survivors(run: Training, step: int) -> Training:
        """The run among the ranks that live; the first of them does from now on what only one does."""
        nonlocal writes
        run = among(parts, run, step)
        display.steps = run.steps
        if host.rank == 0 and not writes:
            writes = True
            if not config.quiet:
                display.talk()
            dead = [place for rank, place in enumerate(machine["ranks"]) if rank not in host.members]
            claims.enter_context(inherited(folder, [(place["host"], place["pid"]) for place in dead]))
            if found := batch_job():
                stop.deadline = found.deadline(config.time_left)
        return run

    def conclude(run: Training, last: int) -> None:
        nonlocal training, summary
        training = run
        summary = record.finish("finished" if last == run.steps else "stopped", last, parts.about(host.size))
        if host.rank == 0 and last == run.steps:
            keep_model(folder, run, parts, last)

    if config.survive:
        training = replace(training, survival=Survivor(survivors, machine["ranks"]))
    display.begin(first)
    try:
        last = train(training, record, first, stop, conclude)
    except Diverged as problem:             # on all ranks
        record.finish("diverged", problem.step, parts.about(host.size))
        if host.rank == 0:
            problem.show()
        return problem.exit_code
    finally:
        display.end()
    if host.rank == 0:
        display.table("result", {key: value for key, value in summary.items() if value not in (None, {})
                                 and key not in ("staleness_counts", "rank_consensus_distance")})
        display.print(f"run folder: {folder}")
        display.print(f"to plot it: {python()} -m dsgd_mpi plot {folder}" if last == training.steps
                      else f"stopped at step {last} {stop.reason()}; continue with --resume {folder}")
    return 0 if last == training.steps else STATUS


def resumed(parts: Prepared, training: Training, first: int) -> tuple[Training, str]:
    """The run on the course of the checkpoint that was restored, and what is not as it was."""
    checkpoints = training.checkpoints
    if not checkpoints.resumed:             # there was none
        return training, ""
    about, ranks = checkpoints.resumed
    images, host = len(parts.dataset.train), training.host
    old = course_of(about, first, ranks, host.size - training.workers, images)
    course = gone_on(old, training.course, images)
    checkpoints.course = course
    changed = changes(about, ranks, checkpoints.header, host.size, old, course)
    return replace(training, **paced(parts, host, course)), ", ".join(changed)


def python() -> str:
    """How to start this interpreter again, as short as the current folder allows."""
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


version_of = cache(metadata.version)        # it reads a file, and many simulated ranks ask


def environment(parts: Prepared, host: Host, threads: int) -> dict[str, Any]:
    """Collective: the run's software and hardware, for env.json."""
    own = {**host.place(), "pid": os.getpid(), "kernels": parts.kernels.name, "threads": threads}
    packages = ("numpy", "mpi4py", "h5py", "click", "rich")
    return {"dsgd_mpi": __version__, "python": platform.python_version(), "mpi": host.library(),
            "packages": {name: version_of(name) for name in packages}, "platform": platform.platform(),
            "command": sys.argv, "variables": {key: value for key, value in os.environ.items()
                                               if key.startswith(("DSGD_", "OMP_", "SLURM_", "MPI", "OMPI_MCA_"))},
            "ranks": host.allgather(own)}


def banner(parts: Prepared, training: Training, machine: dict[str, Any], folder: Path, first: int) -> dict[str, Any]:
    """What is printed before the first step."""
    config, ranks = parts.config, machine["ranks"]
    kinds = sorted({f"{own['device']}, {own['kernels']}, {config.dtype}, {own['threads']} threads" for own in ranks})
    hosts = len({own["host"] for own in ranks})
    count = len(ranks)
    return {
        "versions": f"dsgd_mpi {machine['dsgd_mpi']}, Python {machine['python']}, "
                    f"NumPy {machine['packages']['numpy']}, mpi4py {machine['packages']['mpi4py']}",
        "MPI": machine["mpi"],
        **parts.notes,
        "ranks": f"{count} on {hosts} node{'s' if hosts > 1 else ''}"
                 f"{f', taken for nodes of {config.ranks_per_node}' if config.ranks_per_node else ''}"
                 f"{f', {count - training.workers} of them only serving' if count > training.workers else ''}",
        "each rank": "; ".join(kinds),
        **gpus(ranks),
        "algorithm": f"{config.algorithm} ({shown('options', parts.options())})",
        "model": f"{config.model}, {training.model.parameters:,} parameters, "
                 f"{parts.graph.macs / 1e6:,.1f} million multiply-adds per image",
        "data": f"{config.data}: {len(parts.dataset.train):,} + {len(parts.dataset.test):,} images of "
                f"{'x'.join(map(str, parts.dataset.image))}, {len(parts.dataset.classes)} classes",
        **({"read from": parts.staged} if parts.staged else {}),
        **({"partition": f"{config.partition}: {partition.summary(np.array(machine['partition']['images']))}"}
           if "partition" in machine else {}),
        "batch": f"{config.batch} per rank, {config.batch * training.workers} in total",
        "steps": f"{first} to {training.steps}, {training.steps_per_epoch} per epoch"
                 f"{', distributed among the ranks' if training.shared_out else ''}",
        "rate": f"{config.lr:g}, {config.schedule}{(config.milestones and f' at epochs {config.milestones}') or ''}, "
                f"warm-up of {ramp(config.warmup, training)}, "
                f"{parts.optimizer.name} ({shown('options', parts.optimizer.options())})",
        "evaluation": f"batch norm statistics: {training.bn}",
        "seed": config.seed,
        **({"injected faults": config.inject} if config.inject else {}),
        "run folder": folder,
    }


def shares(parts: Prepared, training: Training) -> dict[str, Any]:
    """For env.json, on rank 0: images of each class on each rank that trains, where these have images of their own."""
    workers, classes = training.workers, parts.dataset.classes
    owner = parts.owners(workers)
    if owner is None or training.host.rank:
        return {}
    images = partition.counts(parts.dataset.train.labels, owner, len(classes), workers)
    return {"partition": {"rule": parts.config.partition, "classes": classes,
                          "first_rank": training.host.size - workers, "images": images.tolist()}}


def ramp(epochs: float, training: Training) -> str:
    """The warm-up that is done where so many epochs of it were asked for."""
    steps = training.schedule.warmup
    cut = steps + 1 <= epochs * training.course.epoch / training.course.first
    return f"{steps} steps{', half of the run' * cut}"


def gpus(ranks: list[dict[str, Any]]) -> dict[str, str]:
    """A line of the banner for each rank that has a GPU."""
    lines = [f"rank {rank} on {own['host']}: {own['uuid']}, cores {own['cores']}" for rank, own in enumerate(ranks)
             if "uuid" in own]
    more = [f"and {len(lines) - SHOWN} more in env.json"] if len(lines) > SHOWN else []
    return {"GPUs": "\n".join(lines[:SHOWN] + more)} if lines else {}


def keep_model(folder: Path, training: Training, parts: Prepared, step: int) -> None:
    """Writes model.h5; RunError if the file system refuses. It is then written elsewhere, unless a checkpoint has it.
    """
    try:
        write_model(folder / "model.h5", training, parts, step)
    except OSError as error:
        mend = "make room there and" if no_room(error) else "once that is mended,"
        if step in steps_in(folder):
            raise RunError(f"{error}; {mend} continue with --resume {folder}, which writes it", 1) from None
        try:
            where = Path(tempfile.mkdtemp(prefix="dsgd-"), "model.h5")
            write_model(where, training, parts, step)
        except OSError as another:
            raise RunError(f"{error}; nor was the last checkpoint, nor the model elsewhere: {another}", 1) from None
        raise RunError(f"{error}; nor was the last checkpoint, and so the model is now {where}; {mend} move it there", 1
                       ) from None


def write_model(path: Path, training: Training, parts: Prepared, step: int) -> None:
    """The trained model by torchvision's names, with what inference needs, and its step."""
    with atomic(path, read_finite) as file:
        for name, view in training.model.state.items():
            file.create_dataset(name, data=to_numpy(view))
        dataset = parts.dataset
        file.attrs.update(step=step, model=parts.config.model, classes=list(dataset.classes),
                          image=np.array(dataset.image), mean=dataset.mean, std=dataset.std)
