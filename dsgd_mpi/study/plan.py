"""What a study file asks for: all its runs, each a `Cell` that is named by a hash of its configuration.

    [study]
    name = "paper"                      # letters, digits, - and _
    about = "One line on what it shows."
    executor = "simulate"               # or local (mpirun), or slurm
    target = 0.8                        # accuracy whose time is compared
    seeds = [0, 1, 2]
    results = "benchmarks/results/studies/paper"    # where summaries go  [default: runs/studies/NAME]

    [base]                              # of all runs: any option of train, and cluster, as, gradients, ranks, algorithm
    epochs = 5
    as = "resnet50"

    [axes]                              # each with each: lists of what may stand in [base]
    algorithm = ["allreduce", "gossip mode=push", {name = "easgd", set = {period = 4}, label = "EASGD", momentum = 0.0}]
    ranks = [4, 8, 16]
    cluster = ["ethernet-10g", {name = "ethernet-10g", label = "one slow", slow = [{ranks = [0], factor = 3.0}]}]
    batch = [16, {total = 512}]         # images a rank, or of all ranks: total / ranks

    [tune]                              # the best rate by cell; instead of lr in [base]
    lr = [0.05, 0.1, 0.2]
    beyond = 2                          # so many more are tried where the best is the first or the last  [default: 0]

An algorithm is a string or a table: its name, its options in `set`, a label, options of `train` that go with it, and
share_lr = true if a rank takes the rate divided by the number of ranks, as where the ranks' updates add up. "all" in
[axes] is each algorithm that there is, without options, and with share_lr where its updates add up. A cluster
is a name or file, or a table with it, a label, and entries that replace those of its file. An option that is '' is left
out.

With [tune], every cell is run with the first seed at each of the rates. The best is the one with the highest accuracy
at the end of the run, the lower of two equal ones; the other seeds are run at it. A rate beyond the list is as far from
its neighbour as that is from the next.
A job file with [grid] is a study, too.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dsgd_mpi.arrays.strict import to_json
from dsgd_mpi.config import FIELDS, Config, convert, from_toml, kind_of, read_toml, suggestion
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.simulated import machine as machines
from dsgd_mpi.study import axes
from dsgd_mpi.study.axes import Way

EXECUTORS = ("simulate", "local", "slurm")
TABLES = ("study", "base", "axes", "tune")
SIMULATED = ("cluster", "as", "gradients")
ELSEWHERE = ("out", "auto_resume", "resume", "resume_as", "quiet", "time_left", "keep", "keep_best", "threads",
             "checkpoint_every", "set")     # options that do not make another run; `set` is compared by its meaning
MOST_CELLS = 100_000
Accuracy = Callable[["Cell"], "float | None"]       # at the end of the run; None: not known yet


@dataclass(frozen=True)
class Place:
    """A cluster to simulate: the file or name, and what replaces entries of it."""

    name: str
    label: str
    changes: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def entries(self) -> dict[str, Any]:
        return {**read_toml(machines.found(self.name)), **self.changes}

    @cached_property
    def machine(self) -> machines.Machine:
        return machines.described(self.entries, f"cluster {self.label}")


@dataclass(frozen=True)
class Cell:
    """One run."""

    way: Way
    ranks: int
    config: Config                          # without a run folder
    place: Place | None                     # None: no simulation
    as_model: str = ""
    gradients: str = "real"

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes it this run and no other: what differs from the defaults. An option that is new changes nothing.
        """
        own = {key: value for key, value in self.config.values().items()
               if key not in ELSEWHERE and value != FIELDS[key].default}
        simulated: dict[str, Any] = {}
        if self.place:
            about = {key: value for key, value in machines.table_of(self.place.machine).items()
                     if key not in ("name", "about")}
            simulated = {"cluster": about, "as": self.as_model, "gradients": self.gradients}
        return {**own, "algorithm": self.way.name, "options": self.way.given(), "ranks": self.ranks, **simulated}

    @cached_property
    def hash(self) -> str:
        return hashlib.sha256(to_json(self.identity, sort_keys=True).encode()).hexdigest()[:10]

    @cached_property
    def name(self) -> str:
        """Of its run folder."""
        parts = [self.way.label, f"{self.ranks}", *([self.place.label] if self.place else []),
                 f"lr{self.config.lr:.4g}", f"s{self.config.seed}"]
        return "-".join([*(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in parts), self.hash])

    def resolved(self) -> dict[str, Any]:
        """Everything, for its summary."""
        config = {key: value for key, value in self.config.values().items() if key not in ELSEWHERE}
        about = {"cluster": self.place.label, "as": self.as_model, "gradients": self.gradients} if self.place else {}
        return {**config, "options": self.way.given(), "ranks": self.ranks, **about}

    def words(self) -> list[str]:
        """The options of `train` and, but for --cluster, of `simulate`."""
        found = []
        by_steps = self.config.steps or self.config.steps_total
        for key, item in FIELDS.items():
            value, flag = getattr(self.config, key), "--" + key.replace("_", "-")
            if key == "epochs" and by_steps:
                continue                    # a length is given once
            if isinstance(value, tuple):
                found += [word for each in value for word in (flag, each)]
            elif item.metadata["flag"] and value != item.default:
                found.append(flag if value else f"--no{flag[1:]}")
            elif value is not None and (value != item.default or key == "algorithm"):
                found += [flag, str(value)]
        if self.place:
            found += ["--ranks", str(self.ranks), "--gradients", self.gradients]
            found += ["--as", self.as_model] if self.as_model else []
        return found

    def at(self, lr: float, seed: int) -> Cell:
        rate = lr / self.ranks if self.way.share_lr else lr
        return replace(self, config=replace(self.config, lr=rate, seed=seed))


