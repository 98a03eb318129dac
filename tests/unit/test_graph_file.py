"""Graphs of the user's own: what they say is kept, and what could not bring all models together is refused."""

import copy
import sys
from functools import reduce
from types import SimpleNamespace
from typing import Annotated, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsgd_mpi import algorithms
from dsgd_mpi.config import Config
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.graph_file import read
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.net.simulated.machine import Machine
from dsgd_mpi.net.topology import OneOf
from dsgd_mpi.training.build import check_ranks, prepare
from tests.support.quadratic import Quadratic, train

TAKE_GRAPHS = {name: get_args(hint)[1] for name in algorithms.names() for key, hint in get_type_hints(
               algorithms.find(name), include_extras=True).items()
               if get_origin(hint) is Annotated and isinstance(get_args(hint)[1], OneOf)}
PATH = "0 1\n1 2\n2 3   # a line\n"


@pytest.fixture
def file(tmp_path):
    def written(text, name="own.edges"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(tmp_path / name)
    return written


def matrix(graph):
    """W: from column to row, what is kept on the diagonal."""
    w = np.zeros((len(graph.rows),) * 2)
    for rank, row in enumerate(graph.rows):
        w[list(row), rank] = list(row.values())
    return w + np.diag(1 - w.sum(0))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(2, 9), st.booleans(), st.booleans())
def test_what_is_taken_brings_all_together(tmp_path_factory, data, size, directed, weighted):
    """W is doubly stochastic, or its columns sum to 1, and its powers go to a matrix whose columns are all alike."""
    pairs = [(i, (i + 1) % size) for i in range(size)]      # a ring, and more
    pairs += data.draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), max_size=12))
    pairs = list(dict.fromkeys(pair if directed else (min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]))
    weights = [data.draw(st.floats(0.01, 0.9 / size)) if weighted else "" for _ in pairs]
    path = tmp_path_factory.mktemp("graph") / "own.txt"
    lines = [f"{i} {j} {w}\n" for (i, j), w in zip(pairs, weights, strict=True)]
    path.write_text("directed\n" * directed + "".join(lines))
    w = matrix(read(str(path), "", push=True))
    assert (w >= 0).all()
    assert np.allclose(w.sum(0), 1)
    assert directed or np.allclose(w, w.T)
    assert all(weight == "" or w[j, i] == weight for (i, j), weight in zip(pairs, weights, strict=True))
    spread = reduce(lambda power, _: power @ power, range(16), w)
    assert np.allclose(spread, spread[:, :1], rtol=0, atol=1e-9)
    assert directed or np.allclose(spread, 1 / size, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("text", "told"), [
    ("", "expected edges, found none"),
    (b"\xff\xfe0 1", "expected text in UTF-8, found byte 0xff; save it again as UTF-8"),
    ("0,1\n", "line 1: expected SOURCE TARGET [WEIGHT], the first two ranks from 0 on, found '0,1'"),
    ("0 1\n0 -1", "line 2: expected SOURCE TARGET [WEIGHT]"), ("0 1 2 3", "line 1: expected SOURCE TARGET [WEIGHT]"),
    ("0 1 x", "line 1: expected a weight above 0 and at most 1, found 'x'"), ("0 1 nan", "found 'nan'"),
    ("0 1 0", "above 0 and at most 1, found '0'"), ("0 1 -.5", "found '-.5'"), ("0 1 1.5", "found '1.5'"),
    ("0 1 .5\n1 2", "line 2: expected a weight, as other edges have, found none"),
    ("0 1 .5\n1 0 .4", "line 2: expected one weight for the edge 1 0, found 0.5 and 0.4; give it once, or let the"),
    ("1 2\n2 3", "expected nodes 0 to 2, found node 3 but no node 0; number them from 0"),
    ("0 1\n1 999999999", "expected nodes 0 to 2, found node 999999999 but no node 2"),
    ("0 1\n2 3", "not connected: there is no way from node 0 to node 2; add edges that join them"),
    ("0 1 .7\n1 2 .7", "the weights of node 1 sum to 1.4, expected at most 1, the rest being its own; scale them, or "
     "leave all out for Metropolis weights"),
    ("0 1 .3\n0 0 .6", "the weights of node 0 sum to 0.9, expected 1, its own included"),
    ("0 1 .5\n1 2 .5\n2 3 .5\n3 0 .5", "the two halves of the graph would swap their models for ever; scale them down"),
    ("directed\n0 1\n1 0", "expected edges that go both ways, found a directed graph; use an algorithm that")])
