"""Generates all tables, benchmarks/results/README.rst, from the results next to it: `python -m benchmarks.table`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.cpu.layers import rate
from benchmarks.cpu.step import TORCH
from benchmarks.gpu.step import TORCH as GPU_TORCH
from benchmarks.shared.cases import CASES, OURS
from benchmarks.shared.contest import quartiles, ratio, summary
from benchmarks.shared.provenance import RESULTS

KINDS = ("gpu-step", "step", "kernels", "share", "waiting", "straggler", "convergence", "wire", "feeding", "logistic",
         "torchft")
TARGET = {"fashion-mnist": 0.85, "cifar10": 0.55}           # test accuracy
HEAD = """\
Results of the benchmarks
=========================

Made by ``python -m benchmarks.table`` from the files in this folder; ``benchmarks/README.rst`` explains how the figures
were measured and what they mean.
"""


def files(kind: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{kind}-*.json"))]


def results(kind: str) -> list[dict[str, Any]]:
    names = list(CASES)
    return sorted(files(kind), key=lambda r: (r["processor"], r["dtype"] != "float32", r.get("mode", "") != "training",
                                              names.index(name_of(r)), r["threads"]))


def name_of(result: dict[str, Any]) -> str:
    case = result["case"]
    return str(case["name"] if isinstance(case, dict) else case)


def rst(rows: Iterable[list[str]], head: list[str]) -> str:
    """A list-table."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in (head, *rows):
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}".rstrip() for i, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def steps() -> str:
    head = ["processor", "step", "threads", "ours, ms (quartiles)", *(f"{name} / ours" for name in TORCH),
            "ours, GFLOP/s of GEMM's", "memory, MiB: ours", "PyTorch"]
    return rst(map(step_row, results("step")), head)


def step_row(result: dict[str, Any]) -> list[str]:
    case, seconds, peaks = result["case"], result["seconds"], result["peak_bytes"]
    against = [f"{ratio(seconds[name], seconds[OURS]):.2f}" if name in seconds
               else result["failed"].get(name, "not run") for name in TORCH]
    rival = min((peaks[name] for name in list(TORCH)[:2] if name in peaks), default=0)
    return [result["processor"],
            f"{case['name']} b{case['batch']} {case['image'][0]}x{case['image'][1]} {result['mode']} {result['dtype']}",
            str(result["threads"]), quartiles(seconds[OURS], 1), *against,
            f"{result['gflop'] / summary(seconds[OURS])[0]:.0f} of {result['gemm_gflops']:.0f}",
            f"{peaks[OURS] / 2**20:.0f}", f"{rival / 2**20:.0f}"]


def gpu_steps() -> str:
    """Contests on GPUs; each may have had some of the rivals only."""
    rows = []
    for result in files("gpu-step"):
        seconds = result["seconds"]
        against = [f"{ratio(seconds[name], seconds[OURS]):.2f}" if name in seconds
                   else result["failed"].get(name, "not run") for name in GPU_TORCH]
        middle = summary(seconds[OURS])[0]
        rows.append([result["gpu"], f"{result['case']} b{result['batch']} {result['dtype']}", result["commit"],
                     quartiles(seconds[OURS], 2), f"{result['batch'] / middle:,.0f}", *against,
                     f"{result['roofline_s'] / middle:.0%}"])
    head = ["GPU", "step", "commit", "ours, ms (quartiles)", "images/s", *(f"{name} / ours" for name in GPU_TORCH),
            "of the roofline"]
    return rst(rows, head)


def layers() -> str:
    """Processors and data types side by side."""
    found = results("kernels")
    kinds = list(dict.fromkeys(kind_of(result) for result in found))
    rows: dict[str, dict[str, tuple[str, str]]] = {}
    for result in found:
        for name, row in result["rows"].items():
            label = f"{result['case']} b{result['batch']} {name}"
            rows.setdefault(label, {})[kind_of(result)] = layer_cells(row, result)
    what = ("PyTorch / ours", "rate of the machine's")
    head = ["layer and pass", *(f"{kind}: {each}" for kind in kinds for each in what)]
    cells = ([label, *(cell for kind in kinds for cell in row.get(kind, ("", "")))] for label, row in rows.items())
    return rst(cells, head)


