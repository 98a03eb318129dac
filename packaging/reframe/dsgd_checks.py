"""ReFrame checks: do all ranks communicate, how fast are the verbs, does training learn, and how fast.

    reframe -C YOUR_SITE.py -c packaging/reframe -r [-S tasks=16] [-S per_node=8]

On one machine: -C packaging/reframe/local.py. DSGD_PYTHON chooses the Python; the default is python3.
"""

import os
import sys
from pathlib import Path

import reframe as rfm
import reframe.utility.sanity as sn
from reframe.core.builtins import deferrable, parameter, performance_function, run_after, sanity_function, variable

sys.path.insert(0, str(Path(__file__).parent))
import lines

VERBS = ("mean", "exchange", "window add", "window read")


class OnAllRanks(rfm.RunOnlyRegressionTest):
    """A check that runs on `tasks` ranks, `per_node` of them per node."""

    tasks = variable(int, value=4)
    per_node = variable(int, value=0)       # 0: up to the launcher
    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    executable = os.environ.get("DSGD_PYTHON", "python3")
    time_limit = "10m"

    @run_after("init")
    def place(self):
        self.num_tasks = self.tasks
        if self.per_node:
            self.num_tasks_per_node = self.per_node


@rfm.simple_test
class Doctor(OnAllRanks):
    """Every verb between all ranks at once."""

    descr = "bandwidth of each verb"
    executable_opts = ["-m", "dsgd_mpi", "doctor"]

    @sanity_function
    def well(self):
        return sn.assert_found(lines.WELL, self.stdout)

    @run_after("init")
    def measured(self):
        self.perf_variables = {verb.replace(" ", "_"): sn.make_performance_function(self.bandwidth, "GB/s", verb)
                               for verb in VERBS}

    @deferrable
    def bandwidth(self, verb):
        return sn.extractsingle(lines.BANDWIDTH.format(verb=verb), self.stdout, 1, float)


@rfm.simple_test
class Training(OnAllRanks):
    """One epoch on the built-in images."""

    descr = "accuracy and images/s of an epoch"
    algorithm = parameter(["allreduce", "gossip", "easgd"])
    lowest = variable(float, value=30.0)    # per cent; chance is 10

    @run_after("init")
    def options(self):
        self.executable_opts = ["-m", "dsgd_mpi.train", "--algorithm", self.algorithm, "--epochs", "1", "--out", "run"]

    @sanity_function
    def learnt(self):
        accuracy = sn.extractsingle(lines.ACCURACY, self.stdout, 1, float)
        ranks = sn.extractsingle(lines.RANKS, self.stdout, 1, int)
        return sn.all([sn.assert_found(lines.FINISHED, self.stdout), sn.assert_eq(ranks, self.num_tasks),
                       sn.assert_gt(accuracy, self.lowest)])

    @performance_function("images/s")
    def rate(self):
        return sn.extractsingle(lines.RATE, self.stdout, 1, lambda figure: float(figure.replace(",", "")))