def test_what_is_no_graph_to_mix_on_is_told(file, text, told):
    with pytest.raises(UsageError) as refused:
        algorithms.build("dpsgd", {"graph": file(text)})
    assert refused.value.message.startswith(f"dpsgd: graph: {file(text)}: ")
    assert told in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(("text", "told"), [
    ("directed\n0 1\n1 2", "no way from node 1 to node 0; add edges that join them, in both directions"),
    ("directed\n0 1\n2 1\n1 0", "no way from node 0 to node 2"),
    ("directed\n0 1 1\n1 0 .5", "the weights of node 0 sum to 1, expected less, since it must keep a part of what"),
    ("directed\n0 1 .8\n0 2 .8\n1 0 .1\n2 0 .1", "or leave all out for equal shares")])
def test_what_is_no_graph_to_push_on_is_told(file, text, told):
    with pytest.raises(UsageError) as refused:
        algorithms.build("sgp", {"graph": file(text)})
    assert told in refused.value.message


def test_files_that_cannot_be_read_are_told(tmp_path):
    for path, told in ((tmp_path / "none.edges", "No such file"), (tmp_path / "folder.txt", "Is a directory")):
        (tmp_path / "folder.txt").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match=rf"qgm: graph: .*: cannot be read \({told}.*expected a file of edges"):
            algorithms.build("qgm", {"graph": str(path)})


def test_weights_of_ones_own_may_be_given_and_edges_twice(file):
    graph = read(file("\ufeff0 1 .25\n1 0 .25\n0 0 .75\n1 1 .75\n"), "", False)
    assert graph.rows == [{1: 0.25}, {0: 0.25}]
    assert graph.digest == read(file("# the same\n1 0 0.25", "other.txt"), "", False).digest
    assert graph.digest != read(file("1 0 0.26", "third.txt"), "", False).digest
    assert read(file("0 1 .5"), "", False).rows[0] == {1: 0.5}     # the file has changed


@pytest.mark.parametrize("name", TAKE_GRAPHS)
def test_every_algorithm_that_has_a_graph_takes_a_file(name, file):
    assert {"dpsgd", "qgm", "choco", "gradient_tracking", "sgp"} <= set(TAKE_GRAPHS)

    def answers(graph):
        algorithm = algorithms.build(name, {"graph": graph})

        def main(host):
            own = copy.copy(algorithm)
            x, _ = train(host, own, Quadratic(host.rank), 12)
            own.rest(x)
            return own.answer(x)
        return Cluster(4).run(main)
    found = answers(file(PATH))
    assert all(np.array_equal(answer, found[0]) for answer in found)
    assert Quadratic().loss(found[0]) < Quadratic().loss(Quadratic().start())
    if "line" in TAKE_GRAPHS[name].names:   # which that file is
        assert np.array_equal(answers("line"), found)