@dataclass(frozen=True)
class Group:
    """Cells that differ in their seed alone and, before the best rate is known, in that."""

    cell: Cell
    facet: dict[str, str]                   # what it has of the axes besides algorithm and ranks, in words

    @property
    def label(self) -> str:
        return self.cell.way.label

    @property
    def ranks(self) -> int:
        return self.cell.ranks


@dataclass(frozen=True)
class Choice:
    """The best rate of a group."""

    lr: float                               # as in the list, before it is shared
    at_edge: bool                           # the best one may lie beyond it


@dataclass
class Study:
    """All of a file."""

    path: Path
    name: str
    about: str
    executor: str
    target: float | None
    seeds: list[int]
    results: Path
    groups: list[Group]
    rates: list[float]                      # to choose from, in ascending order; none: lr is given
    beyond: int                             # how many more may be tried

    def tried(self, group: Group, accuracy: Accuracy) -> list[float]:
        """The list, and then what was tried beyond it, in that order."""
        rates = list(self.rates)
        for _ in range(self.beyond):
            known, best = sorted(rates), self.best(group, rates, accuracy)
            if best == known[-1]:
                rates.append(float(f"{known[-1] ** 2 / known[-2]:.6g}"))
            elif best == known[0]:
                rates.append(float(f"{known[0] ** 2 / known[1]:.6g}"))
            else:
                break
        return rates

    def best(self, group: Group, rates: list[float], accuracy: Accuracy) -> float | None:
        """None: some run is not done. A run that diverged has accuracy 0."""
        reached = {lr: accuracy(group.cell.at(lr, self.seeds[0])) for lr in rates}
        if None in reached.values():
            return None
        return max(rates, key=lambda lr: (reached[lr], -lr))

    def trials(self, group: Group, accuracy: Accuracy) -> list[Cell]:
        """From which the best rate is chosen."""
        return [group.cell.at(lr, self.seeds[0]) for lr in self.tried(group, accuracy)]

    def choice(self, group: Group, accuracy: Accuracy) -> Choice | None:
        """None: some trial is not done."""
        rates = self.tried(group, accuracy)
        best = self.best(group, rates, accuracy)
        return None if best is None else Choice(best, len(rates) > 1 and best in (min(rates), max(rates)))

    def cells(self, group: Group, accuracy: Accuracy) -> list[Cell] | None:
        """The runs that count, one for each seed; None while the rate is not known."""
        if not self.rates:
            return [group.cell.at(group.cell.config.lr, seed) for seed in self.seeds]
        choice = self.choice(group, accuracy)
        return [group.cell.at(choice.lr, seed) for seed in self.seeds] if choice else None

    def known(self, accuracy: Accuracy) -> list[Cell]:
        """All runs that are known by now, each once: the trials of all groups first."""
        every = [cell for group in self.groups for cell in self.trials(group, accuracy)]
        for group in self.groups:
            every += self.cells(group, accuracy) or []
        return list({cell.hash: cell for cell in every}.values())

    def expected(self, accuracy: Accuracy) -> int:
        """How many there will be, if no more rates have to be tried."""
        open_ = {group.cell.hash for group in self.groups if self.cells(group, accuracy) is None}
        return len(self.known(accuracy)) + len(open_) * (len(self.seeds) - 1)

    def slots(self, accuracy: Accuracy) -> dict[int, Cell]:
        """The cells that are known by now, by numbers that they keep: the trials of the lists, those beyond, the seeds.
        """
        found: dict[int, Cell] = {}
        width, later = len(self.rates), self.beyond + len(self.seeds) - bool(self.rates)
        for at, group in enumerate(self.groups):
            trials, cells = self.trials(group, accuracy), self.cells(group, accuracy) or []
            own, after = at * width, len(self.groups) * width + at * later
            found.update(enumerate(trials[:width], own))
            found.update(enumerate(trials[width:], after))
            found.update(enumerate(cells[bool(self.rates):], after + self.beyond))
        return dict(sorted(found.items()))


