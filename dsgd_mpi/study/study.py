"""`study`: runs all cells of a study file that have no result yet, and shows what the results say.

A cell runs in a folder of its own, runs/studies/NAME/CELL, whose file `log` holds what it printed. A cell that fails is
marked by a file `failed` there, and the others go on; the next call tries it again. What is kept of a finished one is
CELL.json (`results`), and a cell that has it is never run again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import click
import tomli_w
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dsgd_mpi.config import FIELDS
from dsgd_mpi.data import Dataset
from dsgd_mpi.errors import UsageError
from dsgd_mpi.study.plan import EXECUTORS, Cell, Study, read
from dsgd_mpi.study.results import Result, gather, load, outcomes, reader, write
from dsgd_mpi.study.simulate import Simulation, scaled
from dsgd_mpi.study.table import table_of
from dsgd_mpi.training.build import Prepared, fit, prepare

STOPPED = 75
ENDED = (0, 3)                              # done, and diverged, which is a result too
GRACE_S = 60.0                              # for runs that were asked to stop
Execute = Callable[[Cell, Path], int]       # a run in this folder, and its exit status


@click.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="STUDY.toml")
@click.option("--executor", type=click.Choice(EXECUTORS), default=None,
              help="Run cells on a simulated cluster, by mpirun, or as a job array.  [default: the file's]")
@click.option("--jobs", type=click.IntRange(min=1), metavar="JOBS", help="Cells to run at once.  [default: a core each "
              "where they are simulated, else 1]")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Where the results are kept.  [default: "
              "`results` in the file, or runs/studies/NAME]")
@click.option("--runs", type=click.Path(path_type=Path), metavar="FOLDER", help="Where run folders are made.  "
              "[default: runs/studies/NAME]")
@click.option("--dry-run", is_flag=True, help="Check every cell, count them, and exit.")
@click.option("--status", "mode", flag_value="status", help="Print which cells are done, failed and missing, and exit.")
@click.option("--table", "mode", flag_value="table", help="Print what the results say, and exit.")
@click.option("--plot", "mode", flag_value="plot", help="Draw what the results say, and exit; `plot --study` does too.")
@click.option("--target", metavar="ACCURACY", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="With --table or --plot: another accuracy than the file's whose time is compared.")
@click.option("--to", type=click.Path(path_type=Path), metavar="FOLDER", help="Where --plot writes.  [default: the "
              "folder of the results]")
@click.option("--sbatch", metavar="OPTIONS", default="", help="Options of sbatch, e.g. '--nodes=2 --time=1:00:00'.")
@click.option("--checkpoints", is_flag=True, help="Keep the checkpoints of finished cells: they are large.")
def study(file: Path, executor: str | None, jobs: int | None, out: Path | None, runs: Path | None, dry_run: bool,
          mode: str | None, target: float | None, to: Path | None, sbatch: str, checkpoints: bool) -> None:
    """Run a study: each combination of its axes, for several seeds, at the best rate of a list.

    Cells that have a result are not run again. Repeat the command after an interruption, or on another machine with the
    same results. `dsgd_mpi/study/plan.py` and jobs/studies show what a file may say.
    """
    made = read(file, executor or "")
    made.target = target or made.target
    if out:
        made.results = out
    folder = runs or Path("runs/studies") / made.name
    if mode == "status":
        show_status(made, folder)
    elif mode == "table":
        wide().print(table_of(made, outcomes(made)))
    elif mode == "plot":
        from dsgd_mpi.study.figures import draw_study
        click.echo("\n".join(map(str, draw_study(made, outcomes(made), to or made.results))))
    else:
        check(made)
        if dry_run:
            click.echo(counted(made))
        else:
            sys.exit(carry_out(made, folder, jobs, sbatch, checkpoints))


def counted(study_: Study) -> str:
    """What would be run."""
    accuracy = reader(study_)
    known = study_.known(accuracy)
    text = f"{study_.name}: {len(study_.groups)} groups, {study_.expected(accuracy)} cells"
    if study_.rates:
        trials = {cell.hash for group in study_.groups for cell in study_.trials(group, accuracy)}
        text += f", {len(trials)} of them to choose a rate of {len(study_.rates)} with seed {study_.seeds[0]}"
        text += f", and {study_.beyond} more where the best is the first or the last" if study_.beyond else ""
    return f"{text}; {sum(accuracy(cell) is not None for cell in known)} have a result"


def check(study_: Study) -> None:
    """UsageError about the first cell that could not be run, before any is."""
    prepared: dict[str, Prepared] = {}
    datasets: dict[str, Dataset] = {}
    accuracy = reader(study_)
    for group in study_.groups:
        for cell in study_.trials(group, accuracy) or [group.cell]:
            config = replace(cell.config, lr=0.1, seed=0)
            key = repr(config)
            try:
                if key not in prepared:
                    prepared[key] = prepare(config, None, datasets.get(config.data))
                    datasets[config.data] = prepared[key].dataset
                if cell.gradients == "real":
                    for seed in study_.seeds:           # images may be shared out by it
                        fit(replace(prepared[key], config=replace(config, seed=seed)), cell.ranks)
                elif not config.steps:
                    raise UsageError("gradients = \"none\": expected steps, the number to simulate, found none")
                if cell.place:
                    scaled(Simulation(cell.place.machine, cell.ranks, cell.gradients,       # type: ignore[arg-type]
                                      cell.as_model), prepared[key])
            except UsageError as error:
                raise UsageError(f"{study_.path}: {group.label} on {cell.ranks} ranks: {error.format_message()}"
                                 ) from None


# running

@cache
def commit() -> str | None:
    """Of the checkout that this program is run from, with a + if files in it were changed; None outside of one."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    with suppress(OSError):
        return subprocess.run(words, capture_output=True, encoding="utf-8").stdout.strip() or None
    return None