@pytest.mark.parametrize("overlap", [0, 1, 2])
def test_push_sum_on_a_directed_graph_keeps_the_mean_of_all(file, overlap):
    """Uneven in what is sent and heard; without gradients all come to the mean, and the weights keep their sum."""
    path = file("directed\n0 1\n1 2\n2 3\n3 0\n0 2 \n3 1\n")
    algorithm = algorithms.build("sgp", {"graph": path, "overlap": str(overlap)})

    def main(host):
        own, x = copy.copy(algorithm), np.full(5, float(host.rank))
        own.start(host, x, SimpleNamespace(trained=slice(0, 5), change=lambda x, g, lr: 0 * x))
        for _ in range(60):
            host.compute(lambda: None)
            own.step(x, lambda x: 0 * x, 0.0)
        own.rest(x)
        return x[0], own.w, len(own.letters)
    models, weights, letters = zip(*Cluster(4).run(main), strict=True)
    assert models == pytest.approx([1.5] * 4, abs=1e-3)
    assert np.dot(models, weights) == pytest.approx(6, abs=1e-12)
    assert sum(weights) == pytest.approx(4, abs=1e-12)
    assert len(set(weights)) > 1
    assert not any(letters)


def test_a_graph_has_a_node_for_each_rank(file):
    path = file(PATH)
    algorithm = algorithms.build("dpsgd", {"graph": path})
    algorithm.suits(4)
    with pytest.raises(UsageError, match=r"own.edges: expected a node for each of 5 ranks, found 4; run on 4"):
        algorithm.suits(5)
    with pytest.raises(UsageError, match="expected a node for each of 2 ranks"):
        check_ranks(SimpleNamespace(algorithm=algorithm, config=Config()), 2)
    with pytest.raises(UsageError, match=r"--survive: graph .*found a node for each; use a graph that has a name"):
        prepare(Config(algorithm="dpsgd", set=(f"graph={path}",), survive=True), 4)


def test_between_nodes_a_graph_has_a_node_for_each_of_them(file):
    algorithm = algorithms.build("hierarchical", {"between": f"dpsgd:graph={file('0 1')}"})
    algorithm.suits(5)
    assert [graph.digest for graph in algorithm.graphs()] == [read(file("0 1"), "", False).digest]
    for each, ranks in ((2, 4), (3, 6)):
        Cluster(ranks, Machine(ranks_per_node=each)).run(
            lambda host: train(host, copy.copy(algorithm), Quadratic(host.rank), 2))
    with pytest.raises(UsageError, match="expected a node for each of 4 ranks, found 2"):
        Cluster(4).run(lambda host: train(host, copy.copy(algorithm), Quadratic(host.rank), 2))


def test_graphml_is_read_by_networkx(file):
    nx = pytest.importorskip("networkx", reason="GraphML is read by networkx: pip install 'dsgd_mpi[graphs]'")
    named, numbered, one_way = nx.Graph(), nx.cycle_graph([3, 1, 0, 2]), nx.DiGraph()
    named.add_weighted_edges_from([("b", "a", 0.25), ("a", "c", 0.5), ("c", "c", 0.5)])
    one_way.add_edges_from([("x", "y"), ("y", "x")])
    found = [read(file("\n".join(nx.generate_graphml(graph)), f"{number}.graphml"), "", True)
             for number, graph in enumerate((named, numbered, one_way))]
    assert found[0].rows == [{1: 0.25}, {0: 0.25, 2: 0.5}, {1: 0.5}]        # in the order of the file
    assert [list(row) for row in found[1].rows] == [[1, 2], [0, 3], [0, 3], [1, 2]]
    assert [graph.directed for graph in found] == [False, False, True]
    for text in ("<a>", "<a/>", "", "<graphml></graphml>", "<graphml><graph/></graphml>"):
        with pytest.raises(UsageError, match=r"dpsgd: graph: .*\.graphml: (not GraphML: |expected edges)"):
            algorithms.build("dpsgd", {"graph": file(text, "bad.graphml")})


def test_without_networkx_graphml_is_refused_with_a_way_out(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(UsageError, match=r"needs networkx; pip install 'dsgd_mpi\[graphs\]', or give an edge list"):
        algorithms.build("dpsgd", {"graph": file("<graphml/>", "own.graphml")})
