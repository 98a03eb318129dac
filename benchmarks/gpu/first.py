"""The first hour on a GPU, stage by stage, most important first: `make gpu-first`; docs/gpu.rst has the same by hand.

Each stage is one command, which must end within ten minutes, and answers one question. Its output is kept, and a stage
that fails or takes too long does not end the others. A stage that has passed on this commit is repeated only if it is
named. Nothing but the standard library is needed, since the first stage installs the rest.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.shared import tree

LIMIT_S = 600.0
PYTHON = ".venv-gpu/bin/python"
TESTS = f"{PYTHON} -m pytest -m gpu -W default"
STEP = f"{PYTHON} -m benchmarks.gpu.step --nets resnet50 --batches 256 --dtypes bfloat16\\\n    --rivals"
BATCH_NORM = "tests/unit/test_kernels.py -k 'cudnn and BatchNorm'"
# before every command: where results go, and with them the plans that were timed; tools of the toolkit or of a wheel
SETTINGS = """\
export DSGD_RESULTS="${OUT:-$PWD/benchmarks/results}"
export XDG_CACHE_HOME="$DSGD_RESULTS/gpu-first/cache"
export PATH="$PATH:/usr/local/cuda/bin:$(printf '%s:' .venv-gpu/lib/python3*/site-packages/nvidia/*/bin)"
mkdir -p "$DSGD_RESULTS/gpu-first"
"""


class Stage(NamedTuple):
    """A command for bash, the question that it answers, and the programs and files without which it is not started."""

    name: str
    question: str
    command: str
    needs: tuple[str, ...] = (PYTHON,)


STAGES = (
    Stage("environment", "Can everything be installed from the wheels carried here, beside the machine's PyTorch?",
          "python3 -m venv --system-site-packages .venv-gpu &&\n"
          # where python3 is itself of an environment, the packages of the system's are not those with PyTorch
          f"{PYTHON} -c 'import site, sys; "
          "open(site.getsitepackages()[0] + \"/machine.pth\", \"w\").write(sys.argv[1])'\\\n"
          "    \"$(python3 -c 'import sysconfig; print(sysconfig.get_path(\"purelib\"))')\" &&\n"
          f"{PYTHON} -m pip install --no-index --no-deps wheels/*.whl &&\n"
          f"{PYTHON} -m pip install --no-index --no-deps --no-build-isolation --editable .", ("wheels",)),
    Stage("probe", "Which GPU, driver, clocks and libraries are these, and does anything stand in the way?",
          f"nvidia-smi; nvidia-smi -q -d CLOCK,POWER; {PYTHON} -m pip list\n{PYTHON} -m dsgd_mpi doctor"),
    Stage("kernels", "Does every kernel compute what the reference does, in every data type?",
          f"{TESTS} tests/unit/test_kernels.py tests/laws/test_optim.py"),
    Stage("replay", "Are replays equal to single launches to the bit, does the host never wait, is memory flat?",
          f"{TESTS} tests/gpu/test_gpu.py -k 'replayed or host or memory'"),
    Stage("step", "How long does a training step of ResNet-50 take, next to PyTorch's and to the roofline?",
          f"{STEP} eager"),
    Stage("nets", "Do whole networks train as on the reference, and does cuDNN serve every convolution?",
          f"{TESTS} tests/unit/test_whole_models.py tests/gpu/test_gpu.py\\\n"
          "    -k 'not (replayed or host or memory or ranks)'"),
    Stage("messages", "Do staged messages, GPU-aware MPI and NCCL deliver what host memory does?",
          f"{TESTS} tests/gpu -k 'test_gpu_comm or ranks'"),
    Stage("train", "Does a user's own command train on the GPU?",
          f"{PYTHON} -m dsgd_mpi.train --device gpu --dtype bfloat16 --epochs 2"),
    Stage("racecheck", "Does any kernel of batch norm race in shared memory?",
          f"compute-sanitizer --tool racecheck --error-exitcode 1\\\n    {TESTS}\\\n    {BATCH_NORM}",
          (PYTHON, "compute-sanitizer")),
    Stage("memcheck", "Does any kernel of batch norm read or write beyond its arrays?",
          "compute-sanitizer --tool memcheck --error-exitcode 1\\\n"
          f"    {TESTS} -p benchmarks.gpu.unpooled\\\n    {BATCH_NORM}", (PYTHON, "compute-sanitizer")),
    Stage("graphed", "How long does PyTorch's step take as a CUDA graph?", f"{STEP} 'eager, CUDA graph'"),
    Stage("compiled", "How long does PyTorch's compiled step take?", f"{STEP} torch.compile"),
    Stage("compiled-graphed", "How long does it take compiled, as a CUDA graph?",
          f"{STEP} 'torch.compile, CUDA graph'"),
    Stage("dram", "Which share of the memory's bandwidth does each kernel of a step reach?",
          "ncu --csv --cache-control none --clock-control none --log-file $DSGD_RESULTS/gpu-first/dram.csv\\\n"
          "    --metrics dram__throughput.avg.pct_of_peak_sustained_elapsed,dram__bytes.sum,gpu__time_duration.sum\\\n"
          f"    {PYTHON} -m benchmarks.gpu.once --net resnet50 --batch 256 --dtype bfloat16", (PYTHON, "ncu")),
)


class Outcome(NamedTuple):
    """How a stage ended: passed, failed, timed out or not started; after how long; and why, or its last line."""

    ended: str
    seconds: float
    said: str


def no_gpu() -> str | None:
    """Why there is no GPU to begin with, asked of the driver alone."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver (libcuda.so.1 cannot be loaded)"
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return f"the NVIDIA driver does not start (CUDA error {status})"
    return None if count.value else "the NVIDIA driver finds no device"


