"""What the benchmarks say: tables are made from results, and results name the code that was measured."""

import json
import subprocess
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from benchmarks import table
from benchmarks.cpu import layers as cpu_layers
from benchmarks.cpu import share, step, waiting
from benchmarks.data import input as feeding_of_data
from benchmarks.gpu import feeding, first, once
from benchmarks.gpu import step as gpu_step
from benchmarks.learning import convergence, logistic, torchft
from benchmarks.net import straggler, wire
from benchmarks.shared import provenance
from benchmarks.shared.cases import OURS, Case
from benchmarks.shared.contest import Contestant, Failed
from tests.support import ROOT, contestants

BENCHMARKS = ROOT / "benchmarks"
RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))
PROGRAMS = (step, cpu_layers, share, waiting, gpu_step, feeding, straggler, wire, convergence,
            logistic, torchft)


def test_no_figure_of_the_tables_is_typed_by_hand():
    assert (BENCHMARKS / "results" / "README.rst").read_text() == table.page(), "run python -m benchmarks.table"


def test_the_prose_is_short_and_leaves_figures_to_the_tables():
    text = (BENCHMARKS / "README.rst").read_text()
    assert len(text.splitlines()) <= 200
    assert "list-table" not in text


def git(folder, *words):
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
    done = subprocess.run(["git", "-C", folder, *who, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("first\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "--quiet", "--message", "First")
    return tmp_path


def test_a_result_names_a_commit_that_exists():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    for path in RESULTS:
        git(ROOT, "cat-file", "-e", json.loads(path.read_text())["commit"].removesuffix("+changes") + "^{commit}")


def test_all_that_feed_a_network_read_the_same_images(tmp_path, monkeypatch):
    for module in ("simplejpeg", "PIL"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    monkeypatch.setattr(feeding_of_data, "DIFFERENT", 3)
    feeding_of_data.make(tmp_path, 7, 1)
    found = {}
    for name, make, *arguments in (("ours", feeding_of_data.ours, str(tmp_path / "pixels.h5"), "full", 2, 1),
                                   ("in blocks", feeding_of_data.ours, str(tmp_path / "jpeg.h5"), "blocks", 2, 1),
                                   ("loop", feeding_of_data.h5py_loop, str(tmp_path / "plain.h5"), 2),
                                   ("decoding", feeding_of_data.decoding, 2, 1)):
        work, found[name] = make(*arguments, lambda: None)
        for _ in range(5):
            work["batch"]()
    assert len({value for value, in found.values()}) == 1, found
    assert len(list((tmp_path / "files").iterdir())) == 7


def test_results_do_not_make_a_tree_dirty(repository):
    (repository / "benchmarks" / "results").mkdir(parents=True)
    (repository / "benchmarks" / "results" / "one.json").write_text("{}")
    assert provenance.commit(repository) == git(repository, "rev-parse", "--short", "HEAD")


def test_no_commit_vouches_for_a_tree_with_changes(repository):
    (repository / "code.py").write_text("second\n")
    (repository / "new.py").write_text("new\n")
    with pytest.raises(provenance.Unsaved) as refused:
        provenance.commit(repository)
    assert refused.value.message == (
        "a result names the commit that was measured; expected a working tree without changes, found 2 changed or new: "
        "code.py, new.py; commit first, or run with --no-save")


def test_no_commit_vouches_for_a_folder_without_git(tmp_path):
    with pytest.raises(provenance.Unsaved, match="found no commit"):
        provenance.commit(tmp_path)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_every_benchmark_refuses_before_it_measures(monkeypatch, program):
    def refuse():
        raise provenance.Unsaved("refused")
    monkeypatch.setattr(provenance, "commit", refuse)
    done = CliRunner().invoke(program.main, [])
    assert (done.exit_code, done.output) == (2, "Error: refused\n")


def test_nothing_is_saved_from_a_dirty_tree(monkeypatch, repository):
    (repository / "code.py").write_text("second\n")
    check = provenance.commit
    monkeypatch.setattr(provenance, "commit", lambda: check(repository))
    monkeypatch.setattr(provenance, "RESULTS", repository / "results")
    with pytest.raises(provenance.Unsaved, match=r"1 changed or new: code\.py"):
        provenance.save("result", {})
    assert not (repository / "results").exists()
    git(repository, "commit", "--quiet", "--all", "--message", "Second")
    saved = json.loads(provenance.save("result", {"seconds": [1.0]}).read_text())
    assert saved["commit"] == git(repository, "rev-parse", "--short", "HEAD")
    assert saved["seconds"] == [1.0]


@pytest.mark.parametrize(("algorithm", "ranks", "rate"), [
    ("allreduce", 8, 0.4), ("allreduce --compress=bfloat16", 8, 0.4), ("gossip mode=push", 8, 0.4), ("easgd", 8, 0.4),
    ("local_sgd post_local=200", 4, 0.4), ("backup", 4, 0.4),
    ("parameter_server", 8, 0.05), ("parameter_server max_staleness=4", 8, 0.05),
    ("parameter_server staleness=compensate", 8, 0.05), ("parameter_server servers=1", 5, 0.1),
    ("parameter_server staleness=scale", 8, 0.4), ("parameter_server", 1, 0.4)])
def test_a_rate_is_divided_by_the_ranks_once_at_most(algorithm, ranks, rate):
    assert convergence.base_rate(algorithm, ranks) == pytest.approx(rate)


def test_every_method_that_is_compared_has_a_base_rate():
    assert len(set(convergence.METHODS)) == len(convergence.METHODS) == 23
    assert {convergence.base_rate(method, 4) for method in convergence.METHODS} == {0.4, 0.1}


def curve(rate, seed, accuracy, own=None):
    """A run as it is saved; where a rank's own model has another accuracy, they are within 0.1 of `own`."""
    models = {"own_accuracy_min": own and own - 0.1, "own_accuracy_mean": own, "own_accuracy_max": own and own + 0.1}
    evaluation = {"accuracy": accuracy, "step": 40.0, "wall_s": 9.0, "eval_s": 2.0}
    return {"rate": rate, "seed": seed, "accuracy": accuracy, **models, "evaluations": [evaluation]}


def test_convergence_goes_on_where_it_was_and_runs_each_rate_and_seed_once(monkeypatch, tmp_path):
    def trained(algorithm, ranks, *options):
        words = dict(zip(options[::2], options[1::2], strict=True))
        asked.append((algorithm, words["--seed"], words["--lr"]))
        return {"seed": words["--seed"], "accuracy": 0.9 - words["--lr"] / 2, "wall_s": 1.0}
    asked = []
    monkeypatch.setattr(convergence, "trained", trained)
    monkeypatch.setattr(provenance, "commit", lambda: "abc")
    monkeypatch.setattr(provenance, "RESULTS", tmp_path)
    old = {"ranks": 4, "epochs": 1, "data": "cifar10", "model": "resnet8", "batch": 16, "runs": {
        "gossip": [{"seed": 0, "accuracy": 0.9}], "allreduce": [curve(0.2, 0, 0.8)]}}     # the first without a rate
    (tmp_path / "convergence-cifar10-resnet8-4.json").write_text(json.dumps(old))

    def go_on(*words):
        done = CliRunner().invoke(convergence.main, ["--data", "cifar10", "--seeds", "2", "--algorithms",
                                                     "allreduce,gossip", *words], catch_exceptions=False)
        assert done.exit_code == 0
    go_on("--max-minutes", "0")
    assert asked == []
    go_on("--most", "1")
    assert asked == [("allreduce", 0, 0.4)]
    go_on()
    whole = [(name, 0, rate) for name in ("allreduce", "gossip") for rate in (0.2, 0.4, 0.8)]
    assert asked == [*whole[1:], ("allreduce", 1, 0.2), ("gossip", 1, 0.2)]     # but the one that was there
    go_on()
    assert len(asked) == 7
    runs = json.loads((tmp_path / "convergence-cifar10-resnet8-4.json").read_text())["runs"]
    assert [len(runs[name]) for name in ("allreduce", "gossip")] == [4, 4]
    go_on("--batch", "8", "--most", "1")    # other settings are another result
    assert list(json.loads((tmp_path / "convergence-cifar10-resnet8-4.json").read_text())["runs"]) == ["allreduce"]


def test_the_table_shows_the_best_rate_of_each_method_and_own_models():
    runs = {"allreduce": [curve(rate, seed, accuracy + seed / 100) for seed in (0, 1) for rate, accuracy in (
                (0.1, 0.5), (0.2, 0.6), (0.4, 0.4))],
            "gossip": [curve(0.1, 0, 0.5, 0.3), curve(0.2, 0, 0.4, 0.2), curve(0.1, 1, 0.53, 0.4),
                       curve(0.4, 0, 0.9, 0.8)],        # fewer seeds do not compare
            "old": [{key: value for key, value in curve(0, 0, 0.5).items() if not key.startswith(("rate", "own"))}]}
    rows = {row[1]: row[2:] for row in table.convergence_rows(
        {"data": "cifar10", "model": "resnet8", "ranks": 4, "epochs": 1, "runs": runs})}
    assert rows["allreduce"] == ["0.2 of 0.1, 0.2, 0.4", "2", "60.50%", "60.00% to 61.00%", "+0.00", "", "55%", "40",
                                 "7"]
    assert rows["gossip"] == ["0.1 of 0.1, 0.2, 0.4", "2", "51.50%", "50.00% to 53.00%", "+9.00",
                              "35.00% (20.00% to 50.00%)", "55%", " (0 of 2 runs)", ""]
    assert rows["old"][:5] == ["not tuned", "1", "50.00%", "50.00% to 50.00%", "+10.00"]


def test_programs_are_found_by_name():
    """Without a search path that is set for them."""
    for program in (*PROGRAMS, once, first):
        assert program.__name__ in (BENCHMARKS / "README.rst").read_text(), program.__name__
    assert not [path for path in BENCHMARKS.rglob("*.py") if "sys.path" in path.read_text()]


# a contestant that fails

SHORT = Case("resnet8", (28, 28, 1), 4, 10, 3, 1)


def test_on_a_gpu_one_that_fails_in_whichever_way_does_not_end_the_others(monkeypatch):
    monkeypatch.setattr(gpu_step, "ours", contestants.sound)
    monkeypatch.setattr(gpu_step, "torchs", contestants.fallible)
    found = gpu_step.measure(SHORT, "bfloat16", tuple(gpu_step.TORCH), 1e12, 3)
    assert {name: len(samples) for name, samples in found["seconds"].items()} == {OURS: 3, "eager": 3}
    assert found["failed"] == {
        "eager, CUDA graph": "disagrees: 9 where dsgd_mpi has 6, 5e-02 of which is allowed",
        "torch.compile": "ImportError: no such library",
        "torch.compile, CUDA graph": "its process ended with status 3"}
    assert found["first_losses"]["eager, CUDA graph"] == [7.0, 6.5, 9.0]
    said = gpu_step.line(found)
    assert all(f"{name:26} failed: {why}" in said for name, why in found["failed"].items())


def test_on_a_gpu_the_others_are_compared_with_each_other_where_ours_fails(monkeypatch):
    monkeypatch.setattr(gpu_step, "ours", contestants.not_even_a_start)
    monkeypatch.setattr(gpu_step, "torchs", contestants.fallible)
    found = gpu_step.measure(SHORT, "bfloat16", ("eager", "eager, CUDA graph"), 1e12, 3)
    assert list(found["seconds"]) == ["eager"]
    assert found["failed"] == {OURS: "ImportError: no such library",
                               "eager, CUDA graph": "disagrees: 9 where eager has 6, 5e-02 of which is allowed"}
    assert "times ours" not in gpu_step.line(found)


def test_on_a_cpu_one_that_fails_in_whichever_way_does_not_end_the_others(monkeypatch):
    monkeypatch.setattr(step, "ours", contestants.sound)
    monkeypatch.setattr(step, "torchs", contestants.on_cpu)
    found = step.measure(SHORT, 2, True, "float32", tuple(step.TORCH))
    assert list(found["seconds"]) == list(found["peak_bytes"]) == [OURS, "eager channels_last"]
    assert found["failed"] == {"eager contiguous": "disagrees: nan where dsgd_mpi has 6.5, 3e-02 of which is allowed",
                               "torch.compile": "ImportError: no such library"}


def test_a_net_whose_layers_cannot_be_compared_does_not_end_the_others(monkeypatch):
    monkeypatch.setattr(cpu_layers, "torchs", contestants.not_even_a_start)
    monkeypatch.setattr(cpu_layers, "ours", contestants.willing)
    monkeypatch.setattr(cpu_layers.contest, "copy_peak", lambda: 1.0)
    monkeypatch.setattr(cpu_layers.contest, "gemm_peak", lambda *_: 1.0)
    done = CliRunner().invoke(cpu_layers.main, ["--nets", "resnet8,resnet20", "--dtypes", "float32", "--no-save"])
    assert done.exit_code == 0, done.output
    assert done.output.count("  failed: eager channels_last: ImportError: no such library\n") == 2


def test_who_has_failed_says_so_whenever_it_is_asked():
    with Contestant("one", 1, contestants.not_even_a_start) as contestant:
        for _ in range(2):
            with pytest.raises(Failed, match=r"^one: ImportError: no such library$"):
                contestant.time("steps", 1)


def test_rivals_are_known_by_name_and_each_alone_has_a_file_of_its_own():
    done = CliRunner().invoke(gpu_step.main, ["--no-save", "--rivals", "eager:eagle"])
    assert (done.exit_code, done.output.splitlines()[-1]) == (
        2, "Error: Invalid value for '--rivals': expected some of eager:eager, CUDA graph:torch.compile:"
           "torch.compile, CUDA graph; found eagle")
    assert gpu_step.file_name("resnet50", 256, "bfloat16", tuple(gpu_step.TORCH)) == "gpu-step-resnet50-256-bfloat16"
    names = {gpu_step.file_name("resnet50", 256, "bfloat16", (rival,)) for rival in gpu_step.TORCH}
    assert "gpu-step-resnet50-256-bfloat16-torch-compile-CUDA-graph" in names
    assert len(names) == len(gpu_step.TORCH)


class RecordedTorch:
    """As much of PyTorch as a capture needs; `said` has what happened, and whether in a capture or on a side stream."""

    def __init__(self):
        self.said, self.where = [], "eager"
        self.cuda = self

    def say(self, what):
        self.said.append((self.where, what))

    def inside(self, where):
        @contextmanager
        def entered(_):
            self.where, before = where, self.where
            yield
            self.where = before
        return entered

    def __getattr__(self, name):
        return {"graph": self.inside("capture"), "stream": self.inside("side")}[name]

    def current_stream(self):
        return self

    def wait_stream(self, other):
        self.say("waits")

    def Stream(self):
        return self

    def CUDAGraph(self):
        return self

    def replay(self):
        self.say("replay")

    def zero_grad(self, set_to_none):
        self.say(f"gradients {'dropped' if set_to_none else 'zeroed'}")


@pytest.mark.parametrize("scaled", [False, True])
def test_pytorch_s_step_is_captured_as_its_documentation_has_it(scaled):
    torch = RecordedTorch()

    def gradient():
        torch.say("gradient")
        return SimpleNamespace(item=lambda: 1.0)

    def eager():
        torch.zero_grad(set_to_none=True)
        torch.say("step")
        return gradient()

    replay, first = gpu_step.captured(torch, torch, gradient, lambda: torch.say("update"), eager, scaled)
    outside, captured = ([what for place, what in torch.said if place == where] for where in ("eager", "capture"))
    assert [what for place, what in torch.said if place == "side"] == 3 * ["gradients dropped", "step", "gradient"]
    assert first == [1.0] * 3
    assert outside == ["waits", "waits", "gradients dropped"]
    assert captured == ["gradient", "update"][: 2 - scaled]
    torch.said.clear()
    replay()
    assert torch.said == [("eager", what) for what in ["replay", "update"][: 1 + scaled]]
