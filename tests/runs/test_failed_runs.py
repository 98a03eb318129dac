"""How whole runs end when something is wrong: a rank fails, ranks are not alike, the input is bad."""

import json
import textwrap
import time

import h5py
import numpy as np
import pytest

from tests.support.jobs import run, train
from tests.support.left import SMALL

# one rank fails

FAULTS = {
    "before training": "import dsgd_mpi.training.job as m; m.assemble = on_rank(m.assemble)",
    "in a gradient": "import dsgd_mpi.nn.model as m; m.Model.begin = on_rank(m.Model.begin, 3)",
    "in the data thread": "import dsgd_mpi.data.loader as m; m.Batches._filled = on_rank(m.Batches._filled, 3)",
    "in evaluation": "import dsgd_mpi.nn.model as m; m.Model.predictor = on_rank(m.Model.predictor)",
    "in another thread": """
        import threading, dsgd_mpi.training.loop as m
        def start(*args, train=m.train): threading.Thread(target=on_rank(lambda: None)).start(); return train(*args)
        import dsgd_mpi.training.job; dsgd_mpi.training.job.train = start""",
}
PROGRAM = """
    import os, time
    from dsgd_mpi.net.launch import launched
    def on_rank(f, call=0):
        calls = iter(range(10**9))
        def g(*args, **kwargs):
            if launched().rank == {rank} and next(calls) == call:
                open(os.path.join(os.path.dirname(__file__), "fault"), "w").write(str(time.time()))
                raise RuntimeError("a fault was put here")
            return f(*args, **kwargs)
        return g
    {fault}
    from dsgd_mpi.train import main
    main()
"""


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("where", FAULTS)
def test_one_rank_that_raises_ends_the_whole_job_with_its_message(tmp_path, small, where, rank):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM).format(rank=rank, fault=textwrap.dedent(FAULTS[where]).strip()))
    status, output, errors = run(program, *small, "--steps", 8 if where == "in evaluation" else 100_000, "--batch", 4,
                                 "--out", tmp_path / "run", ranks=3, limit_s=30)
    ended = time.time()
    assert status not in (0, 75)
    assert ended - float((tmp_path / "fault").read_text()) < 10
    assert "a fault was put here" in errors, output + errors
    assert f"rank {rank} on " in errors


# ranks that are not alike

@pytest.mark.parametrize(("own", "found"), [
    (("--lr", 0.1, "--seed", 7), "--seed: 0 on rank 0, 7 on rank 1; --lr: 0.2 on rank 0, 0.1 on rank 1"),
    (("--checkpoint-every", 7), "--checkpoint-every: 0 on rank 0, 7 on rank 1"),
    (("--algorithm", "gossip"), "--algorithm: allreduce on rank 0, gossip on rank 1")])
def test_ranks_that_were_started_differently_are_told_before_anything_is_made(tmp_path, own, found):
    status, output, errors = train("--steps", 3, "--out", tmp_path / "run", ranks=2, last=own)
    assert (status, output) == (2, "")
    assert errors == (f"Error: the ranks do not agree on what to run: {found}; start all of them with the same "
                      "command, environment, data and version\n")
    assert not (tmp_path / "run").exists()


def test_a_command_line_that_one_rank_cannot_read_ends_all(tmp_path):
    status, output, errors = train("--steps", 3, "--out", tmp_path / "run", ranks=2, last=("--lr", "x"))
    assert (status, output, errors) == (2, "", "Error: ranks [1]: --lr: expected a number, found 'x'\n")
    assert not (tmp_path / "run").exists()


def test_a_rank_that_is_to_print_alone_leaves_nobody_waiting(tmp_path):
    status, output, errors = train("--steps", 3, "--out", tmp_path / "run", ranks=2, last=("--print-config",))
    assert (status, output) == (2, "")
    assert errors == ("Error: ranks [1]: the command line asks for output alone, as --help does, but that of other "
                      "ranks does not; start all ranks with the same command\n")
    assert not (tmp_path / "run").exists()
    status, output, errors = train("--print-config", ranks=2)
    assert (status, output, errors) == (0, train("--print-config")[1], "")


