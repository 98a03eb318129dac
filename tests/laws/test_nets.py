"""The laws of the verbs themselves, on both nets."""

from dataclasses import replace

import numpy as np
import pytest

from dsgd_mpi.arrays.flat import Buckets
from dsgd_mpi.net.compression.half import Compressed
from dsgd_mpi.net.sharded import Sharded
from dsgd_mpi.net.simulated.cluster import Cluster, Deadlock
from dsgd_mpi.net.simulated.machine import Link, star
from tests.support.quadratic import on


@pytest.mark.parametrize("length", [1, 7, 1000, 300_001])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mean_is_the_mean_in_place_and_the_same_bits_everywhere(world, length, dtype):
    def vector(rank):
        return np.random.default_rng(rank).normal(size=length).astype(dtype)

    def main(host):
        x = on(host, vector(host.rank))
        assert host.mean(x).wait() is x
        return x
    means = world.run(main)
    expected = np.mean([vector(rank).astype("float64") for rank in range(world.size)], 0)
    assert all(np.array_equal(x, means[0]) for x in means)
    assert np.allclose(means[0], expected, atol=1e-6)


def test_several_means_of_slices_may_be_under_way_at_once(world):
    def main(host):
        x = on(host, np.full(600_000, float(host.rank)))
        pending = [host.mean(x[part]) for part in (slice(500_000, 600_000), slice(3, 500_000), slice(0, 3))]
        for _ in range(50):
            host.progress()
        for each in reversed(pending):
            each.wait()
        return x
    assert all((x == (world.size - 1) / 2).all() for x in world.run(main))


def test_means_do_not_mix_wherever_the_arrays_lie_and_however_far_a_rank_is(world):
    def main(host):
        arrays = [np.full(size, tens + host.rank) for size, tens in ((4, 10.0), (5, 20.0), (6, 30.0))]
        arrays[::2] = on(host, arrays[0]), on(host, arrays[2])
        first = host.mean(arrays[0])
        for _ in range(5 * host.rank):
            host.progress()
        for pending in [host.mean(x) for x in arrays[:0:-1]] + [first]:
            pending.wait()
        return arrays
    mean = (world.size - 1) / 2
    for a, b, c in world.run(main):
        assert (a == 10 + mean).all()
        assert (b == 20 + mean).all()
        assert (c == 30 + mean).all()


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("length", [1, 7, 1000, 300_001])
def test_16_bits_on_the_wire_change_no_number_that_they_hold_and_round_the_others_alike_everywhere(world, half, length):
    def main(host):
        whole = np.random.default_rng(host.rank).integers(0, 8, length).astype("float32")
        once, rough = on(host, whole * host.size), on(host, np.full(length, np.float32(1 + host.rank / 3)))
        compressed, before = Compressed(host, half), host.traffic.bytes_sent
        compressed.mean(once).wait()
        sent = host.traffic.bytes_sent - before
        compressed.mean(rough).wait()
        peer = host.rank ^ 1 if host.rank ^ 1 < host.size else host.rank
        met = compressed.exchange(on(host, whole), peer).wait()
        compressed.post(on(host, whole), peer)
        host.settle()
        letter, = compressed.collect()
        return whole, once, sent, rough, met, letter.array
    found = world.run(main)
    total = sum(each[0] for each in found)
    error = 2.0**-7 if half == "bfloat16" else 2.0**-10
    for rank, (_, once, sent, rough, met, posted) in enumerate(found):
        peer = rank ^ 1 if rank ^ 1 < world.size else rank
        assert np.array_equal(once, total)
        assert np.array_equal(met, found[peer][0])
        assert np.array_equal(posted, found[peer][0])
        assert np.array_equal(rough, found[0][3])
        assert np.allclose(rough, 1 + (world.size - 1) / 6, rtol=error)
        assert sent == 2 * (world.size - 1) * 2 * length // world.size


def test_exchange_hands_over_what_was_there(world):
    def main(host):
        peer = host.rank ^ 1 if host.rank ^ 1 < host.size else host.rank
        x = on(host, np.full(100_000, float(host.rank)))
        met = host.exchange(x, peer)
        got = met.wait().copy()
        x += 1
        return (got == peer).all()
    assert all(world.run(main))