def carry_out(study_: Study, folder: Path, jobs: int | None, sbatch: str, checkpoints: bool) -> int:
    """The exit status: 1 if a cell failed, 75 if it was interrupted. UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        study_.results.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            copy = study_.results / "study.toml"
            if not copy.exists() or copy.read_bytes() != study_.path.read_bytes():
                shutil.copyfile(study_.path, copy)
            if study_.executor == "slurm":
                return submit(study_, folder, sbatch, checkpoints)
            one_each = study_.executor == "simulate"
            jobs = jobs or (len(os.sched_getaffinity(0)) if one_each else 1)
            with Children() as children:
                execute = children.simulated if one_each else children.local
                return run_all(study_, execute, folder, jobs, children, checkpoints)
    except OSError as error:
        raise UsageError(f"{error.filename or folder}: cannot be written ({error.strerror}); choose another --out or "
                         "--runs") from None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No two studies run in one folder. The kernel forgets the lock of a process that is gone."""
    with open(folder / "study.lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder}: another `study` runs cells there; wait for it, or choose another --runs"
                             ) from None
        yield


def run_all(study_: Study, execute: Execute, folder: Path, jobs: int, children: Children | None = None,
            checkpoints: bool = False) -> int:
    """First the cells that are known, and then those of which the rate has become known. The exit status."""
    accuracy, tried = reader(study_), set[str]()
    with Report() as report, ThreadPoolExecutor(jobs) as pool:
        while True:
            cells = [cell for cell in study_.known(accuracy) if cell.hash not in tried]
            tried |= {cell.hash for cell in cells}
            found = [cell for cell in cells if accuracy(cell) is not None]
            missing = [cell for cell in cells if accuracy(cell) is None]
            report.expect(study_.expected(accuracy), len(found))
            if not missing:
                break
            waiting: dict[Future[str], Cell] = {
                pool.submit(one, study_, cell, folder / cell.name, execute, children, checkpoints): cell
                for cell in missing}
            left = set(waiting)
            while left:
                done, left = wait(left, 0.5, FIRST_COMPLETED)
                for each in done:
                    report.ended(waiting[each], each.result(), load(study_, waiting[each]))
                if children and children.stopping:
                    for each in left:
                        each.cancel()
                    left = {each for each in left if not each.cancelled()}
            if children and children.stopping:
                report.say("interrupted; the same command goes on")
                return STOPPED
        report.say(report.total_line(study_))
    return 1 if report.failed else 0


def one(study_: Study, cell: Cell, folder: Path, execute: Execute, children: Children | None = None,
        checkpoints: bool = False) -> str:
    """Runs a cell and keeps its result. Why it failed, or ''."""
    start = time.perf_counter()
    content = gather(cell, folder)          # it may have been run without this process: by a job array, for example
    status = 0
    if content is None:
        if children and children.stopping:
            return "stopped"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "failed").unlink(missing_ok=True)
        status = execute(cell, folder)
        if children and children.stopping and status not in ENDED:
            return "stopped"
        content = gather(cell, folder) if status in ENDED else None
    if content is None:
        why = last_line(folder / "log") or f"exit status {status}"
        (folder / "failed").write_text(f"{why}\n", encoding="utf-8")
        return why
    write(study_, cell, {**content, "took_s": round(time.perf_counter() - start, 1), "commit": commit()})
    for each in () if checkpoints else folder.glob("checkpoint-*"):
        shutil.rmtree(each, ignore_errors=True)
    return ""


