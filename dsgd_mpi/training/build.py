"""From a configuration to the parts of a run: the only place where implementations are chosen."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dsgd_mpi import algorithms, config, optim
from dsgd_mpi.arrays.flat import Array
from dsgd_mpi.arrays.strict import to_json
from dsgd_mpi.config import Config
from dsgd_mpi.data import Batches, Course, Dataset, Recipe, open_dataset, partition
from dsgd_mpi.data.shuffle import sorted_by_class
from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.api import Kernels
from dsgd_mpi.kernels.load import load
from dsgd_mpi.net.api import Host, Net
from dsgd_mpi.net.compression.half import Compressed
from dsgd_mpi.net.launch import launched
from dsgd_mpi.nn import Model, models
from dsgd_mpi.nn.layers import Graph
from dsgd_mpi.nn.turns import Turns
from dsgd_mpi.optim.api import Optimizer
from dsgd_mpi.optim.schedule import Schedule
from dsgd_mpi.training import inject, staging
from dsgd_mpi.training.agreement import about_data
from dsgd_mpi.training.checkpoint import Checkpoints
from dsgd_mpi.training.parts import Training

MOST_DATA_THREADS = 8                       # by default: a batch is in the memory of each
FAR = 50                                    # times the rate that suits an optimizer: not what was meant
log = logging.getLogger("dsgd_mpi")


@dataclass
class Prepared:
    """All that can be built without the other ranks."""

    config: Config
    algorithm: algorithms.Algorithm
    optimizer: Optimizer
    kernels: Kernels
    dataset: Dataset
    graph: Graph
    network: Model | None = None            # that the ranks of a simulated cluster take turns in
    notes: dict[str, str] = field(default_factory=dict)     # of a simulated cluster, for banner and summary
    cores: int = 1                          # of this rank, once they are known
    staged: str = ""                        # where the data set was copied to, if it was
    owned: dict[Any, Array] = field(default_factory=dict)   # what `owners` has found, which all simulated ranks share

    def model(self) -> Model:
        """This rank's."""
        chosen = self.config
        if self.network:
            return Turns(self.network)
        return Model(self.graph, chosen.batch, self.kernels, chosen.seed, chosen.smoothing)

    def owners(self, workers: int) -> Array | None:
        """Of each training image, among so many ranks that train; None if all are all ranks'."""
        rule, seed = partition.parse(self.config.partition), self.config.seed
        if not rule:
            return None
        if (rule, workers, seed) not in self.owned:
            self.owned[rule, workers, seed] = partition.owners(self.dataset.train.labels, workers, rule, seed)
        return self.owned[rule, workers, seed]

    @property
    def data_threads(self) -> int:
        """That make batches: where a GPU computes, the cores have nothing else to do."""
        own = min(MOST_DATA_THREADS, self.cores - 1) if self.kernels.byte_memory else 1
        return self.config.data_threads or max(1, own)

    def options(self) -> dict[str, Any]:
        """The algorithm's."""
        return self.algorithm.options()

    def about(self, ranks: int) -> dict[str, Any]:
        """What was run, for a summary."""
        return {"algorithm": self.config.algorithm, "options": self.options(),
                "optimizer": self.optimizer.name, "optimizer_options": self.optimizer.options(),
                "model": self.config.model, "data": self.config.data, "ranks": ranks, "seed": self.config.seed,
                "inject": self.config.inject, "bn": self.config.statistics(self.algorithm.one_model),
                **({"partition": self.config.partition} if self.config.partition != partition.IID else {}),
                **self.notes}