def kind_of(result: dict[str, Any]) -> str:
    return f"{result['processor']} {result['dtype']}"


def layer_cells(row: dict[str, Any], result: dict[str, Any]) -> tuple[str, str]:
    mine, theirs = row["seconds"].values()
    return f"{ratio(theirs, mine):.2f}", rate(row, result["gemm_gflops"], result.get("copy_gb_s"))


def shares() -> str:
    """Networks side by side, the largest part first."""
    found = {f"{result['case']} b{result['batch']}, {kind_of(result)}": medians(result) for result in results("share")}
    names = list(dict.fromkeys(part for parts in found.values() for part in parts))
    rows = [[part, *(f"{100 * parts.get(part, 0) / sum(parts.values()):.1f} %" for parts in found.values())]
            for part in names]
    return rst(rows, ["part of a step", *found])


def medians(result: dict[str, Any]) -> dict[str, float]:
    parts = {name: summary(samples)[0] for name, samples in result["seconds"].items()}
    return dict(sorted(parts.items(), key=lambda item: -item[1]))


def waiting() -> str:
    head = ["processor", "busy neighbours", "GOMP_SPINCOUNT", "ms a step (quartiles)"]
    rows = []
    for result in results("waiting"):
        for count, everyone in result["seconds"].items():
            for spins, samples in everyone.items():
                rows.append([result["processor"], count, spins, quartiles(samples, 1)])
    return rst(rows, head)


def straggler() -> str:
    """Throughput of all ranks with a slow one, relative to that without."""
    rows = [[algorithm, f"{np.median(samples):.0%}", f"{min(samples):.0%} to {max(samples):.0%}"]
            for result in files("straggler") for algorithm, samples in result["samples"].items()]
    return rst(rows, ["algorithm", "rate (median of 3)", "range"])


def wire() -> str:
    """Averages in 32 and in 16 bits, and the bandwidth below which halving the bytes pays off."""
    def rows(result: dict[str, Any]) -> Iterable[list[str]]:
        whole, ranks = summary(result["seconds"]["float32"])[0], result["ranks"]
        saved = 2 * (ranks - 1) / ranks * 2 * result["numbers"]
        for kind, samples in result["seconds"].items():
            pays = f"{saved / (summary(samples)[0] - whole) / 1e9:.1f}" if kind != "float32" else ""
            yield [kind, str(ranks), quartiles(samples, 1), pays]
    head = ["on the wire", "ranks", "mean, ms (quartiles)", "pays below, GB/s a rank"]
    return rst((row for result in files("wire") for row in rows(result)), head)


def feeding() -> str:
    """Steps of a rank on devices of several speeds, as a share of the device's own rate."""
    def rows(result: dict[str, Any]) -> Iterable[list[str]]:
        for each, samples in result["seconds"].items():
            middle, _, _ = summary(samples)
            share = f"{float(each) / 1e3 / middle:.0%}" if float(each) else ""
            yield [each, quartiles(samples), f"{result['batch'] / middle:,.0f}", share]
    head = ["device, ms a step", "rank, ms a step (quartiles)", "images/s", "of the device's rate"]
    return rst((row for result in files("feeding") for row in rows(result)), head)


def convergence() -> str:
    head = ["task", "algorithm", "best rate", "seeds", "test accuracy", "spread", "less than allreduce, points",
            "ranks' own models: mean (range)", "target", "steps to it", "time to it, s"]
    return rst((row for result in files("convergence") for row in convergence_rows(result)), head)


def convergence_rows(result: dict[str, Any]) -> Iterable[list[str]]:
    """A line for each algorithm at its best rate, compared with all-reduce at its own on the same seeds."""
    task = "{data}, {model}, {ranks} ranks, epochs: {epochs}".format(**result)
    reference = {run["seed"]: run["accuracy"] for run in at_best_rate(result["runs"].get("allreduce", []))[0]}
    for algorithm, every in result["runs"].items():
        runs, rate = at_best_rate(every)
        accuracies = [run["accuracy"] for run in runs]
        less = [100 * (reference[run["seed"]] - run["accuracy"]) for run in runs if run["seed"] in reference]
        there = [row for run in runs if (row := arrival(run, TARGET[result["data"]]))]
        steps, seconds = ([f"{np.median([row[i] for row in there]):,.0f}" for i in (0, 1)] if there else ("", ""))
        reached = f" ({len(there)} of {len(runs)} runs)" if len(there) < len(runs) else ""
        yield [task, algorithm, rate, str(len(runs)), f"{np.mean(accuracies):.2%}",
               f"{min(accuracies):.2%} to {max(accuracies):.2%}", f"{np.mean(less):+.2f}" if less else "",
               own_models(runs), f"{TARGET[result['data']]:.0%}", steps + reached, seconds]


