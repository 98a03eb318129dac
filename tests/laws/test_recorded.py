"""A refactoring shows the same bits: every algorithm on a small problem, on simulated clusters, as it was recorded.

Element-wise arithmetic alone is done, which IEEE 754 fixes to the bit, so the recording holds on every processor; what
is rounded first has products of matrices, too. Where a change is meant to change the numbers, `python -m
tests.laws.test_recorded` records them anew.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dsgd_mpi import algorithms
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.net.simulated.machine import star
from tests.support.quadratic import Quadratic, train

RECORDED = Path(__file__).with_name("recorded.json")
ROUNDED = ("demo",)                         # to 9 digits
# who comes first: no matter of microseconds; two ranks are a node
UNEVEN = replace(star(gradient_s=lambda rank, step: 0.1 + rank / 73), ranks_per_node=2)
CASES = {" ".join([name, *(f"{key}={value}" for key, value in options.items())]) + f" on {size}": (name, options, size)
         for name in algorithms.names() for options in algorithms.find(name).variants for size in (1, 2, 4)}


def digest(name, options, size):
    """Of every rank's model and momentum, and of the answer."""
    def main(host):
        algorithm = algorithms.find(name)(**options)
        algorithm.default_optimizer = "sgd"     # the powers in AdamW differ from processor to processor
        x, sgd = train(host, algorithm, Quadratic(host.rank), 15, 0.01)
        algorithm.rest(x)
        return x.copy(), sgd.state["v"].copy(), np.array(algorithm.answer(x))
    found = hashlib.sha256()
    for parts in Cluster(size, UNEVEN).run(main):
        for part in parts:
            part = np.round(part, 9) + 0.0 if name in ROUNDED else part     # + 0.0: no negative zeros
            found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("case", CASES)
def test_every_algorithm_does_what_was_recorded_to_the_bit(case):
    recorded = json.loads(RECORDED.read_text())
    assert case in recorded, "a new algorithm or variant: python -m tests.laws.test_recorded records it"
    assert digest(*CASES[case]) == recorded[case]


if __name__ == "__main__":
    RECORDED.write_text(json.dumps({case: digest(*parts) for case, parts in sorted(CASES.items())}, indent=1) + "\n")
