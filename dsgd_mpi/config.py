"""What to run, in one frozen dataclass: from the command line, the environment, a TOML file, or the defaults below.

Each field is an option of that name. Earlier sources win: `--batch 64`, then DSGD_BATCH=64, then `batch = 64` in the
file, then the default. LENGTHS are three ways to say one thing: of the first source that has any, `steps_total` or
`steps`, else `epochs`. The algorithm's own options are set by `--set KEY=VALUE` or a file's table `[set]`, the
optimizer's by `--set-optimizer KEY=VALUE` or `[set_optimizer]`.
"""

from __future__ import annotations

import codecs
import dataclasses
import math
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import click
import tomli_w

from dsgd_mpi.errors import UsageError
from dsgd_mpi.files import regular
from dsgd_mpi.net.delays import DISTRIBUTIONS, Delay, Distribution

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Found = typing.TypeVar("Found")
Command = typing.TypeVar("Command", bound=Callable[..., Any])
GROUPS = ("Experiment", "Schedule", "Machine", "Output")
MOST_BYTES = 16 << 20                       # of a file of options: what is longer is something else
BYTE_ORDER_MARKS = {                        # in this order: one of the first begins like one of the second
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
OF_A_STUDY = ("grid", "study", "base", "axes", "tune")      # tables of a file that `grid` and `study` read
LENGTHS = ("epochs", "steps", "steps_total")        # fields that say how long a run is; None but for the first
# fields that concern one start of a run, on the nodes that it has then, with what is in config.toml instead
OF_A_START: dict[str, Any] = {"auto_resume": False, "inject": None, "stage": None, "keep_staged": False,
                              "cache": "none"}
TABLES = {"set": "algorithm", "set_optimizer": "optimizer"}    # fields that are tables in a file, and their owners


class Most(typing.NamedTuple):
    """An upper limit: `Annotated[number, its minimum, Most(1)]`."""

    bound: float

    def holds(self, value: float) -> bool:
        return value <= self.bound

    def __str__(self) -> str:
        return f"at most {self.bound}"


class Below(Most):
    """One that the number does not reach."""

    def holds(self, value: float) -> bool:
        return value < self.bound

    def __str__(self) -> str:
        return f"less than {self.bound}"


DELAY = typing.Annotated[float, 0, Most(86400)]     # seconds
COUNT = Most(10**15)                        # of anything: what is computed from it fits into 64 bits


def option(group: str, default: Any, text: str, *, least: float = 0, limit: Most | None = None, flag: bool = False,
           unit: str = "") -> Any:
    """A field with its help text, and a number's minimum and upper limit; its type says what else is allowed."""
    return field(default=default, metadata={"group": group, "help": text, "least": least, "limit": limit, "flag": flag,
                                            "unit": unit})


@dataclass(frozen=True)
class Config:
    """One run of training."""

    algorithm: str = option("Experiment", "allreduce", "How the ranks cooperate; 'list' prints all with their options.")
    set: tuple[str, ...] = option("Experiment", (), "An option of the algorithm, e.g. --set mode=push; repeatable.",
                                  unit="KEY=VALUE")
    optimizer: str | None = option("Experiment", None, "Update rule; 'list' prints all with their options.  "
                                   "[default: the algorithm's own, sgd]", unit="NAME")
    set_optimizer: tuple[str, ...] = option("Experiment", (), "An option of the optimizer, e.g. --set-optimizer "
                                            "nesterov=false; repeatable.", unit="KEY=VALUE")
    model: str = option("Experiment", "resnet8", "resnet8 14 20 32 44 56 110 for small images (He 2015), "
                                                 "resnet18 34 50 101 152 for large ones.")
    data: str = option("Experiment", "fashion-mnist-12k", "A built-in or converted data set, or a file PATH.h5.")
    image_size: int | None = option("Experiment", None, "Side of the images that the network sees; test images are "
                                    "scaled to 8/7 of it, and their middle is taken.  [default: 224 of 256, in "
                                    "proportion of more, else as stored]", least=1, limit=Most(4096), unit="PIXELS")
    partition: str = option(
        "Experiment", "iid", "Which rank learns from which images: iid, all from all; dirichlet:ALPHA, classes by "
        "Dirichlet shares; shards:K, K shards of images sorted by class; sizes:ALPHA, unequal amounts.",
        unit="RULE[:VALUE]")
    shuffle: Literal["full", "blocks"] = option(
        "Experiment", "full", "The order of an epoch: any image at any place; or blocks of the file in any order and "
        "images within a window of them, which a disk reads in runs.")
    compress: Literal["none", "float16", "bfloat16"] = option(
        "Experiment", "none", "Send gradients and models as 16-bit numbers.")
    bn: Literal["auto", "average", "recalibrate", "local"] = option(
        "Experiment", "auto", "Batch norm statistics of the model that is evaluated and saved: as averaged by the "
        "algorithm, recomputed on training images, or each rank's own; auto: average where all ranks have the same "
        "model and images alike, else recalibrate.")
    slow_rank: str | None = option(
        "Experiment", None, "Delay each gradient of these ranks, to simulate stragglers: by RANK:SECONDS, or drawn "
        "anew at each step by RANK:uniform:LEAST:MOST, RANK:exponential:MEAN or RANK:pareto:MEAN (exponent 2); RANK "
        "may be a range, as in 4-7.", unit="RANK:DELAY,...")
    seed: int = option("Experiment", 0, "Seed of weights, shuffling and augmentation.",
                       limit=Most(2**63 - 1))

    epochs: int = option("Schedule", 6, "Passes over the training set.", least=1, unit="EPOCHS")
    steps: int | None = option("Schedule", None, "Number of steps, instead of epochs.", least=1, unit="STEPS")
    steps_total: int | None = option("Schedule", None, "Total steps of all ranks, instead: each rank takes the next "
                                     "one when it is free; asynchronous algorithms only.", least=1, unit="STEPS")
    batch: int = option("Schedule", 16, "Images per rank and step.", least=1, unit="IMAGES")
    lr: float = option("Schedule", 0.2, "Peak learning rate.")
    schedule: Literal["constant", "step", "cosine", "linear"] = option(
        "Schedule", "cosine", "Learning rate decay: none, by a factor of 10 at each milestone, or along a cosine or a "
        "straight line to 0.")
    milestones: str | None = option("Schedule", None, "Epochs at which --schedule step drops the rate, e.g. 30,60,80.  "
                                    "[default: 1/2 and 3/4 of the run]", unit="EPOCHS,...")
    warmup: float = option("Schedule", 0.5, "Epochs over which the learning rate rises to its peak, from that peak "
                           "divided by the ranks that train; at most half of the run.",
                           unit="EPOCHS")
    momentum: float | None = option("Schedule", None, "For optimizers that have it.  [default: the optimizer's, 0.9 "
                                    "for sgd]", limit=Below(1))
    weight_decay: float | None = option("Schedule", None, "For optimizers that have it.  [default: the optimizer's, "
                                        "1e-4 for sgd]")
    on_nonfinite: Literal["stop", "skip", "restore"] = option(
        "Schedule", "stop", "Once a loss or gradient is not finite: stop, with status 3; skip updates by such a "
        "gradient; or restore the newest checkpoint and go on at half the rate, at most three times.")
    smoothing: float = option("Schedule", 0.0, "Label smoothing.", limit=Below(1))
    augment: bool = option("Schedule", False, "Random crops and flips of the training images: helps in long runs, "
                           "hurts in short ones.", flag=True)
    crop: Literal["auto", "padded", "resized"] = option(
        "Schedule", "auto", "What --augment crops: small images that are padded by an eighth of their side; or boxes "
        "of 0.08 to 1 of a picture's area, which are scaled; auto: the latter of JPEG and of squares from 128 "
        "pixels on.")
    mixup: float = option("Schedule", 0.0, "With --augment: mix images, and their labels, in pairs, by shares from "
                          "Beta(MIXUP, MIXUP); 0.2 is usual.", limit=Most(100))
    jitter: float = option("Schedule", 0.0, "With --augment: change brightness, contrast and saturation by up to this "
                           "share; 0.4 is usual.", limit=Most(1))
    pca_noise: float = option("Schedule", 0.0, "With --augment: AlexNet's noise in the colours of an image, of this "
                              "standard deviation; 0.1 is usual.", limit=Most(1))

    device: Literal["auto", "cpu", "gpu"] = option(
        "Machine", "auto", "Where a rank computes; auto: on a GPU if there is one.")
    kernels: Literal["auto", "reference", "onednn", "cudnn"] = option("Machine", "auto", "What computes the network.")
    dtype: Literal["float32", "tf32", "float64", "bfloat16", "float16"] = option(
        "Machine", "float32", "Type of activations; weights are always float32 (float64 with float64). tf32 and "
        "float16 on GPUs only, float64 on CPUs only.")
    threads: int = option("Machine", 0, "Threads per rank; 0: the cores it may use, divided among the ranks that share "
                          "them.", limit=Most(4096))
    data_threads: int = option("Machine", 0, "Threads per rank that read, decode and augment images, a batch each; 0: "
                               "one; where a GPU computes, as many as the rank has cores but one, at most 8.",
                               limit=Most(256))
    ranks_per_node: int = option("Machine", 0, "Take so many ranks in a row for a node, to try methods of two levels "
                                 "on one machine; of a simulated cluster, give its nodes so many; 0: as they are.")

    stage: str | None = option(
        "Machine", None, "Folder on a disk of each node to which the data set is copied before the first step, once a "
        "node, and read from; removed after the run. It may hold variables of the nodes: '$TMPDIR'.", unit="DIR")
    keep_staged: bool = option("Machine", False, "Keep that copy, for the next run on the node.", flag=True)
    cache: Literal["none", "ram"] = option(
        "Machine", "none", "ram: copy the data set to the memory of each node, once a node, as it is stored.")

    hang_timeout: float | None = option(
        "Machine", None, "End the job when ranks have waited that long for one that does not answer; 0: only say so.  "
        "[default: say so after a minute or 10 times the longest wait so far, end after 5 times that]", least=0,
        unit="SECONDS")
    survive: bool = option("Machine", False, "Go on without ranks that die: under Open MPI's mpirun --with-ft ulfm.",
                           flag=True)
    inject: str | None = option(
        "Machine", None, "Faults for a drill, e.g. kill@1:20 for rank 1 at step 20; also stop, hang, raise, nan, "
        "diskfull, corrupt and slow@RANK:SECONDS. A run that is resumed has none.", unit="KIND@RANK:STEP,...")
    gpu_comm: Literal["auto", "staged", "direct", "nccl"] = option(
        "Machine", "auto", "How data on GPUs is sent: staged through pinned host memory, directly by a GPU-aware MPI, "
        "or averages by NCCL; auto: NCCL if all ranks have it and a GPU of their own, else direct if a trial shows "
        "that it works.")
    share_gpu: bool = option("Machine", False, "Allow several ranks per GPU.", flag=True)

    eval_every: float = option("Output", 1, "Epochs between evaluations on the test set; may be fractional.",
                               unit="EPOCHS")
    eval_own: int = option("Output", 1000, "Test images, evenly spaced, on which each rank also evaluates its own "
                           "model where the ranks' models differ; 0: none.", unit="IMAGES")
    log_every: int = option("Output", 10, "Steps between lines of metrics.jsonl.", least=1, unit="STEPS")
    checkpoint_every: int = option("Output", 0, "Steps between checkpoints; 0: only one, at the end.",
                                   unit="STEPS")
    keep: int = option("Output", 2, "Checkpoints to keep, the last ones.", least=1, unit="COUNT")
    keep_best: bool = option("Output", False, "Keep the checkpoint of the most accurate model too; one is then also "
                             "written after each evaluation.", flag=True)
    out: str | None = option("Output", None, "Run folder to create.  [default: runs/DATE-ALGORITHM-MODEL-RANKS]",
                             unit="DIR")
    auto_resume: bool = option("Output", False, "If --out already holds this very run, resume it: for jobs that a "
                               "batch system restarts.", flag=True)
    time_left: float = option("Output", 120.0, "Save and stop when the batch job has this long left, or a tenth of "
                              "what it had at the start if that is less; must exceed the time of a checkpoint and an "
                              "evaluation. 0: never.", unit="SECONDS")
    resume: str | None = option("Output", None, "Run folder to resume, from its newest valid checkpoint and with its "
                                "configuration.", unit="DIR")
    resume_as: Literal["same", "mean"] = option(
        "Output", "same", "How the ranks of a resumed run begin: as they were, or all from the mean of their models, "
        "which any number of ranks can.")
    quiet: bool = option("Output", False, "Print warnings and errors only.", flag=True)

    given: frozenset[str] = field(default=frozenset(), compare=False)   # no option: those on the command line itself

    def algorithm_options(self) -> dict[str, str]:
        """The `set` entries as key -> value; the last of equal keys wins."""
        return self._table("set")

    def optimizer_options(self) -> dict[str, str]:
        """The `set_optimizer` entries likewise."""
        return self._table("set_optimizer")

    def _table(self, name: str) -> dict[str, str]:
        pairs = [entry.partition("=") for entry in getattr(self, name)]
        wrong = ["".join(pair) for pair in pairs if not pair[1]]
        if wrong:
            raise UsageError(f"--{name.replace('_', '-')} expects KEY=VALUE, found {wrong[0]!r}")
        return {key.strip(): value.strip() for key, _, value in pairs}

    def statistics(self, one_model: bool) -> Literal["average", "recalibrate", "local"]:
        """`bn`, for an algorithm that does or does not keep the same model on all ranks.

        The mean of the ranks' statistics is not what the mean of their models gives, so that is measured on images, as
        Izmailov et al. 2018 (arXiv:1803.05407) do for an average of models. Nor is the mean of the ranks' variances
        that of all images where `partition` gives the ranks different ones.
        """
        alike = one_model and self.partition == FIELDS["partition"].default
        return ("average" if alike else "recalibrate") if self.bn == "auto" else self.bn

    def milestone_epochs(self) -> tuple[float, ...] | None:
        """`milestones` as numbers, in order."""
        if self.milestones is None:
            return None
        if self.schedule != "step":
            raise UsageError(f"--milestones: expected --schedule step, found {self.schedule}, which has no milestones")
        epochs = tuple(convert(typing.Annotated[float, 0], text, "--milestones") for text in self.milestones.split(","))
        if list(epochs) != sorted(set(epochs)):
            raise UsageError(f"--milestones: expected epochs in ascending order, found {self.milestones}")
        return epochs

    def slowed(self) -> list[Delay]:
        """`slow_rank` in parts."""
        return [delay(each.strip()) for each in self.slow_rank.split(",")] if self.slow_rank is not None else []

    def values(self) -> dict[str, Any]:
        """All options."""
        return {key: getattr(self, key) for key in FIELDS}

    def to_toml(self) -> str:
        """A file that `from_toml` reads back; fields that are None are omitted."""
        values = {key: value for key, value in self.values().items() if value is not None}
        return tomli_w.dumps({**values, **{table: self._table(table) for table in TABLES}})


def from_toml(path: str | Path) -> dict[str, Any]:
    """The fields that a file sets; UsageError if it is missing, is not TOML or names an unknown field."""
    values = read_toml(path)
    for table in OF_A_STUDY:                # the points of a study do not concern a run
        values.pop(table, None)
    for key, value in values.items():
        if key not in FIELDS:
            raise UsageError(f"{path}: unknown option {key!r}{suggestion(key, FIELDS)}")
        if key not in TABLES:
            check_type(kind_of(FIELDS[key]), value, f"{path}: {key}")
    for name, owner in TABLES.items():
        table = values.get(name, {})
        if not isinstance(table, Mapping):
            raise UsageError(f"{path}: expected a table [{name}] of the {owner}'s options, found {table!r}")
        values[name] = tuple(f"{key}={value}" for key, value in table.items())
    return values


def read_toml(path: str | Path) -> dict[str, Any]:
    """The whole content of a file, in UTF-8 with or without a byte order mark; UsageError if it is missing or not TOML.
    """
    try:
        opener = None if str(path).startswith(("/dev/", "/proc/")) else regular     # <(a command) of a shell is a pipe
        with open(path, "rb", opener=opener) as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); expected a TOML file of options") from None
    if len(data) > MOST_BYTES:
        raise UsageError(f"{path}: longer than {MOST_BYTES >> 20} MiB; expected a TOML file of options")
    if other := encoding_of(data):
        raise UsageError(f"{path}: expected a text file in UTF-8, found {other}; save it again as UTF-8")
    try:
        content: dict[str, Any] = tomllib.loads(data.decode("utf-8-sig"))
        return content
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from None