def test_exchange_of_unequal_lengths_names_the_ranks(world):
    if world.size != 2:
        return                              # a law about two

    def main(host):
        host.exchange(on(host, np.zeros(10 + host.rank)), 1 - host.rank).wait()
    with pytest.raises(RuntimeError, match=r"rank 0.*rank 1|rank 1.*rank 0"):
        world.run(main)


def test_letters_arrive_whole_with_their_notes_in_the_order_sent_once_settled(world):
    def main(host):
        for turn in range(20):
            for peer in range(host.size):
                host.post(on(host, np.full(1000, float(turn), "float32")), peer, note=host.rank + turn / 100)
        host.settle()
        letters = list(host.collect())
        assert all((letter.array == letter.array[0]).all() and letter.array.dtype == "float32" for letter in letters)
        return [(letter.source, float(letter.array[0]), letter.note) for letter in letters]
    for letters in world.run(main):
        for source in range(world.size):
            found = [(turn, note) for sender, turn, note in letters if sender == source]
            assert found == [(turn, source + turn / 100) for turn in range(20)]


def parity(host):
    """The ranks that are even, or odd, as this one is."""
    return list(range(host.rank % 2, host.size, 2))


def test_a_group_has_all_verbs_among_its_ranks_alone(world):
    """The groups take different numbers of steps, and what all ranks do meanwhile does not mix with theirs."""
    def main(host):
        ranks = parity(host)
        group = host.group(ranks)
        assert (group.rank, group.size, group.members) == (ranks.index(host.rank), len(ranks), ranks)
        of_all = host.mean(on(host, np.full(1000, float(host.rank))))
        host.post(on(host, np.full(10, -1.0)), (host.rank + 1) % host.size)
        shared = group.share(on(host, np.full(3 + group.rank, 100.0 * host.rank)))
        for turn in range(5 + 5 * (host.rank % 2)):
            for length in (3, 300_000):
                mean = group.mean(on(host, np.full(length, float(host.rank + turn)))).wait()
                assert (mean == np.mean(ranks) + turn).all()
            peer = (turn - group.rank) % group.size
            assert (group.exchange(on(host, np.full(5, float(host.rank))), peer).wait() == ranks[peer]).all()
            group.post(on(host, np.full(5, float(host.rank))), (group.rank + 1) % group.size, note=turn)
            group.settle()
            letter, = group.collect()
            before = (group.rank - 1) % group.size
            assert (letter.source, letter.note, float(letter.array[0])) == (before, turn, ranks[before])
            shared.add(turn % group.size, on(host, np.full(3 + turn % group.size, 0.5)))
        group.settle()
        own = float(shared.read(group.rank)[0]) - 100 * host.rank
        x = on(host, np.full(7, float(host.rank)))
        group.broadcast(x, group.size - 1)
        host.settle()
        return own, float(x[0]), float(of_all.wait()[0]), [letter.source for letter in host.collect()]
    found = world.run(main)
    for first in range(min(2, world.size)):
        of_group = found[first::2]
        assert sum(own for own, *_ in of_group) == 0.5 * len(of_group) * (5 + 5 * first)
        assert all(last == first + 2 * len(of_group) - 2 for _, last, *_ in of_group)
    for rank, (*_, mean, letters) in enumerate(found):
        assert (mean, letters) == ((world.size - 1) / 2, [(rank - 1) % world.size])