# bad input

@pytest.mark.parametrize(("options", "said"), [
    (("--algorithm", "parameter_server", "--on-nonfinite", "stop"), "no checkpoint was written before"),
    (("--algorithm", "gossip", "--on-nonfinite", "skip"), "updates were left out"),
    (("--algorithm", "gossip", "--set", "mode=push", "--on-nonfinite", "restore"), "after 3 restores; the")])
def test_a_run_that_diverges_ends_on_all_ranks_with_one_line_and_nothing_that_is_not_finite(
        tmp_path, small, options, said):
    status, _, errors = train("--lr", 1e9, "--schedule", "constant", "--warmup", 0, "--weight-decay", 1, "--steps", 60,
                              "--log-every", 1, "--quiet", *small, "--out", tmp_path / "run", *options, ranks=2)
    assert status == 3, errors
    *restores, last = errors.splitlines()
    assert last.startswith("Error: rank ")
    assert said in last
    assert len(restores) == (3 if "restore" in options else 0)
    assert not (tmp_path / "run" / "model.h5").exists()
    for line in ((tmp_path / "run" / "metrics.jsonl").read_text() + "{}").splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "diverged"
    for path in (tmp_path / "run").rglob("*.h5"):
        with h5py.File(path) as file:
            assert np.isfinite(file["x"][()]).all()


def test_a_usage_error_under_mpirun_is_printed_once(tmp_path):
    for options in (("--model", "resnet9"), ("--set", "perod=2", "--algorithm", "gossip"), ("--steps", "none"),
                    ("--data", tmp_path / "missing.h5"), ("--batch", 9000), ("--lr", "-1"), ("--wrong",)):
        status, output, errors = train(*options, ranks=3)
        assert status == 2, (options, output, errors)
        assert errors.count("Error") == 1, errors
        assert "Traceback" not in errors


def test_a_problem_that_only_one_rank_has_is_told_with_its_number(tmp_path, small):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent("""
        import dsgd_mpi.training.job as job
        from dsgd_mpi.errors import UsageError
        from dsgd_mpi.net.launch import launched
        def prepare(*args, prepare=job.prepare):
            if launched().rank == 1: raise UsageError("this node has no data")
            return prepare(*args)
        job.prepare = prepare
        from dsgd_mpi.train import main
        main()"""))
    status, _, errors = run(program, *SMALL, *small, ranks=3)
    assert status == 2
    assert errors.splitlines()[0] == "Error: ranks [1]: this node has no data"


def test_a_launcher_of_another_mpi_is_noticed(tmp_path):
    """Each process would train alone, four times the same."""
    status, _, errors = train("--out", tmp_path / "run", env={"MV2_COMM_WORLD_RANK": "0", "MV2_COMM_WORLD_SIZE": "4"})
    assert status == 2
    assert "the launcher started 4 ranks but MPI sees 1" in errors
    status, _, errors = train("--out", tmp_path / "run", env={"PALS_RANKID": "1"})    # rank 0 may not notice
    assert status == 2
    assert "the launcher started 2 ranks but MPI sees 1" in errors


@pytest.mark.parametrize(("version", "refused"), [
    ("MPICH Version:      5.0.2\nMPICH configure: --with-ucx=embedded", True),
    ("MPICH Version:      5.0.2\nMPICH configure: --with-pmix", False), ("Open MPI v5.0.11, package: x", False)])
def test_mpich_under_the_mpirun_of_open_mpi_is_told_in_one_line(version, refused):
    """MPICH itself ends the process with a stack of its own functions."""
    program = textwrap.dedent(f"""
        import sys
        from dsgd_mpi.net.mpi import library
        library.MPI.Get_library_version = lambda: {version!r}
        library.MPI.Init_thread = lambda: sys.exit(75)
        from dsgd_mpi.training.job import run
        from dsgd_mpi.config import Config
        sys.exit(run(Config()))""")
    status, _, errors = run("-c", program, env={"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"})
    assert (status, errors[:43]) == ((2, "Error: the launcher is Open MPI's mpirun or") if refused else (75, ""))
    assert errors.count("\n") == refused