def encoding_of(data: bytes) -> str:
    """What a text is written in, if that is not UTF-8."""
    for name, marks in BYTE_ORDER_MARKS.items():
        if data.startswith(marks):
            return f"{name} (by its byte order mark)"
    if 3 * data.count(0) > len(data):       # every other byte of plain text
        return "UTF-16 (every other byte is NUL)"
    if 0 in data:
        return f"a NUL byte in line {data[: data.index(0)].count(10) + 1}"
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return (f"byte {data[error.start]:#04x} in line {data[: error.start].count(10) + 1}, as in Latin-1 or another "
                "encoding")
    return ""


FIELDS = {item.name: item for item in dataclasses.fields(Config) if item.metadata}
HINTS = typing.get_type_hints(Config)
FITS = {int: (int,), float: (int, float), bool: (bool,), str: (str,)}       # types of a TOML value for a field's
WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def kind_of(item: dataclasses.Field[Any]) -> Any:
    """A field's type as `convert` takes it: without None, and a number with its limits."""
    hint = HINTS[item.name]
    if typing.get_origin(hint) is Literal:
        return hint
    kind = next(each for each in (typing.get_args(hint) or (hint,)) if each is not type(None))
    limit = item.metadata["limit"] or (COUNT if kind is int else None)
    limits = (kind, item.metadata["least"], *([limit] if limit else []))
    annotated: Any = typing.Annotated       # mypy would not have the tuple
    return annotated[limits] if kind in (int, float) else kind


