"""The house keeps its floors: a room imports only from floors below, and foreign libraries stay in theirs."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dsgd_mpi"
FLOORS = [                                  # lowest first; the longest prefix that fits a module decides
    ("", "errors", "config", "arrays", "net.launch", "net.topology", "net.api", "kernels.api", "optim.schedule"),
    ("optim", "net", "kernels", "nn", "data"),
    ("algorithms",),
    ("study", "training.record", "training.display", "training.deadline", "training.signals", "training.checkpoint"),
    ("training.evaluate",),
    ("training.steps",),
    ("training.loop",),
    ("training.build",),
    ("training",),
    ("train", "doctor", "__main__"),
]
ROOMS = {"mpi4py": ("net.mpi", "net.gpu.aware"), "cupy": ("kernels", "net.gpu"), "cupyx": ("kernels.gpu", "net.gpu"),
         "simpy": ("net.simulated",), "greenlet": ("net.simulated",), "rich": ("training", "study", "doctor", "data"),
         "matplotlib": ("study",), "cffi": ("kernels.cpu",)}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def floor_of(module):
    floors = {prefix: floor for floor, prefixes in enumerate(FLOORS) for prefix in prefixes}
    parts = module.split(".")
    return next(floors[prefix] for end in range(len(parts), 0, -1) if (prefix := ".".join(parts[:end])) in floors)


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            known = {f"dsgd_mpi.{name_of(module)}" for module in MODULES}
            yield from (name if name in known else node.module for name in names)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_room_imports_only_from_its_floor_and_below(path):
    module = name_of(path)
    for imported in imports_of(path):
        package, _, inner = imported.partition(".")
        if package == "dsgd_mpi":
            assert floor_of(inner) <= floor_of(module), f"{module} must not import {inner}"
        elif package in ROOMS:
            assert module.startswith(ROOMS[package]), f"{package} belongs to {ROOMS[package]}, not to {module}"


def test_nothing_above_the_first_floor_asks_which_world_it_is_in():
    for path in MODULES:
        if floor_of(name_of(path)) > 1:
            conditions = [ast.unparse(node.test) for node in ast.walk(ast.parse(path.read_text()))
                          if isinstance(node, ast.If | ast.IfExp)]
            assert not [each for each in conditions if "simulated" in each.lower()], path


@pytest.mark.parametrize("path", sorted((PACKAGE / "algorithms").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_an_algorithm_reads_like_its_paper(path):
    code = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(code) <= 80