def prepare(config_: Config, ranks: int | None, dataset: Dataset | None = None) -> Prepared:
    """Checks all that a configuration names, for a run on `ranks` ranks if known. UsageError says what is wrong.

    `dataset`: that of its name, if it has been checked already.
    """
    config_.slowed()
    inject.parse(config_.inject)
    staging.check(config_)
    rule = partition.parse(config_.partition)
    algorithm = algorithms.build(config_.algorithm, config_.algorithm_options())
    optimizer = optimizer_of(config_, algorithm)
    config_.milestone_epochs()
    if config_.steps_total and config_.steps:
        raise UsageError("--steps and --steps-total: expected one of them, found both")
    what = " ".join((config_.algorithm, *config_.set))
    if config_.steps_total and not algorithm.independent:
        raise UsageError(f"--steps-total: a step of {what} depends on other ranks; "
                         f"use --steps, or one of {', '.join(algorithms.independent())}")
    if config_.compress != "none" and algorithm.one_sided:
        raise UsageError(f"--compress: {what} uses shared memory, which is not compressed; use none")
    if config_.compress != "none" and not algorithm.may_round:
        raise UsageError(f"--compress: {config_.algorithm} adds up what rounding loses, step after step; use none")
    if config_.dtype == "float16" and not algorithm.may_skip_step:
        raise UsageError(f"--dtype float16: {config_.algorithm} cannot skip a step whose gradient overflows, as "
                         "float16 requires; use --dtype bfloat16")
    if config_.on_nonfinite == "skip" and not algorithm.may_skip_step:
        raise UsageError(f"--on-nonfinite skip: {config_.algorithm} cannot skip a step; use stop or restore")
    if config_.survive and not algorithm.survives:
        raise UsageError(f"--survive: {what} cannot go on without a rank, which may hold shared memory or serve; "
                         f"use one of {', '.join(algorithms.surviving())}, or save with --checkpoint-every, and "
                         "go on from there after a loss with --resume and --no-survive")
    if config_.survive and rule:
        raise UsageError(f"--survive: expected --partition iid, found {rule}, by which the images of a rank that dies "
                         "are lost; use --no-survive, or --partition iid")
    if config_.shuffle == "blocks" and rule:
        raise UsageError(f"--shuffle blocks: expected --partition iid, found {rule}, by which the images of a rank are "
                         "scattered; use --shuffle full")
    if config_.survive and algorithm.graphs():
        raise UsageError(f"--survive: graph {algorithm.graphs()[0]}: expected one for any number of ranks, found a "
                         "node for each; use a graph that has a name, or --no-survive")
    if config_.survive and config_.steps_total:
        raise UsageError("--survive: --steps-total counts in the memory of a rank, which is lost with it; use --steps")
    kernels = load(config_.kernels, config_.dtype, config_.device)
    if config_.survive and kernels.name == "cudnn":
        raise UsageError("--survive: expected ranks that compute on CPUs, found a GPU, whose copies cannot be broken "
                         "off; use --device cpu or --no-survive")
    if config_.dtype == "float16" and optimizer.name not in kernels.fused:
        raise UsageError(f"--dtype float16: expected an optimizer whose kernel skips a step that overflows ("
                         f"{', '.join(sorted(kernels.fused))}), found {optimizer.name}; use one of them, or --dtype "
                         "bfloat16")
    dataset = (dataset or checked(config_.data)).sized(config_.image_size)
    recipe_of(config_, dataset)
    if (config_.shuffle == "blocks" and launched().rank == 0 and not dataset.train.in_memory
            and sorted_by_class(dataset.train.labels)):
        log.warning("%s: images of one class are stored side by side, and so a step with --shuffle blocks has few "
                    "classes; use --shuffle full, or store them shuffled", dataset.path)
    graph = models.graph(config_.model, len(dataset.classes), dataset.image)
    if lone := graph.lone(config_.batch):
        raise UsageError(f"--batch {config_.batch}: {config_.model} could not learn, since in {len(lone)} layers, such "
                         f"as {lone[-1]}, batch norm would see one value a channel, an image of 1x1; use --batch 2 or "
                         "more, or larger images")
    parts = Prepared(config_, algorithm, optimizer, kernels, dataset, graph)
    if ranks:
        fit(parts, ranks)
    return parts


def checked(data: str) -> Dataset:
    """A data set whose images were looked at. UsageError if there is none, or if they are not what it says."""
    dataset = open_dataset(data)
    if launched().rank == 0:                # one rank is enough to read some of the images before the first step
        for remark in dataset.verify(thorough=False):
            log.warning(remark)
    return dataset