def check_type(kind: Any, value: Any, what: str) -> None:
    """UsageError unless a value from a TOML file is of the type that `kind` describes, and within its limits."""
    base = str if typing.get_origin(kind) is Literal else typing.get_args(kind)[0] if typing.get_args(kind) else kind
    if type(value) not in FITS[base]:
        found = repr(value) if isinstance(value, str) else str(value)
        raise UsageError(f"{what}: expected {WORDS[base]}, found {short(found.lower() if value is True else found)}")
    if "\0" in str(value):
        raise UsageError(f"{what}: expected a string without NUL, found {value!r}")
    convert(kind, str(value), what)


def suggestion(name: str, known: Iterable[str]) -> str:
    """The closest match, or all choices: the end of an error message."""
    near = get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else f"; the choices are {', '.join(known)}"


def class_in(module: str, base: type[Found]) -> type[Found] | None:
    """The dataclass derived from `base` that a module defines, if any: an algorithm or an optimizer, by its file."""
    found: list[Any] = [                    # mypy would forget `base`
        thing for thing in vars(import_module(module)).values() if isinstance(thing, type)
        and issubclass(thing, base) and dataclasses.is_dataclass(thing) and thing.__module__ == module
        and thing is not base]
    assert len(found) <= 1, f"{module} must define one dataclass that derives from {base.__name__}"
    return found[0] if found else None