@pytest.mark.parametrize(("options", "message"), [
    ((), None), (("--batch", 5000), "batch 5000 x 3 ranks"), (("--model", "resnet9"), "unknown model")])
def test_where_a_launcher_names_no_number_of_ranks_that_of_mpi_counts(tmp_path, options, message):
    """Each message once, and no folder for it; there are enough images for one rank of 5,000."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent("""
        from dsgd_mpi.net import launch
        launch.VARIABLES = {"MPICH": ("PMI_RANK", None), "Open MPI": ("OMPI_COMM_WORLD_RANK", None)}
        from dsgd_mpi.train import main
        main()"""))
    folder = tmp_path / "run"
    status, output, errors = run(program, *SMALL, "--slow-rank", "2:0.001", *options, "--out", folder, ranks=3)
    if message:
        assert (status, errors.count("Error"), errors.count(message)) == (2, 1, 1)
        assert not folder.exists()
    else:
        assert (status, errors) == (0, "")
        assert "3 on 1 node" in output


@pytest.mark.parametrize(("options", "message"), [
    (("--model", "resnet9"), "unknown model 'resnet9'; the choices are resnet8, resnet14"),
    (("--algorithm", "gosip"), "unknown algorithm 'gosip'"),
    (("--algorithm", "gossip", "--set", "perod=2"), "gossip has no option 'perod'; did you mean 'period'?"),
    (("--algorithm", "gossip", "--set", "period=two"), "gossip: period: expected an integer, found 'two'"),
    (("--algorithm", "gossip", "--set", "period=0"), "gossip: period: expected at least 1, found 0"),
    (("--algorithm", "gossip", "--set", "mode=pul"), "gossip: mode: expected one of pull, push, found 'pul'"),
    (("--set", "bucket"), "--set expects KEY=VALUE, found 'bucket'"),
    (("--batch", "20000"), "batch 20000 x 1 rank = 20000 images a step, but the training set holds 12000"),
    (("--data", "nowhere.h5"), "nowhere.h5"),
    (("--data", "fashion-minst"), "fashion-mnist"),
    (("--config", "nowhere.toml"), "nowhere.toml: cannot be read"),
    (("--resume", "nowhere"), "config.toml: cannot be read"),
    (("--slow-rank", "3:1"), "--slow-rank: expected a rank from 0 to 0, found 3"),
    (("--slow-rank", "0"), "--slow-rank: expected RANK:SECONDS, RANK:uniform:LEAST:MOST, "),
    (("--algorithm", "gradient_tracking", "--compress", "float16"), "--compress: gradient_tracking adds up what "),
    (("--algorithm", "dpsgd", "--steps-total", 9), "--steps-total: a step of dpsgd depends on other ranks; use "
     "--steps, or one of adpsgd, async_local, easgd, gosgd, gossip mode=push, gossip partner=independent, "
     "parameter_server"),
    (("--algorithm", "hierarchical", "--set", "between=gradient_tracking", "--compress", "float16"), "--compress: "
     "hierarchical adds up what rounding loses"),
    (("--algorithm", "parameter_server", "--set", "max_staleness=2", "--steps-total", 9), "a step of parameter_server "
     "max_staleness=2 depends on other ranks"),
    (("--algorithm", "adpsgd", "--steps-total", 9, "--steps", 9), "expected one of them, found 2"),
    (("--algorithm", "easgd", "--compress", "float16"), "easgd uses shared memory, which is not compressed"),
    (("--algorithm", "backup", "--dtype", "float16"), "backup cannot skip a step whose gradient overflows"),
    (("--device", "gpu"), "no GPU can be used"),
    (("--kernels", "onednn", "--dtype", "float64"), "float64"),
    (("--out", "/proc/nowhere"), "cannot be created"),
])
def test_bad_input_is_one_line_and_status_2(tmp_path, options, message):
    status, output, errors = train("--out", tmp_path / "run", *options)
    assert status == 2, output + errors
    line = errors.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    assert message in line
