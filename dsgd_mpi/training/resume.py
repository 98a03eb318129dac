"""What a run may change when it goes on from a checkpoint, what it may not, and what it is told of it.

    model, algorithm, optimizer     refused: the state is of another kind
    --steps-total or not            refused: other steps are counted
    ranks                           any number, if all have the same model (`Algorithm.replicated`); else refused, but
                                    for `--resume-as mean`: all start from the mean of the models that were trained,
                                    with the optimizer's and the algorithm's state as at the beginning of a run
    batch                           accepted, but with --steps-total
    partition                       accepted; among other ranks the images are shared out anew, which is told
    data                            other data than before are refused, unless --data is on the command line
    graph of a file                 another is refused, but for `--resume-as mean`; its digest tells them apart
    anything else                   accepted: the length, the rate, the seed, the machine ...

The batch per rank and the peak rate are those of the configuration, whatever the number of ranks: with twice the ranks
a step has twice the images. Position, length, warm-up, milestones and evaluations are counted in images (`Course`), so
that each image of the epoch is still drawn once and the rate does not jump. To scale the rate, give --lr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsgd_mpi import algorithms
from dsgd_mpi.config import FIELDS
from dsgd_mpi.data import Course

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# of a configuration, if they change
UNTOLD = {"out", "resume", "resume_as", "auto_resume", "quiet", "stage", "keep_staged", "cache"}
ADDED = ("images", "images_applied", "bytes_sent")          # of totals: these add up over ranks, others are alike
DIGITS = 4                                  # of a mean or std that is told


@dataclass(frozen=True)
class Consent:
    """What the user allows. `data`: that they are others; `mean`: to start from the mean of the ranks' models."""

    data: bool = False
    mean: bool = False