def last_line(path: Path) -> str:
    """Of what a run printed: an error comes last."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    errors = [line for line in lines if line.startswith("Error")]
    return (errors or lines or [""])[-1].strip()[:300]


class Children:
    """The processes of cells. SIGINT and SIGTERM ask them to stop, which saves them, and nothing else to begin."""

    def __init__(self) -> None:
        self.stopping = False
        self.running: set[subprocess.Popen[bytes]] = set()
        self.lock = threading.Lock()
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Children:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self.stop)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def stop(self, *_: object) -> None:
        self.stopping = True
        for each in list(self.running):
            with suppress(OSError):
                each.terminate()

    def run(self, words: list[str], folder: Path) -> int:
        """Its exit status; what it prints goes to the folder's log."""
        environment = {key: value for key, value in os.environ.items() if key not in OURS}
        with open(folder / "log", "wb") as log:
            log.write(f"{' '.join(words)}\n".encode())
            log.flush()
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                                       start_new_session=True)
        with self.lock:
            self.running.add(process)
        try:
            if self.stopping:
                process.terminate()
            asked = 0.0
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(0.5)
                if self.stopping:
                    asked = asked or time.monotonic()
                    if time.monotonic() - asked > GRACE_S:
                        process.kill()
        finally:
            with self.lock:
                self.running.discard(process)

    def simulated(self, cell: Cell, folder: Path) -> int:
        assert cell.place
        cluster = cell.place.name
        if cell.place.changes:
            cluster = str(folder / "changed-cluster.toml")
            Path(cluster).write_text(tomli_w.dumps(cell.place.entries), encoding="utf-8")
        return self.run([sys.executable, "-m", "dsgd_mpi", "simulate", "--cluster", cluster, *cell.words(),
                         *of_a_run(folder), "--threads", "1"], folder)

    def local(self, cell: Cell, folder: Path) -> int:
        return self.run([mpirun(), "-n", str(cell.ranks), sys.executable, "-m", "dsgd_mpi.train", *cell.words(),
                         *of_a_run(folder)], folder)


OURS = {f"DSGD_{name.upper()}" for name in (*FIELDS, "config", "cluster", "ranks", "gradients", "as_model")}


def of_a_run(folder: Path) -> list[str]:
    return ["--out", str(folder), "--auto-resume", "--quiet", "--keep", "1"]


def mpirun() -> str:
    """DSGD_MPIRUN, or that of this Python's environment, or the first on PATH. UsageError."""
    beside = Path(sys.executable).with_name("mpirun")
    chosen = os.environ.get("DSGD_MPIRUN") or (str(beside) if beside.exists() else "mpirun")
    found = shutil.which(chosen)
    if not found:
        raise UsageError(f"{chosen}: expected a program that starts MPI ranks, found none; install one with pip "
                         "install 'dsgd_mpi[mpich]', or name one in DSGD_MPIRUN")
    return found