def read(path: Path, executor: str = "") -> Study:
    """UsageError names what is wrong with the file. `executor` replaces the file's."""
    content = read_toml(path)
    if "grid" in content and "study" not in content:
        return of_grid(path, content["grid"], executor or "local")
    for key in content:
        if key not in TABLES:
            raise UsageError(f"{path}: unknown table or option {key!r}{suggestion(key, TABLES)}; options of train are "
                             "in [base]")
    study, base, along, tune = (section(content, key, path) for key in TABLES)
    for key in study:
        if key not in ("name", "about", "executor", "target", "seeds", "results"):
            raise UsageError(f"{path}: [study]: unknown entry {key!r}")
    name = study.get("name", path.stem)
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name)):
        raise UsageError(f"{path}: [study]: name: expected letters, digits, - and _; found {name!r}")
    executor = executor or study.get("executor", "simulate")
    if executor not in EXECUTORS:
        raise UsageError(f"{path}: [study]: executor: expected one of {', '.join(EXECUTORS)}; found {executor!r}")
    results = study.get("results", f"runs/studies/{name}")
    about = study.get("about", "")
    if not isinstance(results, str) or not isinstance(about, str) or not results:
        raise UsageError(f"{path}: [study]: results and about: expected strings, found {results!r} and {about!r}")
    target = study.get("target")
    if target is not None and not (type(target) in (int, float) and 0 < target < 1):
        raise UsageError(f"{path}: [study]: target: expected an accuracy between 0 and 1, found {target!r}")
    seeds = study.get("seeds", [0])
    if not (isinstance(seeds, list) and seeds and len(set(map(str, seeds))) == len(seeds)
            and all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)):
        raise UsageError(f"{path}: [study]: seeds: expected different integers, at least 0; found {seeds!r}")
    return Study(path, name, about, executor, target, seeds, Path(results),
                 groups(path, base, along, executor == "simulate", bool(tune)), *rates(path, tune))


def section(content: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    found = content.get(key, {})
    if not isinstance(found, Mapping):
        raise UsageError(f"{path}: expected a table [{key}], found {found!r}")
    return dict(found)


def rates(path: Path, tune: dict[str, Any]) -> tuple[list[float], int]:
    """In ascending order, and how many more may be tried beyond them."""
    if not tune:
        return [], 0
    values, beyond = tune.get("lr"), tune.get("beyond", 0)
    if set(tune) - {"beyond"} != {"lr"} or not isinstance(values, list) or not values:
        raise UsageError(f"{path}: [tune]: expected lr, a list of rates, and beyond alone; found {tune!r}")
    found = sorted({float(axes.option("lr", value, f"{path}: [tune]")) for value in values})
    if type(beyond) is not int or beyond < 0 or (beyond and (len(found) < 2 or not found[0])):
        raise UsageError(f"{path}: [tune]: beyond: expected a number of rates, at least 0, and 0 unless lr has two "
                         f"that are positive; found {beyond!r}")
    return found, beyond


def groups(path: Path, base: dict[str, Any], along: dict[str, Any], simulated: bool, tuned: bool) -> list[Group]:
    """Each value of each axis with each of the others."""
    for key, values in along.items():
        if key in base:
            raise UsageError(f"{path}: {key} is both in [base] and in [axes]; leave it out of one")
        if not (isinstance(values, list) and values):
            raise UsageError(f"{path}: [axes]: {key}: expected a list, found {values!r}")
    if tuned and "lr" in {**base, **along}:
        raise UsageError(f"{path}: lr is in [tune]; leave it out of [base] and [axes]")
    if not simulated and (found := [key for key in SIMULATED if key in base or key in along]):
        raise UsageError(f"{path}: {found[0]}: expected executor = \"simulate\", which alone has one; leave it out")
    if simulated and "cluster" not in {**base, **along}:
        raise UsageError(f"{path}: expected a cluster to simulate in [base] or [axes], found none; `python -m dsgd_mpi "
                         "simulate --cluster list` prints some")
    every = {key: values_of(path, key, values, "axes") for key, values in along.items()}
    fixed = {key: values_of(path, key, [value], "base")[0] for key, value in base.items()}
    for key in ("algorithm", "ranks"):
        if key not in every and key not in fixed:
            raise UsageError(f"{path}: expected {key} in [axes] or [base], found none")
    last = [key for key in ("cluster", "ranks", "algorithm") if key in every]
    order = [*(key for key in every if key not in last), *last]
    number = 1
    for values in every.values():
        number *= len(values)
    if number > MOST_CELLS:
        raise UsageError(f"{path}: [axes]: {number:,} combinations are more than {MOST_CELLS:,}; leave some values out")
    return [group_of(path, {**fixed, **dict(zip(order, values, strict=True))}, [
        key for key in order if key not in ("algorithm", "ranks") and len(every[key]) > 1])
        for values in itertools.product(*(every[key] for key in order))]


def values_of(path: Path, key: str, values: list[Any], table: str) -> list[Any]:
    """Of one axis, checked."""
    where = f"{path}: [{table}]: {key}"
    if key == "algorithm":
        every = axes.every() if table == "axes" else ["all"]
        return list(axes.ways([each for value in values for each in (every if value == "all" else [value])], where))
    if key == "ranks":
        return list(axes.ranks(values, where))
    if key == "cluster":
        return [place(value, where) for value in values]
    if key == "as":
        return [text(value, where) for value in values]
    if key == "gradients":
        for value in values:
            if value not in ("real", "none"):
                raise UsageError(f"{where}: expected real or none, found {value!r}")
        return values
    if key == "batch":
        return [total(value, where) if isinstance(value, Mapping) else axes.option(key, value, f"{path}: [{table}]")
                for value in values]
    return [axes.option(key, value, f"{path}: [{table}]") for value in values]


def text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where}: expected a string, found {value!r}")
    return value


