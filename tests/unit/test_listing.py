"""One algorithm on so many ranks: whom each mixes with, how fast that brings them together, and what it sends."""

import math

import pytest

from dsgd_mpi import algorithms
from dsgd_mpi.config import Config
from dsgd_mpi.errors import UsageError
from dsgd_mpi.study.listing import described, gap, matrices, table
from dsgd_mpi.train import command


def shown(*words):
    return command.main(["--algorithm", "list", *map(str, words)], standalone_mode=False)


def test_an_algorithm_is_shown_with_its_graph_on_so_many_ranks(capsys):
    shown("dpsgd", "--ranks", 4, "--set", "seed=3", "--model", "resnet8")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "dpsgd   --set graph=ring seed=3"
    assert any("1705.09056" in line for line in lines)
    found = lines.index("graph ring on 4 ranks: from whom each rank takes what part, and its own")
    assert lines[found + 1 :] == [
        "     0   1: 0.333, 3: 0.333; 0.333", "     1   0: 0.333, 2: 0.333; 0.333",
        "     2   1: 0.333, 3: 0.333; 0.333", "     3   0: 0.333, 2: 0.333; 0.333", "",
        "spectral gap: 0.667; by that share a step brings ranks together",
        "bytes a step: a rank sends 603,856; resnet8 has 301,928 (simulated, 1 step)"]


def test_many_ranks_peers_and_steps_are_shortened():
    lines = table(*matrices(algorithms.build("dpsgd", {"graph": "complete"}), 40), "it")
    assert len(lines) == 18
    assert lines[16] == f"    15   {', '.join(f'{peer}: 0.025' for peer in range(8))}, and 31 more; 0.025"
    assert lines[17] == "   ...   24 more ranks; a rank has 39 to 39 peers"
    lines = table(*matrices(algorithms.build("qgm", {"graph": "base-2"}), 25), "it")
    assert lines[0] == "it (9 steps, then anew): from whom each rank takes what part, and its own"
    assert sum(line.endswith("|  ...") for line in lines) == 16


@pytest.mark.parametrize(("name", "graph", "ranks", "told"), [
    ("dpsgd", "ring", 6, f"spectral gap: {1 - (1 + 2 * math.cos(math.pi / 3)) / 3:.3g};"),
    ("dpsgd", "complete", 5, "spectral gap: 1; after 1 step all ranks have the exact mean"),
    ("dpsgd", "base-3", 7, "spectral gap: 1; after 4 steps all"), ("sgp", "exponential", 8, "1; after 3 steps all"),
    ("dpsgd", "ring", 1, "spectral gap: 1; after 1 step"), ("choco", "star", 5, "spectral gap: 0.2; by that share")])
def test_the_spectral_gap_is_that_of_textbooks(name, graph, ranks, told):
    assert told in gap(*matrices(algorithms.build(name, {"graph": graph}), ranks))


def test_the_gap_of_a_graph_that_is_always_another_is_a_mean():
    steps, changing = matrices(algorithms.build("dpsgd", {"graph": "random"}), 16)
    assert changing == "another one at each step"
    assert "a mean over its steps" in gap(steps, changing)


@pytest.mark.parametrize("name", algorithms.names())
def test_every_algorithm_says_what_it_sends(name):
    text = described(algorithms.find(name)(), 4, Config(), None)
    assert "bytes a step: a rank sends " in text or not algorithms.find(name).advised


def test_what_a_graph_of_a_file_is_is_drawn(tmp_path, capsys):
    file, picture = tmp_path / "own.edges", tmp_path / "own.png"
    file.write_text("directed\n0 1\n1 2\n2 0\n0 2\n")
    shown("sgp", "--ranks", 3, "--set", f"graph={file}", "--picture", picture)
    assert "     2   0: 0.333, 1: 0.5; 0.5" in (text := capsys.readouterr().out).splitlines()
    assert text.endswith(f"picture: {picture}\n")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("words", "told"), [
    (("gossip", "--picture", "x.png"), "--picture: expected an algorithm with an option graph, found one that"),
    (("dpsgd", "--picture", "x.jpeg"), "--picture: expected a file .png, .pdf, .svg, found 'x.jpeg'"),
    (("dpsgd", "--picture", "none/x.png"), "--picture none/x.png: cannot be written (No such file or directory)"),
    (("dpsg",), "unknown algorithm 'dpsg'"), (("dpsgd", "--set", "grph=ring"), "did you mean 'graph'?"),
    (("--ranks", 4), "--ranks: expected --algorithm list NAME, which shows one algorithm, found --algorithm list w"),
    (("--algorithm", "gossip", "--ranks", 4), "found --algorithm gossip without a NAME; ranks are started by mpirun"),
    (("--algorithm", "gossip", "dpsgd"), "argument dpsgd: expected --algorithm list NAME")])
def test_what_cannot_be_shown_is_told_in_one_line(words, told):
    with pytest.raises(UsageError) as refused:
        shown(*words)
    assert told in refused.value.message
    assert "\n" not in refused.value.message