def listing(stages: Sequence[Stage] = STAGES) -> str:
    """Everything to be typed, with the questions as comments."""
    return "\n".join([SETTINGS, *(f"# {stage.name}: {stage.question}\n{stage.command}\n" for stage in stages)])


def bash(command: str) -> list[str]:
    return ["bash", "-c", f"{SETTINGS}\n{command}"]


def there(need: str) -> bool:
    """Whether there is such a program on PATH, or such a file."""
    asked = bash(f"command -v '{need}' || test -e '{need}'")
    return subprocess.run(asked, cwd=tree.ROOT, capture_output=True).returncode == 0


def run(stage: Stage, log: Path, limit_s: float) -> Outcome:
    """Runs it, all output going to `log`; when its time is up it is killed with all its children."""
    for need in stage.needs:
        if not there(need):
            return Outcome("not started", 0.0, f"{need} is not there")
    start = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(bash(stage.command), stdin=subprocess.DEVNULL, stdout=output,
                                   stderr=subprocess.STDOUT, cwd=tree.ROOT, start_new_session=True)
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:                            # whatever it has left behind would disturb the next
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = log.read_text(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    seconds, said = time.monotonic() - start, textwrap.shorten(lines[-1], 120) if lines else "no output"
    if status is None:
        return Outcome("timed out", seconds, f"killed; its last line: {said}")
    if "-m pytest" in stage.command and not re.search(r"\d+ passed", text):     # all may have been skipped
        return Outcome("failed", seconds, f"no test passed; {said}")
    return Outcome("failed" if status else "passed", seconds, said)


def kept(record: Path) -> dict[str, Any]:
    """Stage -> outcome, command and commit, of earlier calls."""
    found: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    return found


def hour(stages: Sequence[Stage], folder: Path, limit_s: float, commit: str, again: bool) -> dict[str, Outcome]:
    """Runs the stages in turn. The record is written after each, so that a call that is cut short can be resumed."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "stages.json"
    outcomes = {}
    for stage in stages:
        before, this = kept(record), {"commit": commit, "command": stage.command}
        earlier = before.get(stage.name, {})
        if not again and earlier.get("ended") == "passed" and this.items() <= earlier.items():
            outcomes[stage.name] = Outcome("passed", earlier["seconds"], f"{earlier['said']} (before)")
            continue
        log = folder / f"{stage.name}.txt"
        print(f"{stage.name}: {stage.question}\n  {log}", flush=True)
        outcomes[stage.name] = outcome = run(stage, log, limit_s)
        print(f"  {outcome.ended} after {outcome.seconds:.0f} s: {outcome.said}", flush=True)
        record.write_text(json.dumps({**before, stage.name: {**outcome._asdict(), **this}}, indent=1) + "\n")
    return outcomes


def summary(outcomes: dict[str, Outcome]) -> str:
    return "\n".join(f"{name:16} {outcome.ended:11} {outcome.seconds:5.0f} s  {outcome.said}"
                     for name, outcome in outcomes.items())


def chosen(names: str | None) -> tuple[Stage, ...]:
    """Those named, separated by commas, in the order of the table; ValueError for a name that is not in it."""
    wanted = names.split(",") if names else [stage.name for stage in STAGES]
    unknown = [name for name in wanted if name not in {stage.name for stage in STAGES}]
    if unknown:
        raise ValueError(f"--stages: expected some of {', '.join(stage.name for stage in STAGES)}; "
                         f"found {', '.join(unknown)}")
    return tuple(stage for stage in STAGES if stage.name in wanted)


def refused(save: bool) -> tuple[str, str]:
    """The commit, and why not to begin."""
    if why := no_gpu():
        return "", f"no GPU can be used: {why}; --list prints what would be run on one"
    try:
        return tree.commit(), ""
    except ValueError as reason:
        return "", str(reason) if save else ""


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 0 if all stages passed, 1 if one did not, 2 if none was started."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu.first",
                                     description=(__doc__ or "").split("\n\n")[1],
                                     epilog=f"Stages: {', '.join(stage.name for stage in STAGES)}.")
    parser.add_argument("--list", action="store_true", help="Print the commands and end.")
    parser.add_argument("--stages", metavar="NAME,...", help="Only these, even if they have passed before.")
    parser.add_argument("--python", default=PYTHON, help="That of another environment; nothing is installed then.")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "benchmarks/results"),
                        help="Where results go. [default: $OUT, else benchmarks/results]")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="Seconds a stage. [default: 600]")
    parser.add_argument("--no-save", action="store_true",
                        help="Measure without keeping figures, as from a tree with changes; all output is kept.")
    options = parser.parse_args(words)
    try:
        stages = chosen(options.stages)
    except ValueError as reason:
        parser.exit(2, f"Error: {reason}\n")
    if options.python != PYTHON:
        stages = tuple(stage._replace(command=stage.command.replace(PYTHON, options.python),
                                      needs=tuple(need.replace(PYTHON, options.python) for need in stage.needs))
                       for stage in stages if stage.name != "environment")
    if options.no_save:
        stages = tuple(stage._replace(command=f"{stage.command} --no-save") if "benchmarks.gpu.step" in stage.command
                       else stage for stage in stages)
    if options.list:
        print(listing(stages), end="")
        return 0
    commit, why = refused(save=not options.no_save)
    if why:
        parser.exit(2, f"Error: {why}\n")
    out = options.out.absolute()
    os.environ["OUT"] = str(out)
    outcomes = hour(stages, out / "gpu-first", options.limit, commit, again=options.stages is not None)
    print(f"\n{summary(outcomes)}")
    return 0 if all(outcome.ended == "passed" for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
