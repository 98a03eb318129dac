"""The house keeps its floors: what a room may import, name and ask, read from the syntax tree."""

import ast
import io
import tokenize
from functools import cache
from pathlib import Path

import pytest

from dsgd_mpi import algorithms
from dsgd_mpi.kernels.load import CLASSES
from tests.support import ROOT

PACKAGE = ROOT / "dsgd_mpi"
FLOORS = [                                  # lowest first; a module is of the room with the longest prefix that fits
    ("", "errors", "files", "arrays", "net.launch", "net.delays", "net.base_graph",
     "terminal"),
    ("net.graph_file",),
    ("config", "net.api", "net.topology", "net.places", "kernels.api", "optim.schedule"),
    ("net", "net.compression", "net.mpi", "net.simulated", "kernels", "data"),
    ("net.gpu", "nn", "optim", "net.start"),
    ("algorithms", "data.ranks"),
    ("training.rankfile", "training.resume", "training.inject", "training.staging", "data.making"),
    ("training.writing", "data.commands"),
    ("study", "training", "training.checkpoint", "training.record", "training.display", "training.signals",
     "training.deadline", "training.output", "training.agreement", "training.results", "training.watch"),
    ("training.parts",),
    ("training.evaluate", "training.steps", "training.nonfinite", "training.survive"),
    ("training.loop",),
    ("training.build",),
    ("training.folder", "training.command"),
    ("training.job",),
    ("train", "doctor", "__main__"),
    ("study.simulate", "study.timings", "study.fits"),
    ("study.from_runs",),
    ("study.study", "study.advise", "study.calibrate"),
]
SIDEWAYS = {                                # what a room may import from its own floor, itself apart
    "files": ("errors",),
    "training.watch": ("training.signals",),
    "training.record": ("training.display", "training.output"),
    "training.results": ("training.output",),
    "study.fits": ("study.timings",),
}
WORLDS = ("net.mpi", "net.simulated", "net.gpu")            # only these may know which of them they are in:
CHOOSERS = ("net", "training.build", "training.job", "study", "doctor")
FOREIGN = {"mpi4py": ("net.mpi", "net.gpu.aware"), "cupy": ("kernels", "net.gpu"), "cupyx": ("kernels.gpu", "net.gpu"),
           "greenlet": ("net.simulated",), "networkx": ("net.graph_file",), "matplotlib": ("study",),
           "rich": ("training", "study", "doctor", "data"), "cffi": ("kernels.cpu",),
           "pyarrow": ("data",),
           "pickle": ("data",)}             # of foreign files; what ranks send each other and keep is data alone
ALGORITHMS_ARE_NAMED_IN = ("algorithms", "config")          # the latter for its default
BACK_ENDS_ARE_ASKED_FOR_IN = ("training.build", "kernels.load")
BACK_ENDS = set(CLASSES)
MOST_LINES = 60                             # of code, in an algorithm's file
MODULES = sorted(PACKAGE.rglob("*.py"))
every_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: name_of(path) or "dsgd_mpi")


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


NAMES = {name_of(path) for path in MODULES}


def within(module, rooms):
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def room_of(module):
    rooms = [room for floor in FLOORS for room in floor if room == module or (room and module.startswith(f"{room}."))]
    assert rooms, f"{module} is in no room of the table"
    return max(rooms, key=len)


def floor_of(room):
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


@cache                                      # many rules look at each file
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(path):
    """Modules of ours without the package's name, and of others."""
    found = []
    for node in ast.walk(tree_of(path)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("dsgd_mpi.") in NAMES else node.module for name in inside]
        found += names
    return found


@every_module
def test_a_room_imports_from_floors_below_and_beside_it_only_what_the_table_names(path):
    room = room_of(name_of(path))
    for imported in imports_of(path):
        package, _, inner = imported.partition(".")
        if package == "dsgd_mpi":
            other = room_of(inner)
            assert (other == room or floor_of(other) < floor_of(room)
                    or (floor_of(other) == floor_of(room) and other in SIDEWAYS.get(room, ()))), \
                f"{name_of(path)} must not import {inner}"
        elif package in FOREIGN:
            assert within(name_of(path), FOREIGN[package]), f"{package} belongs to {FOREIGN[package]}"


def test_every_entry_of_the_tables_is_about_something():
    rooms = [room for floor in FLOORS for room in floor]
    assert len(rooms) == len(set(rooms))
    assert {room_of(name) for name in NAMES} == set(rooms)
    for room, others in SIDEWAYS.items():
        imported = {room_of(name.removeprefix("dsgd_mpi.")) for path in MODULES if room_of(name_of(path)) == room
                    for name in imports_of(path) if name.startswith("dsgd_mpi")}
        assert set(others) <= imported
    for package, places in FOREIGN.items():
        users = [name_of(path) for path in MODULES if package in {name.partition(".")[0] for name in imports_of(path)}]
        assert all(any(within(user, (place,)) for user in users) for place in places), package


@pytest.mark.parametrize("path", [path for path in MODULES if within(name_of(path), ("net.mpi",))], ids=name_of)
def test_no_call_of_mpi_pickles(path):
    """mpi4py's verbs in lower case do."""
    calls = (node.func for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call))
    called = {call.attr for call in calls if isinstance(call, ast.Attribute)
              and ast.unparse(call.value).split(".")[-1] in ("comm", "node")}
    assert not called & {"allgather", "bcast", "gather", "scatter", "send", "recv", "allreduce", "reduce", "isend"}


@every_module
def test_only_those_who_choose_know_which_world_they_are_in(path):
    if not within(name_of(path), CHOOSERS):
        known = [name for name in imports_of(path) if within(name.removeprefix("dsgd_mpi."), WORLDS)]
        assert not known, known


def texts(nodes):
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


@every_module
def test_no_room_but_that_of_the_algorithms_names_one(path):
    if not within(name_of(path), ALGORITHMS_ARE_NAMED_IN):
        named = set(texts(ast.walk(tree_of(path)))) & {*algorithms.names(), *algorithms.RENAMED}
        assert not named, named


@every_module
def test_no_room_but_those_of_choice_asks_for_a_back_end_by_name(path):
    if not within(name_of(path), BACK_ENDS_ARE_ASKED_FOR_IN):
        asked = []
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Compare):
                for side in (node.left, *node.comparators):
                    asked += texts([side, *getattr(side, "elts", ())])
            elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "load":
                asked += texts([*node.args, *(keyword.value for keyword in node.keywords)])
            elif isinstance(node, ast.MatchValue):
                asked += texts([node.value])
        assert not set(asked) & BACK_ENDS, asked


def lines_of_code(text):
    """Without comments, docstrings and empty lines."""
    tree = ast.parse(text)
    strings = {line for node in ast.walk(tree) if isinstance(node, ast.Expr) and texts([node.value])
               for line in range(node.lineno, node.end_lineno + 1)}
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    code = {line for token in tokens if token.type not in silent for line in range(token.start[0], token.end[0] + 1)}
    return len(code - strings)


def test_lines_of_code_are_counted_as_a_reader_counts_them():
    text = ('"""Said\nin two lines."""\n\nx = 1    # one\n# none\ny = (2,\n     3)\n\n'
            'def f():\n    """Said."""\n    return x\n')
    assert lines_of_code(text) == 5


@pytest.mark.parametrize("path", sorted(Path(PACKAGE / "algorithms").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_an_algorithm_reads_like_its_paper(path):
    assert lines_of_code(path.read_text(encoding="utf-8")) <= MOST_LINES
