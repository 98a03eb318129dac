"""Who waits for whom, in a simulated run."""

from dataclasses import replace

import numpy as np
import pytest

from dsgd_mpi.arrays.flat import Buckets
from dsgd_mpi.net.simulated.cluster import Cluster
from dsgd_mpi.net.simulated.machine import Death, star
from dsgd_mpi.study import timeline


def test_a_wait_is_for_the_last_peer_to_come_and_then_for_the_data(tmp_path):
    """Rank 1 computes for three seconds, others for one; a message takes two."""
    def main(host):
        host.compute(lambda: None)
        host.exchange(np.zeros(1000), host.rank ^ 1).wait()
    cluster = Cluster(4, star(latency_s=0, bytes_per_s=4000, gradient_s=lambda rank, step: 3.0 if rank == 1 else 1.0))
    cluster.traced_s = 10.0
    cluster.run(main)
    found = sorted(timeline.parts(cluster.trace))
    assert found[:3] == [(0, "compute", 0.0, 1.0, None), (0, "network", 3.0, 5.0, None), (0, "wait", 1.0, 3.0, 1)]
    assert found[3:5] == [(1, "compute", 0.0, 3.0, None), (1, "network", 3.0, 5.0, None)]
    assert not [part for part in found if part[0] in (2, 3) and part[1] == "wait"]
    assert sorted(cluster.travels) == [
        (False, (0, 1), 3.0, 5.0), (False, (1, 0), 3.0, 5.0), (False, (2, 3), 1.0, 3.0), (False, (3, 2), 1.0, 3.0)]
    timeline.draw(cluster.trace, cluster.travels, "four ranks", tmp_path / "timeline.png", 5.0)
    assert (tmp_path / "timeline.png").stat().st_size > 5000


def test_whoever_sends_the_last_part_of_a_gradient_that_is_averaged_in_parts_is_waited_for():
    """Rank 1 computes for four seconds, rank 0 for one; a part is ready after half of it, one at its end."""
    def main(host):
        means = []

        def gradient(ready):
            for part in (slice(1, 2), slice(0, 1)):
                ready(part)
                host.progress()
        host.compute(gradient, ready=Buckets(0, lambda part: means.append(host.mean(np.zeros(1)))))
        for each in means:
            each.wait()
    cluster = Cluster(2, star(latency_s=0, bytes_per_s=1e12, gradient_s=lambda rank, step: 4.0 if rank == 1 else 1.0))
    cluster.traced_s = 10.0
    cluster.run(main)
    waits = [part for part in timeline.parts(cluster.trace) if part[1] == "wait"]
    assert [(rank, who) for rank, _, _, _, who in waits] == [(0, 1), (0, 1)]
    assert [(begin, end) for _, _, begin, end, _ in waits] == [pytest.approx((1, 2)), pytest.approx((2, 4))]


def test_a_dead_rank_is_shown(tmp_path):
    machine = replace(star(gradient_s=1.0), death=(Death(0, 0.5, 2.5), Death(1, 20.0)))
    cluster = Cluster(2, machine)
    cluster.traced_s = 10.0
    cluster.run(lambda host: host.compute(lambda: None))
    assert sorted(timeline.parts(cluster.trace)) == [
        (0, "compute", 0.0, 3.0, None), (0, "dead", 0.5, 2.5, None), (1, "compute", 0.0, 1.0, None)]


@pytest.mark.parametrize("until", [0.0, 0.5])
def test_only_what_begins_early_enough_is_kept(until):
    cluster = Cluster(1, star(gradient_s=1.0))
    cluster.traced_s = until
    cluster.run(lambda host: [host.compute(lambda: None) for _ in range(5)])
    assert len(cluster.trace) == (1 if until else 0)
