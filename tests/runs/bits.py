"""Records what a fixed set of runs comes to, to the bit: losses, every rank's model, the model that is kept.

    python -m tests.runs.bits FILE.json         records; with a FILE.json that is there, only what it does not hold yet

A refactoring shows the same bits: record with the tree as it was, then compare with the tree as it is (`--against`).
Only what a user has is used, the command line and the run folder, so that any two versions can be compared. Sums of
floats depend on the processor's vector instructions, so a recording is valid for one kind of processor.
"""

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np

from tests.support.jobs import run, train

SHORT = ("--steps", 8, "--batch", 4, "--log-every", 1, "--threads", 1, "--lr", 0.05, "--warmup", 0,
         "--bn", "average")
EVERY = ("adpsgd", "allreduce", "backup", "dpsgd", "easgd", "gossip", "local_sgd", "parameter_server", "topk")


def algorithm(name, *options):
    return ("--algorithm", name, *(word for option in options for word in ("--set", option)))


SGP, GOSGD = algorithm("sgp", "overlap=0"), algorithm("gosgd", "probability=0.5")
SLOWMO = algorithm("local_sgd", "period=3", "post_local=2", "slow_momentum=0.3")
COMPENSATED = algorithm("parameter_server", "servers=1", "staleness=compensate")
# name: ranks, options. With several ranks only what is deterministic over MPI
RUNS = {
    **{f"{name} alone": (1, algorithm(name)) for name in EVERY},
    "sgp alone": (1, SGP),
    "gosgd alone": (1, GOSGD),
    "slowmo alone": (1, SLOWMO),
    "resnet20 alone": (1, ("--model", "resnet20")),
    "bfloat16 alone": (1, ("--dtype", "bfloat16")),
    "reference alone": (1, ("--kernels", "reference", "--dtype", "float64")),
    "two threads": (1, ("--threads", 2, "--batch", 16)),
    "allreduce 2": (2, algorithm("allreduce", "bucket_mb=0.05")),
    "allreduce 4": (4, algorithm("allreduce")),
    "allreduce bfloat16 2": (2, (*algorithm("allreduce"), "--dtype", "bfloat16")),
    "allreduce resnet20 2": (2, (*algorithm("allreduce"), "--model", "resnet20", "--schedule", "step")),
    "allreduce compressed 4": (4, (*algorithm("allreduce"), "--compress", "bfloat16")),
    "backup 2": (2, algorithm("backup", "backups=0")),
    "parameter server 2": (2, COMPENSATED),
    "gossip 2": (2, algorithm("gossip", "probability=0.6")),
    "gossip 4": (4, (*algorithm("gossip"), "--augment", "--smoothing", 0.1, "--bn", "recalibrate")),
    "gossip bfloat16 4": (4, (*algorithm("gossip"), "--dtype", "bfloat16", "--compress", "bfloat16")),
    "gossip resnet20 2": (2, (*algorithm("gossip"), "--model", "resnet20")),
    "dpsgd 2": (2, algorithm("dpsgd")),
    "dpsgd 4": (4, algorithm("dpsgd", "graph=random")),
    "local_sgd 2": (2, algorithm("local_sgd", "period=3")),
    "slowmo 4": (4, SLOWMO),
    "sgp 2": (2, SGP),
    "sgp 4": (4, SGP),
    "topk 2": (2, algorithm("topk", "share=0.1")),
    "topk 4": (4, algorithm("topk", "share=0.1")),
}
RESUMED = ("allreduce 2", "gossip 4", "slowmo alone", "topk 2", "sgp 2")


def small_data(folder):
    """400 + 40 of the built-in images: a run is over in two seconds."""
    path = folder / "small.h5"
    status, output, errors = run("-m", "dsgd_mpi", "data", "subset", "--from", "fashion-mnist-12k", "--to", path,
                                 "--train", 400, "--test", 40)
    assert status == 0, output + errors
    return path


def measure(name, data, folder, back_to=None):
    """The losses of a run (of rank 0) and a hash of each array that it leaves.

    `back_to`: the step whose checkpoint it is resumed from, its later one being lost.
    """
    ranks, options = RUNS[name]
    started(*SHORT, *options, "--data", data, "--out", folder, "--checkpoint-every", back_to or 0, ranks=ranks)
    if back_to:
        shutil.rmtree(max(folder.glob("checkpoint-*")))
        assert [path.name for path in folder.glob("checkpoint-*")] == [f"checkpoint-{back_to:09d}"]
        (folder / "model.h5").unlink()
        started("--resume", folder, ranks=ranks)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    paths = [*sorted(max(folder.glob("checkpoint-*")).glob("rank*.h5")), folder / "model.h5"]
    return {"losses": [line["loss"] for line in lines], **{path.name: hash_of(path) for path in paths}}


def started(*words, ranks):
    status, output, errors = train(*words, ranks=ranks, limit_s=120)
    assert status == 0, output + errors


def hash_of(path):
    """Of the flat vector of a checkpoint, or of all arrays of a model."""
    digest = hashlib.sha256()
    with h5py.File(path) as file:
        for key in ("x",) if "x" in file else sorted(file):
            digest.update(np.ascontiguousarray(file[key][()]).tobytes())
    return digest.hexdigest()[:16]


def processor():
    """What floating-point sums depend on: the processor's kind and the widest instructions that oneDNN takes."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = said["flags"].split()
    widest = next((flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags), "no AVX")
    return f"{said['vendor_id']} family {said['cpu family']} model {said['model']}, {widest}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="the recording, made or completed")
    parser.add_argument("--against", action="store_true", help="compare with the recording; status 1 if any differs")
    asked = parser.parse_args()
    recordings = json.loads(asked.file.read_text()) if asked.file.exists() else {}
    mine = recordings.setdefault(processor(), {})
    wrong = 0
    with TemporaryDirectory() as place:
        data = small_data(Path(place))
        for name in RUNS:
            if name in mine and not asked.against:
                continue
            found = measure(name, data, Path(place) / name.replace(" ", "-"))
            if not asked.against:
                mine[name] = found
                asked.file.write_text(json.dumps(recordings, indent=1) + "\n")
            elif mine.get(name) != found:
                wrong += 1
            same = "same" if mine.get(name) == found else "DIFFERENT"
            print(f"{name}: {same if asked.against else 'recorded'}", flush=True)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