def options(about: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration in a checkpoint's attributes, {} if it has none; ValueError if it is damaged."""
    found: dict[str, Any] = tomllib.loads(str(about.get("config", "")))
    return found


def refusal(before: Mapping[str, Any], ranks_before: int, now: Mapping[str, Any], ranks: int, replicated: bool,
            consent: Consent) -> str | None:
    """Why a run, with `now` as the attributes of its checkpoints, must not go on from a checkpoint; None if it may."""
    then, new = options(before), options(now)
    algorithm = before.get("algorithm")
    if "algorithm" in now and algorithm not in names_of(now["algorithm"]):
        return (f"it is of a run of {algorithm}, but this run is one of {now['algorithm']}; resume with "
                f"--algorithm {algorithm}")
    if not replicated and ranks_before != ranks and not consent.mean:
        return (f"it holds {ranks_before} different models, one per rank, but this run has {ranks} ranks; resume it "
                f"with {ranks_before}, or from the mean of the models with --resume-as mean")
    if then.get("model") != new.get("model") and then and new:
        return f"it holds a {then.get('model')}, but this run's model is {new['model']}; resume with its --model"
    shared_out = bool(now.get("shared_out"))
    if bool(before.get("shared_out")) != shared_out:
        return (f"it counts the steps of {_counted(before)}, but this run those of {_counted(now)}; use --steps-total "
                "if and only if the run began with it")
    if shared_out and then.get("batch") != new.get("batch"):
        return (f"it counts steps of {then.get('batch')} images, but this run has --batch {new.get('batch')}; with "
                "--steps-total it must stay as it is")
    graph, other = (f"that of a file ({each['graph']})" if each.get("graph") else "no file's" for each in (before, now))
    if graph != other and not consent.mean:
        return (f"its graph was {graph}, but this run's is {other}; give it the same, or go on from the mean of the "
                "models with --resume-as mean")
    was, found = data_of(before), data_of(now)
    if was and found and was != found and not consent.data:
        return (f"the run was trained on other data: {', '.join(differences(was, found))}; give it those, or accept "
                "these by giving --data on the command line")
    return None


def names_of(algorithm: str) -> list[str]:
    """An algorithm's name, and those that it had before or has now."""
    return [algorithm, *(old for old, (_, new) in algorithms.RENAMED.items() if algorithm in new.values()),
            *algorithms.RENAMED.get(algorithm, ("", {}))[1].values()]


def data_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint knows of its data; {} if an older version wrote it."""
    found = json.loads(about.get("data", "{}"))
    if not isinstance(found, dict):
        raise ValueError("attribute data is damaged")
    return found


def differences(was: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What differs in the data."""
    keys = [key for key in found if was.get(key) != found[key] and key != "digest"]
    return [f"{key} {_rounded(was.get(key))}, now {_rounded(found[key])}" for key in keys] or [
        "as many, but other images or labels"]


def _rounded(value: Any) -> str:
    if isinstance(value, list):
        return "x".join(map(str, value)) if all(isinstance(each, int) for each in value) else " ".join(
            f"{each:.{DIGITS}f}" for each in value)
    return str(value)


def _counted(about: Mapping[str, Any]) -> str:
    """Whose steps a run counts, by its header."""
    return "all ranks together" if about.get("shared_out", False) else "each rank"


def changes(before: Mapping[str, Any], ranks_before: int, now: Mapping[str, Any], ranks: int, old: Course,
            new: Course) -> list[str]:
    """What is not as it was in a run that is resumed, as the user is told."""
    then, here = options(before), options(now)
    keys = [key for key in FIELDS if then and here and key not in UNTOLD and _value(then, key) != _value(here, key)]
    found = [f"ranks {ranks_before} -> {ranks}"] if ranks != ranks_before else []
    found += [f"global batch {old.batch} -> {new.batch}"] if old.batch != new.batch else []
    found += [f"--{key.replace('_', '-')} {_told(_value(then, key))} -> {_told(_value(here, key))}" for key in keys]
    rule = _value(here, "partition")
    found += [f"{rule} shared out anew"] if ranks != ranks_before and rule != FIELDS["partition"].default else []
    found += ["other data"] if data_of(before) != data_of(now) and data_of(before) else []
    if old.batch != new.batch:
        found.append(f"peak rate {'stays' if 'lr' not in keys else 'is'} {here.get('lr')}, at the same place of its "
                     f"schedule ({new.images:,} images)")
    return found


def _value(options: Mapping[str, Any], key: str) -> Any:
    """An option's; its default where the file does not name it, as one of an older version may not."""
    default = FIELDS[key].default
    return options.get(key, {} if default == () else default)


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={each}" for key, each in value.items()) or "none"
    return "default" if value is None else str(value)


def course_of(about: Mapping[str, Any], step: int, ranks: int, servers: int, images: int) -> Course:
    """The course that a checkpoint's run was on; of older versions, which did not note it, by its configuration.

    `servers`: ranks that only serve, in a run of more than one. `images`: in the training set.
    """
    if "course" in about:
        batch, epoch, first, workers, drawn = (int(each) for each in about["course"])
        return Course(batch, epoch, first, workers, step, drawn)
    workers = max(1, ranks - servers)
    first = int(options(about)["batch"]) * (1 if about.get("shared_out") else workers)
    return Course(first, images // first * first, first, workers, step, step * first)


def gone_on(old: Course, begun: Course, images: int) -> Course:
    """The course of a run that goes on from `old`'s place with the batch of `begun`, of data with so many images."""
    epoch = old.epoch if images // old.first * old.first == old.epoch else begun.epoch
    return Course(begun.batch, epoch, old.first, old.workers, old.step, old.images)


def shared_among(totals: list[dict[str, Any]], ranks: int) -> list[dict[str, Any]]:
    """What each of another number of ranks begins with: together they have counted what was counted."""
    first = totals[0]
    stale: dict[str, int] = {}
    for each in totals:
        for key, count in each.get("staleness_counts", {}).items():
            stale[key] = stale.get(key, 0) + count
    every = {key: sum(each.get(key, 0) for each in totals) for key, value in first.items()
             if isinstance(value, (int, float))}
    loss, losses = (sum(each.get("epoch_loss", (0, 0))[place] for each in totals) for place in (0, 1))
    found = []
    for rank in range(ranks):
        own: dict[str, Any] = {key: total / len(totals) for key, total in every.items()}
        own |= {key: every[key] // ranks + (rank < every[key] % ranks) for key in ADDED if key in every}
        found.append(own | {"epoch_loss": [loss / ranks, losses / ranks], "rank_steps": int(own.get("rank_steps", 0)),
                            "line_losses": first.get("line_losses", []) if rank == 0 else [],
                            **({"dead": first["dead"]} if "dead" in first else {}),
                            "staleness_counts": stale if rank == 0 else {}})
    return found