def build(cls: type, options: Mapping[str, str], what: str) -> Any:
    """An instance of a dataclass from strings, each converted to its field's type. UsageError names what is invalid."""
    fields = {item.name for item in dataclasses.fields(cls)}
    hints = hints_of(cls)
    values = {}
    for key, text in options.items():
        if key not in fields:
            raise UsageError(f"{what} has no option {key!r}{suggestion(key, sorted(fields))}")
        values[key] = convert(hints[key], text, f"{what}: {key}")
    return cls(**values)


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """The types of a class's fields, with their limits: looked up once, since they are compiled from strings."""
    return typing.get_type_hints(cls, include_extras=True)


def convert(kind: Any, text: str, what: str) -> Any:
    """`text` as int, float, bool, str, one of the strings of a Literal, or Annotated[number, its limits].

    Limits are the minimum, and Most or Below if there is an upper one. No number is infinite or NaN. Of Annotated[str,
    read], where read is a function, read(text, what) is the value.
    """
    if typing.get_origin(kind) is typing.Annotated:
        number, least, *limits = typing.get_args(kind)
        if callable(least):
            return least(text, what)
        value = convert(number, text, what)
        if value < least or not all(limit.holds(value) for limit in limits):
            raise UsageError(f"{what}: expected {limits_of(kind)}, found {short(text.strip())}")
        return value
    if typing.get_origin(kind) is Literal:
        if text not in typing.get_args(kind):
            raise UsageError(f"{what}: expected one of {', '.join(typing.get_args(kind))}, found {short(repr(text))}")
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"{what}: expected true or false, found {short(repr(text))}")
        return text.lower() == "true"
    try:
        value = kind(text)
    except ValueError:
        raise UsageError(f"{what}: expected {WORDS[kind]}, found {short(repr(text))}") from None
    if kind is float and not math.isfinite(value):
        raise UsageError(f"{what}: expected a finite number, found {short(text.strip())}")
    if kind is int and not -(2**63) <= value < 2**63:
        raise UsageError(f"{what}: expected an integer of at most 64 bits, found {short(text.strip())}")
    return value