def total(value: Mapping[str, Any], where: str) -> Mapping[str, int]:
    if set(value) != {"total"} or type(value["total"]) is not int:
        raise UsageError(f"{where}: expected images a rank, or {{total = IMAGES}}; found {value!r}")
    return {"total": convert(kind_of(FIELDS["batch"]), str(value["total"]), f"{where}: total")}


def place(value: Any, where: str) -> Place:
    if isinstance(value, str):
        return Place(value, Path(value).stem if value.endswith(".toml") else value)
    if not (isinstance(value, Mapping) and isinstance(value.get("name"), str)):
        raise UsageError(f"{where}: expected a cluster's name or file, or a table with its name; found {value!r}")
    changes = {key: each for key, each in value.items() if key not in ("name", "label")}
    label = value.get("label", value["name"])
    if not isinstance(label, str):
        raise UsageError(f"{where}: label: expected a string, found {label!r}")
    return Place(value["name"], label, changes)


def group_of(path: Path, values: dict[str, Any], facets: list[str]) -> Group:
    """From one value of each axis."""
    way, ranks = values["algorithm"], values["ranks"]
    batch = values.get("batch", FIELDS["batch"].default)
    if isinstance(batch, Mapping):
        if batch["total"] % ranks:
            raise UsageError(f"{path}: batch: a total of {batch['total']} images cannot be divided by {ranks} ranks; "
                             "choose a multiple of each number of ranks")
        batch = batch["total"] // ranks
    options = {key: value for key, value in values.items() if key not in ("algorithm", "ranks", *SIMULATED)}
    options = {**options, "batch": batch, **way.options, "set": way.settings}
    for key in ("set", "set_optimizer"):
        options[key] = tuple(f"{name}={value}" for name, value in options.get(key, {}).items())
    cell = Cell(way, ranks, Config(algorithm=way.name, **options), values.get("cluster"), values.get("as", ""),
                values.get("gradients", "real"))
    return Group(cell, {key: told(key, values[key]) for key in facets})


def told(key: str, value: Any) -> str:
    """A value of an axis in words."""
    if isinstance(value, Place):
        return value.label
    if key == "batch":
        return f"batch {value['total']} in total" if isinstance(value, Mapping) else f"batch {value} a rank"
    if isinstance(value, Mapping):
        return " ".join(f"{name}={each}" for name, each in value.items()) or f"no {key}"
    if value in (None, ""):
        return f"no {key.replace('_', ' ')}"
    return f"{key.replace('_', ' ')} {str(value).lower() if isinstance(value, bool) else value}"


def of_grid(path: Path, table: Any, executor: str) -> Study:
    """A job file with the table [grid]: the rest of it is what its runs have in common."""
    if not isinstance(table, Mapping) or set(table) != {"ranks", "algorithms"}:
        raise UsageError(f"{path}: expected a table [grid] with ranks, positive integers, and algorithms, strings such "
                         f"as 'gossip mode=push'; found {table!r}")
    base = {key: value for key, value in from_toml(path).items() if key not in ("set", "seed") and value != ()}
    if executor == "simulate":
        raise UsageError(f"{path}: a job file with [grid] has no cluster to simulate; use --executor local or slurm")
    along = {"ranks": table["ranks"], "algorithm": table["algorithms"]}
    return Study(path, path.stem, "", executor, None, [0], Path("runs/studies") / path.stem,
                 groups(path, base, along, False, False), [], 0)
