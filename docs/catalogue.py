"""`.. algorithms::` and `.. optimizers::` insert the docstring and options of each; nothing is written twice."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import typing

import talk
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

from dsgd_mpi import algorithms, optim
from dsgd_mpi.config import limits_of


class Catalogue(Directive):
    """A section for each dataclass that a room of the package holds, each found by its file's name."""

    room: typing.Any
    flag: str                               # that sets an option

    def run(self) -> list[nodes.Node]:
        text = "\n".join(line for name in self.room.names() for line in self.section(name))
        found = nodes.section()
        self.state.nested_parse(StringList(text.splitlines(), source=self.name), 0, found, match_titles=True)
        return found.children

    def section(self, name: str) -> list[str]:
        module = importlib.import_module(f"{self.room.__name__}.{name}")
        found = self.room.find(name)
        return [name, "-" * len(name), "", *as_rst(inspect.getdoc(module) or ""), "", *self.facts(found), "",
                *options(found, self.flag), ""]

    def facts(self, found: typing.Any) -> list[str]:
        """Lines about a class besides its module's docstring."""
        return []


class Algorithms(Catalogue):
    room, flag = algorithms, "--set"

    def facts(self, found: typing.Any) -> list[str]:
        name = found.__module__.rpartition(".")[2]
        if not talk.picture(name).exists():
            talk.draw(name)
        return [f":Communication per step: {found.traffic}", f":Model evaluated and saved: {found.offers}",
                f":Speed, all-reduce being 1: {found.drift}", "", f".. image:: pictures/talk-{name}.png",
                f"   :alt: Who computes, sends, receives and waits with {name} on four simulated ranks."]


class Optimizers(Catalogue):
    room, flag = optim, "--set-optimizer"


def as_rst(docstring: str) -> list[str]:
    """Indented paragraphs are formulas, shown verbatim."""
    lines: list[str] = []
    for paragraph in docstring.split("\n\n"):
        if paragraph.startswith("    "):
            lines += ["::", "", *paragraph.splitlines(), ""]
        else:
            lines += [*paragraph.splitlines(), ""]
    return lines


def options(found: type, flag: str) -> list[str]:
    """A table of the dataclass's fields: name and default, allowed values, and the comment next to it."""
    hints = typing.get_type_hints(found, include_extras=True)
    fields = dataclasses.fields(found)
    if not fields:
        return ["It has no options."]
    comments = dict(re.findall(r"^    (\w+): [^#\n]*(?:# *(.*))?$", inspect.getsource(found), re.MULTILINE))
    rows = [(f"``{item.name}={item.default}``", allowed(hints[item.name]), comments.get(item.name, ""))
            for item in fields]
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 25 25 50", "", f"   * - option of ``{flag}``",
             "     - values", "     - meaning"]
    for option, what, meaning in rows:
        lines += [f"   * - {option}", f"     - {what}", f"     - {meaning}"]
    return lines


def allowed(hint: typing.Any) -> str:
    """A field's type in words."""
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"``{choice}``" for choice in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Annotated and typing.get_args(hint)[0] is str:
        return limits_of(hint)
    if typing.get_origin(hint) is typing.Annotated:
        return f"{allowed(typing.get_args(hint)[0])}, {limits_of(hint)}"
    return {int: "integer", float: "number", bool: "true or false"}.get(hint, getattr(hint, "__name__", str(hint)))


def setup(app: typing.Any) -> dict[str, bool]:
    app.add_directive("algorithms", Algorithms)
    app.add_directive("optimizers", Optimizers)
    return {"parallel_read_safe": True}