def delay(text: str) -> Delay:
    """One part of `--slow-rank`; UsageError if it is none."""
    what = f"--slow-rank {text}"
    ranks, *words = text.split(":")
    name, *numbers = words if words and words[0] in DISTRIBUTIONS else ("constant", *words)
    if len(numbers) != (2 if name == "uniform" else 1):
        raise UsageError(f"--slow-rank: expected RANK:SECONDS, RANK:uniform:LEAST:MOST, RANK:exponential:MEAN or "
                         f"RANK:pareto:MEAN, found {short(repr(text))}")
    first, dash, last = ranks.partition("-")
    begin = convert(typing.Annotated[int, 0, COUNT], first, what)
    end = convert(typing.Annotated[int, begin, COUNT], last, what) if dash else begin
    least, seconds = 0.0, convert(DELAY, numbers[0], what)
    if name == "uniform":
        least, most = seconds, convert(typing.Annotated[float, seconds, Most(86400)], numbers[1], what)
        seconds = (most - least) / 2
    return Delay(range(begin, end + 1), typing.cast(Distribution, name), seconds, least)


def limits_of(kind: Any) -> str:
    """Of Annotated[number, its limits], or [str, how it is read], in words."""
    _, least, *limits = typing.get_args(kind)
    if callable(least):
        return str(least)
    return " and ".join([f"at least {least}", *map(str, limits)])


