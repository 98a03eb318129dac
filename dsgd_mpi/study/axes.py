"""The axes that `grid` and `study` share: algorithms with their options, and numbers of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from dsgd_mpi import algorithms
from dsgd_mpi.config import FIELDS, TABLES, check_type, kind_of, suggestion
from dsgd_mpi.errors import UsageError

OWN = ("name", "label", "share_lr", "set", "set_optimizer")
NOT_OF_A_CELL = ("out", "auto_resume", "resume", "resume_as", "quiet", "time_left", "seed", "algorithm")


@dataclass(frozen=True)
class Way:
    """An algorithm with its options, and the options of `train` that go with it."""

    name: str
    settings: dict[str, str] = field(default_factory=dict)  # its own options, as they are given
    label: str = ""
    share_lr: bool = False                  # a rank takes the rate divided by the number of ranks
    options: dict[str, Any] = field(default_factory=dict)   # of train

    def plain(self) -> str:
        """name KEY=VALUE ..."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.settings.items())])

    def given(self) -> dict[str, str]:
        """The settings that are not the algorithm's defaults, in its own spelling: equal for equal runs."""
        usual, chosen = algorithms.find(self.name)().options(), algorithms.build(self.name, self.settings).options()
        return {key: str(value) for key, value in chosen.items() if value != usual[key]}


def ways(values: Any, where: str) -> list[Way]:
    """A list of 'gossip mode=push', or of tables with name, set, label, share_lr and options of `train`. UsageError."""
    if not (isinstance(values, list) and values):
        raise UsageError(f"{where}: expected a list of algorithms such as 'gossip mode=push', found {values!r}")
    found = [way(value, f"{where} {number}") for number, value in enumerate(values, start=1)]
    for number, each in enumerate(found):
        if each.label in [other.label for other in found[:number]]:
            raise UsageError(f"{where}: two algorithms are called {each.label!r}; give one of them another label")
    return found


def every() -> list[dict[str, Any]]:
    """All algorithms, as tables."""
    return [{"name": name, "share_lr": algorithms.find(name)().updates_add_up} for name in algorithms.names()]


def way(value: Any, where: str) -> Way:
    if isinstance(value, str):
        first, *settings = value.split() or [""]
        wrong = [word for word in settings if "=" not in word]
        if wrong:
            raise UsageError(f"{where}: expected options as KEY=VALUE after the algorithm's name, found {wrong[0]!r}")
        made = Way(first, dict(word.partition("=")[::2] for word in settings), " ".join([first, *settings]))
    elif isinstance(value, Mapping) and isinstance(value.get("name"), str):
        settings_ = table(value.get("set", {}), f"{where}: set")
        label = value.get("label") or " ".join([value["name"], *(f"{key}={each}" for key, each in settings_.items())])
        share = value.get("share_lr", False)
        if not isinstance(label, str) or not isinstance(share, bool):
            raise UsageError(f"{where}: expected label, a string, and share_lr, true or false; found {value!r}")
        options = {key: each for key, each in value.items() if key not in OWN}
        made = Way(value["name"], settings_, label, share, {
            **{key: option(key, each, where) for key, each in options.items()},
            **({"set_optimizer": table(value["set_optimizer"], f"{where}: set_optimizer")}
               if "set_optimizer" in value else {})})
    else:
        raise UsageError(f"{where}: expected a string such as 'gossip mode=push', or a table with a name; found "
                         f"{value!r}")
    if made.name in algorithms.RENAMED:
        raise UsageError(f"{where}: {made.name} is a former name; `python -m dsgd_mpi train --algorithm list` prints "
                         "all of today's")
    try:
        algorithms.build(made.name, made.settings)
    except UsageError as error:
        raise UsageError(f"{where}: {error.format_message()}") from None
    return made


def table(values: Any, where: str) -> dict[str, str]:
    """Options of an algorithm or optimizer as strings."""
    if not isinstance(values, Mapping) or any(isinstance(each, (Mapping, list)) for each in values.values()):
        raise UsageError(f"{where}: expected a table of options, such as {{period = 4}}; found {values!r}")
    return {key: str(each) for key, each in values.items()}


def ranks(values: Any, where: str) -> list[int]:
    """Positive integers, the fewest first, each once."""
    if not (isinstance(values, list) and values and all(type(value) is int and value > 0 for value in values)):
        raise UsageError(f"{where}: expected a list of positive integers, found {values!r}")
    return sorted(set(values))


def option(key: str, value: Any, where: str) -> Any:
    """The value of an option of `train`; '' is none where an option may be left out. UsageError."""
    if key in NOT_OF_A_CELL:
        raise UsageError(f"{where}: {key} is set for each run by the study itself; leave it out"
                         + ("; see seeds in [study]" if key == "seed" else ""))
    if key in TABLES:
        return table(value, f"{where}: {key}")
    if key not in FIELDS:
        raise UsageError(f"{where}: unknown option {key!r}{suggestion(key, FIELDS)}")
    if value == "" and FIELDS[key].default is None:
        return None
    kind = kind_of(FIELDS[key])
    check_type(kind, value, f"{where}: {key}")
    return float(value) if type(value) is int and get_args(kind)[0] is float else value


def named(algorithm: str, options: dict[str, Any]) -> str:
    """An algorithm with those of its options that are not the default ones."""
    usual = algorithms.build(algorithm, {}).options()
    given = algorithms.build(algorithm, {key: str(value) for key, value in options.items()}).options()
    return " ".join([algorithm, *(f"{key}={value}" for key, value in given.items() if value != usual[key])])