def recipe_of(config_: Config, dataset: Dataset) -> Recipe:
    """How training images are augmented if they are. UsageError if it is said how, but not that, or if they cannot be.
    """
    asked = {key: getattr(config_, key) for key in ("crop", "jitter", "pca_noise", "mixup")}
    for key, value in asked.items():
        if value != config.FIELDS[key].default and not config_.augment:
            raise UsageError(f"--{key.replace('_', '-')} {value}: expected --augment, without which training images "
                             "stay as they are; give it too")
    if config_.mixup and config_.batch % 2:
        raise UsageError(f"--mixup {config_.mixup}: expected an even --batch, since images are mixed in pairs, found "
                         f"{config_.batch}; use --batch {config_.batch + 1}")
    return dataset.recipe(**asked)


def fit(parts: Prepared, ranks: int) -> None:
    """UsageError if these parts do not suit this number of ranks."""
    check_ranks(parts, ranks)
    chosen, images = parts.config, parts.dataset.train
    workers = ranks - algorithms.serving(parts.algorithm, ranks)
    Batches(images, chosen.batch, 0, workers)
    owner, rule = parts.owners(workers), partition.parse(chosen.partition)
    if rule and owner is not None:
        partition.check(images.labels, workers, rule, chosen.seed, chosen.batch, owner)


def check_ranks(parts: Prepared, ranks: int) -> None:
    """UsageError if one is named that this number of ranks does not have, or a graph for another number."""
    parts.algorithm.suits(ranks)
    config_ = parts.config
    for delay in config_.slowed():
        if delay.ranks[-1] >= ranks:
            raise UsageError(f"--slow-rank: expected a rank from 0 to {ranks - 1}, found {delay.ranks[-1]}")
    for fault in inject.parse(config_.inject):
        if fault.rank >= ranks:
            raise UsageError(f"--inject {fault.kind}: expected a rank from 0 to {ranks - 1}, found {fault.rank}")


def optimizer_of(config_: Config, algorithm: algorithms.Algorithm) -> Optimizer:
    """The optimizer that a configuration names, or the algorithm's default, with its options; not started yet."""
    name, options = config_.optimizer or algorithm.default_optimizer, config_.optimizer_options()
    found = optim.find(name)
    for key, value in (("momentum", config_.momentum), ("weight_decay", config_.weight_decay)):
        flag = "--" + key.replace("_", "-")
        if value is not None and key not in {item.name for item in dataclasses.fields(found)}:
            raise UsageError(f"{flag}: expected an optimizer that has it, found {name}; leave it out")
        if value is not None and key in options:
            raise UsageError(f"{flag} and --set-optimizer {key}: expected one of them, found both")
        options |= {} if value is None else {key: repr(value)}
    optimizer: Optimizer = config.build(found, options, name)
    return optimizer


def on_gpu(parts: Prepared, host: Host) -> bool:
    """Collective: whether all ranks compute on GPUs. UsageError, the same on all, if only some of them do."""
    with_gpu = host.allgather(parts.kernels.name == "cudnn")
    without = [rank for rank, found in enumerate(with_gpu) if not found]
    if any(with_gpu) and without:
        raise UsageError(f"ranks {without} have no GPU to compute on, but the others do; use --device cpu, or start "
                         "ranks only where there are GPUs")
    return not without


def connect(parts: Prepared, host: Host) -> Host:
    """Collective: the host for the arrays of these kernels. UsageError, the same on all ranks, if there is none."""
    if not on_gpu(parts, host):
        return host
    from dsgd_mpi.net.gpu.policy import connected
    return connected(host, parts.config.gpu_comm, parts.config.share_gpu)


def assemble(parts: Prepared, host: Host, folder: Path) -> Training:
    """Collective: the whole run, its model the same on all ranks."""
    chosen = parts.config
    servers = algorithms.serving(parts.algorithm, host.size)
    workers = host.size - servers
    parts.cores = host.cores()
    threads = chosen.threads or parts.cores
    parts.kernels.set_threads(threads)
    model = parts.model()
    host.broadcast(model.flat)
    optimizer = parts.optimizer.start(model.layout, model.flat, parts.kernels)
    header = {"algorithm": chosen.algorithm, "seed": chosen.seed, "config": chosen.to_toml(),
              "shared_out": bool(chosen.steps_total) and workers > 1, "workers": workers,
              "data": to_json(about_data(parts.dataset)),
              "graph": " ".join(graph.digest for graph in parts.algorithm.graphs())}
    pace = paced(parts, host)
    faults = inject.Faults(inject.parse(chosen.inject), host.rank)
    return Training(
        **pace, host=host, net=net_of(parts, host), model=model, test=parts.dataset.test, algorithm=parts.algorithm,
        optimizer=optimizer, eval_own=chosen.eval_own,
        checkpoints=Checkpoints(host, folder, header, parts.kernels.state, pace["course"],
                                chosen.keep, chosen.keep_best),
        checkpoint_every=chosen.checkpoint_every, threads=threads, workers=workers, works=host.rank >= servers,
        on_nonfinite=chosen.on_nonfinite,
        bn=chosen.statistics(parts.algorithm.one_model), faults=faults,
        delay_s=slowness(chosen, host.rank))