class Report:
    """A progress bar on a terminal, else a line for each cell."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True, markup=False)
        self.total, self.done = 0, 0
        self.failed: dict[str, str] = {}
        self.ran = 0                        # since the start
        self.began = time.monotonic()
        self.bar: Progress | None = None

    def __enter__(self) -> Report:
        if self.console.is_terminal:
            self.bar = Progress(TextColumn("cell"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(),
                                TextColumn("{task.fields[left]}"), console=self.console)
            self.task = self.bar.add_task("", total=self.total, left="")
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar:
            self.bar.stop()

    def say(self, text: str) -> None:
        self.console.print(text)

    def expect(self, total: int, had: int) -> None:
        """So many cells, and `had` more of them with a result before they were run."""
        self.total, self.done = total, self.done + had
        self._show()

    def ended(self, cell: Cell, why: str, result: Result | None) -> None:
        if why == "stopped":
            return
        self.done += 1
        self.ran += 1
        if why:
            self.failed[cell.name] = why
            said = f"failed: {why}"
        else:
            assert result
            said = "diverged" if result.diverged else f"accuracy {result.accuracy:.2%}"
            if result.summary.get("accuracy") is None and not result.diverged:
                said = f"{result.images_per_s:,.0f} images/s"
        left = self.left()
        if not self.bar or why:
            self.say(f"[{self.done}/{self.total}] {cell.name}: {said}{left and f', {left}'}")
        self._show()

    def left(self) -> str:
        """How long the rest will take, by what has been done since the start."""
        seconds = (self.total - self.done) * (time.monotonic() - self.began) / max(1, self.ran)
        return f"about {spoken(seconds)} left" if self.ran and self.done < self.total else ""

    def _show(self) -> None:
        if self.bar:
            self.bar.update(self.task, total=self.total, completed=self.done, left=self.left())

    def total_line(self, study_: Study) -> str:
        lines = [f"{self.done - len(self.failed)} of {self.total} cells have a result in {study_.results}"]
        lines += [f"failed: {name}: {why}" for name, why in self.failed.items()]
        if self.failed:
            lines.append("the same command tries the failed ones again; what they printed is in their folder's log")
        return "\n".join(lines)


def spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# a job array

def submit(study_: Study, folder: Path, sbatch: str, checkpoints: bool) -> int:
    """Keeps what has been run, and submits what has not. The exit status."""
    accuracy = reader(study_)

    def nothing(cell: Cell, at: Path) -> NoReturn:
        raise AssertionError
    for _ in range(2):                      # the second time, rates are known
        for cell in study_.known(accuracy):
            if accuracy(cell) is None and gather(cell, folder / cell.name) is not None:
                one(study_, cell, folder / cell.name, nothing, None, checkpoints)
    seen: dict[str, int] = {}
    for number, cell in study_.slots(accuracy).items():
        if accuracy(cell) is None:
            seen.setdefault(cell.hash, number)
    if not seen:
        click.echo(f"all cells that are known have a result in {study_.results}")
        return 0
    script = Path("slurm/scaling_array.sh")
    if not script.exists() or not shutil.which("sbatch"):
        raise UsageError("executor slurm: expected sbatch, and slurm/scaling_array.sh in the current folder; start it "
                         "on a log-in node, in a copy of the repository")
    numbers = ",".join(map(str, sorted(seen.values())))
    words = ["sbatch", f"--job-name={study_.name}", f"--array={numbers}", *sbatch.split(), str(script)]
    done = subprocess.run(words, env={
        **os.environ, "DSGD_GRID": str(study_.path), "DSGD_GRID_RESULTS": str(study_.results), "DSGD_OUT": str(folder)})
    click.echo(f"{len(seen)} cells submitted; once they are done, the same command keeps their results and submits "
               "what depends on them")
    return done.returncode


# what there is

def wide() -> Console:
    """For tables, whose columns are not squeezed where they go to a file."""
    console = Console(soft_wrap=True, markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 240
    return console


def show_status(study_: Study, folder: Path) -> None:
    """A table: groups, and how many of their cells are done, failed and missing."""
    accuracy = reader(study_)
    table = Table(title=f"{study_.name}: cells", title_justify="left")
    for heading in ("algorithm", "ranks", "of"):
        table.add_column(heading, overflow="fold")
    for heading in ("done", "diverged", "failed", "missing"):
        table.add_column(heading, justify="right")
    failed: dict[str, str] = {}
    sums: Counter[str] = Counter()
    counted_: set[str] = set()
    for group in study_.groups:
        cells = {cell.hash: cell for cell in [*study_.trials(group, accuracy), *(study_.cells(group, accuracy) or [])]}
        states: Counter[str] = Counter()
        for cell in cells.values():
            result, mark = load(study_, cell), folder / cell.name / "failed"
            state = "done" if result else "failed" if mark.exists() else "missing"
            if result and result.diverged:
                state = "diverged"
            if state == "failed":
                failed[cell.name] = last_line(mark)
            states[state] += 1
            sums[state] += cell.hash not in counted_
            counted_.add(cell.hash)
        if study_.cells(group, accuracy) is None:
            states["missing"] += len(study_.seeds) - 1
            sums["missing"] += len(study_.seeds) - 1
        table.add_row(group.label, str(group.ranks), ", ".join(group.facet.values()),
                      *(str(states[state] or "") for state in ("done", "diverged", "failed", "missing")))
    console = wide()
    console.print(table)
    console.print(", ".join(f"{sums[state]} {state}" for state in ("done", "diverged", "failed", "missing")))
    for name, why in failed.items():
        console.print(f"failed: {name}: {why}")