def short(text: str) -> str:
    """What was found, in a message."""
    return text if len(text) <= 60 else f"{text[:57]}..."


class GroupedCommand(click.Command):
    """Lists the options of `Config` under the headings of their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group in (*GROUPS, "Other"):
            options = [parameter for parameter in self.get_params(ctx) if group_of(parameter) == group]
            records = [record for option in options if (record := option.get_help_record(ctx))]
            with formatter.section(group):
                formatter.write_dl(records)


def group_of(parameter: click.Parameter) -> str:
    item = FIELDS.get(parameter.name or "")
    return item.metadata["group"] if item else "Other"


def command_line_options(callbacks: Mapping[str, Any]) -> Callable[[Command], Command]:
    """Decorates a function of `Config`'s fields with an option for each; those with a callback are processed first."""
    def decorate(command: Command) -> Command:
        for item in reversed(FIELDS.values()):
            early = {"callback": callbacks[item.name], "is_eager": True} if item.name in callbacks else {}
            command = click_option(item, early)(command)
        return command
    return decorate


class Number(click.ParamType):              # type: ignore[type-arg]  # it has none before click 8.2
    """An integer or number, within the limits of its option."""

    def __init__(self, kind: Any, what: str) -> None:
        self.kind, self.what = kind, what
        self.name = "integer" if typing.get_args(kind)[0] is int else "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return convert(self.kind, str(value), self.what)


def click_option(item: dataclasses.Field[Any], early: dict[str, Any]) -> Any:
    about = item.metadata
    name = "--" + item.name.replace("_", "-")
    shared: dict[str, Any] = dict(help=about["help"], default=item.default, show_default=item.default not in (None, ()),
                                  **early)
    if about["flag"]:
        return click.option(f"{name}/--no{name[1:]}", **shared)
    if item.name in TABLES:
        return click.option(name, multiple=True, metavar=about["unit"], **shared)
    kind = kind_of(item)
    if typing.get_origin(kind) is Literal:
        kind = click.Choice(typing.get_args(kind))
    elif typing.get_args(kind):
        shared["help"] += f"  [{limits_of(kind)}]" if isinstance(about["limit"], Below) else ""
        kind = Number(kind, name)
    return click.option(name, type=kind, metavar=about["unit"] or None, **shared)