def slowness(config_: Config, rank: int) -> Callable[[int], float] | None:
    """Seconds that this rank's gradient at a step takes longer."""
    delays = [delay for delay in config_.slowed() if rank in delay.ranks]
    return (lambda step: sum(delay.seconds(rank, step, config_.seed) for delay in delays)) if delays else None


def net_of(parts: Prepared, host: Host) -> Net:
    """What the algorithm sees."""
    how = parts.config.compress
    return Compressed(host, how) if how != "none" else host


def among(parts: Prepared, run: Training, step: int) -> Training:
    """The run from that step on, among the ranks that its host has now: its place, length and rate stay, in images."""
    course = dataclasses.replace(run.course, batch=parts.config.batch * run.host.size, step=step,
                                 images=run.course.drawn(step))
    pace = paced(parts, run.host, course, warn=False)
    pace["steps"] = max(step, pace["steps"])        # the last steps of more ranks may have drawn more images
    return dataclasses.replace(run, **pace, net=net_of(parts, run.host), workers=run.host.size)


def paced(parts: Prepared, host: Host, course: Course | None = None, warn: bool = True) -> dict[str, Any]:
    """The parts of a run that count steps. A run that is resumed goes on with the course that it was on.

    Its length, rate, warm-up and evaluations are counted in the batch with which it began, over all ranks. It may
    `warn` that the warm-up was shortened.
    """
    chosen = parts.config
    servers = algorithms.serving(parts.algorithm, host.size)
    workers = host.size - servers
    shared_out = bool(chosen.steps_total) and workers > 1
    rank, owner = max(0, host.rank - servers), parts.owners(workers)
    batches = Batches(parts.dataset.train, chosen.batch, rank, workers, chosen.seed, chosen.augment,
                      byte_memory=parts.kernels.byte_memory, course=None if shared_out else course,
                      prefetch=parts.network is None, own=None if owner is None else np.flatnonzero(owner == rank),
                      shuffle=chosen.shuffle, threads=parts.data_threads, recipe=recipe_of(chosen, parts.dataset))
    if not course:
        batch = chosen.batch * (1 if shared_out else workers)
        course = Course(batch, batches.course.epoch, batch, workers)
    epoch = course.epoch // course.first
    steps = chosen.steps_total or chosen.steps or chosen.epochs * epoch
    asked = round(min(chosen.warmup * epoch, steps))
    warmup = min(asked, steps // 2)
    if warmup < asked and chosen.warmup != Config.warmup and host.rank == 0 and warn:
        log.warning("--warmup %g is longer than half of the run: shortened to %d of %d steps", chosen.warmup, warmup,
                    steps)
    epochs = chosen.milestone_epochs()
    own = parts.algorithm.usual_lr
    usual, what = (own, chosen.algorithm) if own else (parts.optimizer.usual_lr, parts.optimizer.name)
    if usual and chosen.lr >= FAR * usual and host.rank == 0 and warn:
        log.warning("--lr %g is far above what suits %s, about %g; give --lr %g%s", chosen.lr, what, usual, usual,
                    "" if own else ", or --optimizer sgd")
    milestones = epochs and tuple(each * epoch for each in epochs)
    schedule = Schedule(chosen.lr, chosen.schedule, steps, warmup, milestones, chosen.lr / course.workers, course.units)
    return {"batches": batches, "course": course, "steps": course.reaches(steps), "schedule": schedule,
            "steps_per_epoch": course.epoch // course.batch, "ranks_per_step": 1 if shared_out else workers,
            "eval_every": max(1, round(min(chosen.eval_every * epoch, steps)))}