def logistic() -> str:
    """A line for each method, those first that end nearest to the optimum."""
    def rows(result: dict[str, Any]) -> Iterable[list[str]]:
        task = "{ranks} ranks, {partition}, {batch} images a rank, {steps} steps".format(**result)
        ends = {name: min((losses[-1], lr) for lr, losses in of_rates.items())
                for name, of_rates in result["curves"].items()}
        for name, (off, lr) in sorted(ends.items(), key=lambda each: each[1]):
            yield [task, name, f"{lr} of {result['rates'].replace(',', ', ')}", f"{off:.2e}",
                   f"{off / ends['allreduce'][0]:.1f}" if "allreduce" in ends else ""]
    head = ["task", "method", "best rate", "f(answer) - f*", "times all-reduce's"]
    found = [row for result in files("logistic") for row in rows(result)]
    return rst(found, head) if found else ""


def at_best_rate(runs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The runs at the rate whose mean accuracy is highest, among the rates with most seeds; that rate, of all tried.

    Runs of older versions name no rate: all had the same, which was not tuned.
    """
    by_rate: dict[float, list[dict[str, Any]]] = {}
    for run in runs:
        by_rate.setdefault(run.get("rate", 0.0), []).append(run)
    if not by_rate:
        return [], ""
    best = max(by_rate, key=lambda rate: (len(by_rate[rate]), np.mean([run["accuracy"] for run in by_rate[rate]])))
    return by_rate[best], f"{best:g} of {', '.join(f'{rate:g}' for rate in sorted(by_rate))}" if best else "not tuned"


def own_models(runs: list[dict[str, Any]]) -> str:
    """Accuracies of the models that the ranks train, at the end of the runs, where they differ."""
    known = [run for run in runs if run.get("own_accuracy_mean") is not None]
    if not known:
        return ""
    least, most = (of(run[f"own_accuracy_{of.__name__}"] for run in known) for of in (min, max))
    return f"{np.mean([run['own_accuracy_mean'] for run in known]):.2%} ({least:.2%} to {most:.2%})"


def arrival(run: dict[str, Any], target: float) -> tuple[float, float] | None:
    """Steps and seconds of training at the first evaluation that reaches the target."""
    return next(((row["step"], row["wall_s"] - row["eval_s"]) for row in run["evaluations"]
                 if row["accuracy"] >= target), None)


def origin() -> str:
    """Where the figures come from: a line for each machine, commit and day."""
    seen = sorted({(r["machine"], r["cores"], r["commit"], r["date"], *sorted(r["versions"].items()))
                   for kind in KINDS for r in files(kind)})
    said = [f"{machine}, {cores} cores, commit {commit.replace('+changes', ' with changes that were not committed')}, "
            f"{date}; {', '.join(' '.join(v) for v in versions)}." for machine, cores, commit, date, *versions in seen]
    return "\n".join(f"- {line}" for line in said) + "\n"


TABLES = {"Machines and commits": origin, "Whole steps on a GPU": gpu_steps, "Whole steps": steps,
          "Shares of a step": shares, "Waiting threads": waiting,
          "Stragglers": straggler, "Learning": convergence, "Distance from a known optimum": logistic,
          "16 bits on the wire": wire, "Feeding a GPU": feeding, "Layers": layers}


def page() -> str:
    tables = {title: table() for title, table in TABLES.items()}
    sections = (f"{title}\n{'-' * len(title)}\n\n{text}" for title, text in tables.items() if text)
    return "\n".join([HEAD, *sections])


def main() -> None:
    (RESULTS / "README.rst").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