def test_a_group_of_a_group_and_16_bits_in_it(world):
    def main(host):
        half = Compressed(host, "bfloat16").group(parity(host))
        one = half.group([half.rank])
        x = on(host, np.full(1000, np.float32(1 + host.rank)))
        before = host.traffic.bytes_sent
        half.mean(x).wait()
        sent = host.traffic.bytes_sent - before
        one.mean(x).wait()
        return sent, float(x[0]), one.size
    for rank, (sent, mean, size) in enumerate(world.run(main)):
        ranks = range(rank % 2, world.size, 2)
        assert (sent, size) == (2 * (len(ranks) - 1) * 2000 // len(ranks), 1)
        assert mean == pytest.approx(1 + np.mean(ranks), rel=2**-7)


def test_every_rank_is_on_one_node(world):
    for per_node in (0, 1, 2, world.size, world.size + 1):      # 0: as MPI finds them, one machine
        nodes = world.run(lambda host: host.nodes(), per_node=per_node)
        assert all(each == nodes[0] for each in nodes)
        assert sorted(rank for node in nodes[0] for rank in node) == list(range(world.size))
        assert len(nodes[0]) == -(-world.size // (per_node or world.size))


def test_broadcast_and_allgather(world):
    def main(host):
        x = on(host, np.full(5, float(host.rank)))
        root = host.size - 1
        host.broadcast(x, root)
        return x[0], host.allgather(host.rank)
    assert world.run(main) == [(world.size - 1, list(range(world.size)))] * world.size


def test_all_ranks_stop_at_the_same_step_although_one_asks_in_the_middle(world):
    """The ranks are coupled by exchanges, in which a rank that stopped too early would be missed."""
    assert_all_stop_at_one_step(world, lambda host, step: host.rank == host.size // 2 and step >= 40)


def test_all_ranks_may_stop_again_once_they_have_forgotten_that_they_did(world):
    assert_all_stop_at_one_step(world, lambda host, step: host.rank % 2 == 0 and step >= 40, times=3)


def assert_all_stop_at_one_step(world, asked, times=1):
    def main(host):
        x, stopped = on(host, np.zeros(1000)), []
        for _ in range(times):
            for step in range(100_000):
                if host.stop_agreed(step, asked(host, step)):
                    break
                peer = (host.size - 1 - host.rank + step) % host.size   # an involution that differs from step to step
                host.compute(lambda: None)
                host.exchange(x, peer).wait()
            stopped.append(step)
            host.forget_stop()
        return stopped
    found = world.run(main)
    assert all(stopped == found[0] for stopped in found)
    assert all(40 <= step < 1000 for step in found[0])


def test_bytes_are_counted(world):
    def main(host):
        x = on(host, np.zeros(1000, "float32"))
        host.mean(x).wait()
        after_mean = host.traffic.bytes_sent
        host.exchange(x, host.rank ^ 1 if host.rank ^ 1 < host.size else host.rank).wait()
        after_exchange = host.traffic.bytes_sent
        part = host.share(x)
        for owner in range(host.size):
            part.add(owner, part.read(owner))
        after_all = host.traffic.bytes_sent
        whole = Sharded(host, x)
        whole.add(whole.read(np.empty_like(x)))
        return (after_mean, after_exchange - after_mean, after_all - after_exchange,
                host.traffic.bytes_sent - after_all, whole.shared.read(host.rank).size)
    for rank, (mean, exchange, parts, whole, own) in enumerate(world.run(main)):
        assert mean == 2 * (world.size - 1) * 4000 // world.size
        assert exchange == (4000 if rank ^ 1 < world.size else 0)
        assert parts == 2 * (world.size - 1) * 4000
        assert whole == 2 * 4 * (1000 - own)


def test_no_addition_to_shared_memory_is_lost_and_staleness_is_counted(world):
    def main(host):
        shared = host.share(on(host, np.full(1000 + host.rank, 100.0 * host.rank)))
        added = 0
        for turn in range(20):
            owner = (host.rank + turn) % host.size
            assert (shared.read(owner) >= 100 * owner).all()
            shared.add(owner, on(host, np.full(1000 + owner, 0.5)))
            added += 1
            host.progress()
        host.settle()
        own = shared.read(host.rank)
        host.settle()
        return own, added, sum(host.traffic.staleness.values())
    results = world.run(main)
    assert sum((own - 100 * rank).mean() for rank, (own, _, _) in enumerate(results)) == 20 * world.size / 2
    assert all((own == own[0]).all() and own.size == 1000 + rank for rank, (own, _, _) in enumerate(results))
    assert all(added == counted for _, added, counted in results)


def test_staleness_is_the_number_of_additions_by_others_since_the_last_read_and_weighs_as_it_is_applied(world):
    if world.size < 2:
        return                              # a law about two

    def main(host):
        shared, ones = host.share(on(host, np.zeros(3))), on(host, np.ones(3))
        shared.read(0)
        host.settle()
        if host.rank == 1:
            own = [shared.add(0, ones) for _ in range(4)]
        host.settle()
        found = [int(shared.read(0, glance=True)[0])]
        host.settle()
        if host.rank == 0:
            found += [shared.add(0, ones), shared.add(0, ones, lambda stale: stale / 8)]    # before and after are 4
            shared.read(0)
            found += [shared.add(0, ones, lambda stale: stale / 8), float(shared.read(0)[0])]
        host.settle()
        return own if host.rank == 1 else found
    first, second, *others = world.run(main)
    assert first == [4, 4, 4, 0, 5.5]
    assert second == [0] * 4
    assert others == [[4]] * (world.size - 2)


def test_collect_waits_for_as_many_letters_as_asked(world):
    def main(host):
        host.compute(lambda: None)
        for peer in range(host.size):
            host.post(on(host, np.zeros(10)), peer)
        letters = list(host.collect(least=host.size))
        return len(letters)
    assert world.run(main) == [world.size] * world.size


def test_counters_lose_nothing_and_give_no_number_twice(world):
    def main(host):
        counters = host.counters(3)
        own = [counters.add(1) for _ in range(50)] + [counters.add(2, -2)]
        host.settle()
        return own, list(counters.values())
    taken, values = zip(*world.run(main), strict=True)
    assert sorted(number for own in taken for number in own[:-1]) == list(range(50 * world.size))
    assert all(each == [0, 50 * world.size, -2 * world.size] for each in values)


def test_a_part_can_be_read_into_a_piece_of_a_vector(world):
    def main(host):
        shared = host.share(on(host, np.full(5, float(host.rank))))
        whole = on(host, np.full(world.size * 5, -1.0))
        for owner in range(world.size):
            assert shared.read(owner, whole[5 * owner : 5 * owner + 5]) is not None
        host.settle()
        return whole
    for whole in world.run(main):
        assert np.array_equal(whole, np.repeat(np.arange(world.size), 5))


def test_who_is_idle_waits_and_all_of_it_is_communication(world):
    def main(host):
        for _ in range(20):
            host.idle()
        return host.traffic.wait_s, host.traffic.comm_s
    for wait_s, comm_s in world.run(main):
        assert 0.002 < wait_s == pytest.approx(comm_s)


# simulated only

def test_simulated_time_is_that_of_the_closed_formulas():
    costs = star(latency_s=10e-6, bytes_per_s=1.25e9, gradient_s=1e-3)
    x_bytes = 45_000_000

    def exchange(host):
        host.compute(lambda: None)
        host.exchange(np.zeros(x_bytes // 8), 1 - host.rank).wait()
        return host.now()

    def mean(host):
        host.mean(np.zeros(x_bytes // 8)).wait()
        return host.now()
    assert Cluster(2, costs).run(exchange) == pytest.approx([37.01e-3] * 2)
    ring, halving = (2 * (turns * 10e-6 + 3 * x_bytes / 4 / 1.25e9) for turns in (3, 2))
    assert Cluster(4, replace(costs, collective="ring")).run(mean) == pytest.approx([ring] * 4)
    assert Cluster(4, costs).run(mean) == pytest.approx([halving] * 4)


def test_messages_that_meet_at_one_card_share_it():
    """Four senders, one receiver; a pair beside them is not disturbed, and the cards are full duplex."""
    second = 1000 * 8

    def main(host):
        if host.rank in (5, 6):
            host.exchange(np.zeros(1000), 11 - host.rank).wait()
        elif host.rank:
            host.post(np.zeros(1000), 0)
        else:
            assert len(list(host.collect(least=4))) == 4
        return host.now()
    found = Cluster(7, star(latency_s=0.5, bytes_per_s=second)).run(main)
    assert found[0] == pytest.approx(4.5)
    assert found[5:] == pytest.approx([1.5, 1.5])


def test_a_node_is_the_clusters_and_its_ranks_meet_at_its_own_speed():
    """Two pairs, each on a node: their mean never sees the card, nor does one pair wait for the other."""
    costs = replace(star(latency_s=0.5, bytes_per_s=8000), ranks_per_node=2, node=Link(80_000, 0.0), one_sided_s=0.0)

    def main(host):
        nodes = host.nodes()
        group, begin = host.group(nodes[host.rank // 2]), host.now()
        if host.rank < 2:
            host.linger(7.0)
        group.mean(np.zeros(1000)).wait()
        within = host.now() - begin
        shared = group.share(np.zeros(1000 if group.rank == 0 else 0))
        begin = host.now()
        shared.read_parts([slice(0, 1000), slice(1000, 1000)], np.zeros(1000))
        return nodes, within, host.now() - begin
    nodes, within, read = zip(*Cluster(4, costs).run(main), strict=True)
    assert nodes == ([[0, 1], [2, 3]],) * 4
    assert within == pytest.approx([7.1, 7.1, 0.1, 0.1])
    assert read[1] == pytest.approx(0.05)


def test_a_broadcast_takes_as_long_as_the_faster_of_two_ways_within_a_node_and_between_nodes():
    def main(host):
        begin = host.now()
        host.broadcast(np.zeros(1000))
        over = host.now()
        host.broadcast(np.zeros(1))
        return over - begin, host.now() - over
    costs = replace(star(latency_s=0.5, bytes_per_s=800), node=Link(8000, 0.001))
    for per_node, rate, latency in ((1, 800, 0.5), (8, 8000, 0.001)):
        large, small = Cluster(8, replace(costs, ranks_per_node=per_node)).run(main)[3]
        assert large == pytest.approx(10 * latency + 2 * 7 / 8 * 8000 / rate)
        assert small == pytest.approx(3 * (latency + 8 / rate))


def test_who_reads_one_ranks_memory_shares_its_card():
    def main(host):
        shared = host.share(np.zeros(1000 if host.rank == 0 else 0))
        shared.read(0)
        return host.now() - begin
    begin = 2 * 0.5 * 2                     # up and down a tree of four
    found = Cluster(4, star(latency_s=0.5, bytes_per_s=8000)).run(main)
    assert found == pytest.approx([0.0, 4.0, 4.0, 4.0])     # request and answer: two latencies


def test_means_under_way_at_once_take_their_turns():
    costs = star(latency_s=0, bytes_per_s=8000)

    def main(host):
        first, second = host.mean(np.zeros(1000)), host.mean(np.zeros(1000))
        second.wait()
        first.wait()
        return host.now()
    assert Cluster(4, costs).run(main) == pytest.approx([2 * 1.5] * 4)


def test_an_exchange_is_in_flight_while_the_rank_computes():
    costs = star(latency_s=0, bytes_per_s=8000, gradient_s=0.7)

    def main(host):
        met = host.exchange(np.zeros(1000), 1 - host.rank)
        host.compute(lambda: None)
        met.wait()
        return host.now(), host.traffic.wait_s
    assert Cluster(2, costs).run(main) == [(1.0, pytest.approx(0.3))] * 2


def test_a_rank_that_nobody_comes_to_meet_is_named():
    def main(host):
        if host.rank != 1:
            host.exchange(np.zeros(3), 2 - host.rank).wait()
            host.mean(np.zeros(3)).wait()
    with pytest.raises(Deadlock, match=r"ranks \[0, 2\] wait forever: rank 0 waits for all ranks in mean"):
        Cluster(3).run(main)


def test_an_error_on_one_simulated_rank_ends_the_run():
    def main(host):
        if host.rank == 2:
            raise ValueError("rank 2 has had enough")
        host.mean(np.zeros(3)).wait()
    with pytest.raises(ValueError, match="rank 2 has had enough"):
        Cluster(4).run(main)


def test_a_thousand_ranks_are_simulated_quickly():
    from dsgd_mpi.net.topology import matching

    def main(host):
        x = np.full(3, float(host.rank))
        for step in range(5):
            host.compute(lambda: None)
            x += host.exchange(x, int(matching(step, host.size, 0)[host.rank])).wait()
            x /= 2
        return x[0]
    results = Cluster(1024).run(main)
    assert np.mean(results) == pytest.approx(511.5)


def test_what_hears_of_a_part_of_the_gradient_must_not_wait():
    """It is called by the clock."""
    def main(host):
        def compute(ready):
            for part in (slice(4, 8), slice(0, 4)):
                ready(part)
                host.progress()
        host.compute(compute, ready=Buckets(4, lambda part: host.mean(np.zeros(4)).wait()))
    with pytest.raises(RuntimeError, match="rank 0 would wait in what hears of a finished part of its gradient"):
        Cluster(2, star(gradient_s=1.0)).run(main)
