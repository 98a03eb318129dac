"""The laws of the simulated cluster: time, links and who shares them, slow ranks and dead ones, and its file."""

import dataclasses
import json
from collections import defaultdict

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as some

from dsgd_mpi import algorithms
from dsgd_mpi.errors import UsageError
from dsgd_mpi.net.simulated import machine as machines
from dsgd_mpi.net.simulated.clock import Clock, Event
from dsgd_mpi.net.simulated.cluster import Cluster, Deadlock
from dsgd_mpi.net.simulated.flows import NOWHERE, Flows, fair
from dsgd_mpi.net.simulated.gradients import Gradients
from dsgd_mpi.net.simulated.machine import Death, Gradient, Link, Machine, Slow, Tier, star
from dsgd_mpi.net.simulated.wires import Wires
from dsgd_mpi.study.simulate import simulate
from tests.support import jobs
from tests.support.quadratic import Quadratic, train

SHIPPED = sorted(machines.FOLDER.glob("*.toml"))
TREE = Machine(ranks_per_node=2, card=Link(1e4, 1e-3), node=Link(1e5, 1e-4), gradient=Gradient(0.05, jitter=0.2),
               tier=(Tier(nodes=2, oversubscription=4.0, hop_s=1e-3), Tier(hop_s=2e-3)))


# sharing

def filled(links, weights, capacities, most):
    """As `fair`, by raising all rates together until a link or a flow is at its limit; again without those on it."""
    rates, going = np.zeros(len(links)), set(range(len(links)))
    left = dict(enumerate(capacities))
    while going:
        load = {link: sum(weights[flow][place] for flow in going for place, each in enumerate(links[flow])
                          if each == link) for link in left}
        level = min([left[link] / load[link] for link in left if load[link] > 0], default=np.inf)
        level = min(level, min(most[flow] for flow in going))
        done = {flow for flow in going if most[flow] <= level * (1 + 1e-12) or any(
            weights[flow][place] and left[link] / load[link] <= level * (1 + 1e-12)
            for place, link in enumerate(links[flow]))}
        for flow in done:
            rates[flow] = level
            for place, link in enumerate(links[flow]):
                left[link] -= weights[flow][place] * level
        going -= done
    return rates


@settings(max_examples=60, deadline=None)
@given(some.integers(0, 2**32), some.integers(1, 12), some.integers(1, 6))
def test_rates_are_those_of_filling_all_links_together(seed, flows, count):
    draw = np.random.default_rng(seed)
    links = np.array([draw.choice(count, 3) + 1 if count > 2 else draw.integers(1, count + 1, 3) for _ in range(flows)])
    for row in links:                       # a link once
        row[1:][np.isin(row[1:], row[:1])] = NOWHERE
        row[2:][np.isin(row[2:], row[1:2])] = NOWHERE
    weights = np.where(links == NOWHERE, 0.0, draw.choice([0.5, 1.0, 2.0], links.shape))
    capacities = np.concatenate([[np.inf], draw.choice([1.0, 2.0, 5.0], count)])
    most = draw.choice([0.3, 1.0, np.inf], flows)
    rates = fair(links, weights, capacities, most)
    assert rates == pytest.approx(filled(links.tolist(), weights.tolist(), capacities.tolist(), most.tolist()))
    carried = np.bincount(links.ravel(), (weights * rates[:, None]).ravel(), count + 1)
    assert (carried <= capacities * (1 + 1e-9)).all()


@settings(max_examples=40, deadline=None)
@given(some.lists(some.tuples(some.floats(0, 3), some.integers(0, 3), some.integers(0, 3), some.floats(1, 50)),
                  min_size=1, max_size=12))
def test_all_that_enters_a_link_arrives_and_takes_as_long_as_the_fullest_link_needs(messages):
    """Whoever comes when: flows that share links or do not end in order of time, none before it could."""
    clock, ends = Clock(), {}
    flows = Flows(clock, [0, *[10.0] * 8])
    for number, (at, source, target, size) in enumerate(messages):
        end = Event(clock)
        end.then(lambda number=number: ends.setdefault(number, clock.now))
        clock.at(at, lambda end=end, size=size, links=(1 + source, 5 + target): flows.begin(end, size, links))
    clock.run()
    assert len(ends) == len(messages)
    for number, (at, _, _, size) in enumerate(messages):
        assert ends[number] >= at + size / 10 * (1 - 1e-9)
    for link in range(1, 9):
        own = [(at, size) for at, source, target, size in messages if link in (1 + source, 5 + target)]
        assert flows.carried[link] == pytest.approx(sum(size for _, size in own))
        if own:
            last = max(ends[number] for number, each in enumerate(messages) if link in (1 + each[1], 5 + each[2]))
            assert last >= min(at for at, _ in own) + sum(size for _, size in own) / 10 * (1 - 1e-9) - 1e-9
    assert flows.carried[1:5].sum() == pytest.approx(flows.carried[5:9].sum())
    assert not flows.sharing
    assert not any(flows.on)


def test_a_switch_that_is_oversubscribed_is_shared_by_what_leaves_it():
    """Nodes 0 and 1 are below one switch, 2 and 3 below another; four to one leaves half a card's rate for all."""
    def main(host):
        if host.rank in (0, 2):
            host.post(np.zeros(1250), host.rank + 4)        # 10,000 bytes
        if host.rank in (4, 6):
            list(host.collect(least=1))
        return host.now()
    quiet = dataclasses.replace(TREE, gradient=Gradient(0.0))
    found = Cluster(8, quiet).run(main)
    assert found[4] == pytest.approx(1e-3 + 2 * 1e-3 + 2e-3 + 2 * 10_000 / 5_000)


@settings(max_examples=60, deadline=None)
@given(some.integers(1, 24), some.integers(1, 4), some.integers(1, 3), some.booleans(), some.data())
def test_many_parts_at_once_pass_the_links_that_each_of_them_would(size, each, under, to_them, data):
    """And take as many latencies. Of all ranks as owners, only the links on this rank's side are counted."""
    tiers = (Tier(nodes=under, oversubscription=4.0, hop_s=1e-3),
             Tier(nodes=2 * under, oversubscription=2.0, hop_s=2e-3), Tier(hop_s=4e-3))
    wires = Wires(Clock(), Machine(ranks_per_node=each, card=Link(1e4, 1e-3), node=Link(1e5, 1e-4), tier=tiers), size)
    rank, owners = data.draw(some.integers(0, size - 1)), data.draw(some.integers(1, size))
    routes = [wires.route(*(rank, owner) if to_them else (owner, rank)) for owner in range(owners) if owner != rank]
    assert wires.latencies_s(rank, range(owners)) == pytest.approx(sum(latency for latency, _ in routes))
    parts = dict(zip(*wires.bundle(rank, range(owners), to_them), strict=True))
    counted = {link: sum(link in links for _, links in routes) for link in range(len(wires.flows.capacities))}
    if owners < size:
        assert parts == {link: count for link, count in counted.items() if count}
    elif owners > 1:
        own = {wires.within_out[rank], wires.within_in[rank], wires.out[wires.card_of(rank)],
               wires.into[wires.card_of(rank)], *(way[wires.node_of(rank) // below]
               for below, up, down in zip(wires.under, wires.up, wires.down, strict=True) for way in (up, down) if way)}
        assert parts == {link: count for link, count in counted.items() if count and link in own}


@settings(max_examples=40, deadline=None)
@given(some.lists(some.tuples(some.integers(0, 7), some.integers(0, 7), some.integers(1, 500), some.floats(0, 0.5)),
                  max_size=30), some.integers(0, 2**32))
def test_letters_of_one_rank_to_another_arrive_in_order_and_all_of_them_under_any_delays(posts, seed):
    """Whatever the network does to single messages, while the receivers collect what has come."""
    cluster, draw = Cluster(8, TREE), np.random.default_rng(seed)
    send = cluster.wires.send
    sent: list[float] = []

    def delayed(source, target, nbytes):
        sent.append(nbytes if source != target else 0)
        arrived, late = send(source, target, nbytes), Event(cluster.clock)
        arrived.then(lambda: cluster.wires.after(draw.exponential(0.3)).then(late.happen))
        return late
    cluster.wires.send = delayed

    def main(host):
        got = []
        for number, (source, target, length, after) in enumerate(posts):
            if source == host.rank:
                host.linger(after)
                host.post(np.full(length, number), target, number)
                got += host.collect()
        host.settle()
        return [*got, *host.collect()]
    found = cluster.run(main)
    expected = defaultdict(list)
    for number, (source, target, *_) in enumerate(posts):
        expected[source, target].append(number)
    for target, letters in enumerate(found):
        for source in range(8):
            assert [letter.note for letter in letters if letter.source == source] == expected[source, target]
        assert all(letter.array.tolist() == [letter.note] * posts[int(letter.note)][2] for letter in letters)
    wires = cluster.wires
    carried = wires.flows.carried
    for leaves, enters in ((wires.out, wires.into), (wires.within_out, wires.within_in)):
        assert carried[leaves].sum() == pytest.approx(carried[enters].sum())
    assert carried[wires.out].sum() + carried[wires.within_out].sum() == pytest.approx(sum(sent))
    assert sum(host.traffic.bytes_sent for host in cluster.hosts) == sum(8 * length for _, _, length, _ in posts)


# the same on MPI

@pytest.mark.parametrize("name", ["allreduce", "gossip"])
def test_on_a_cluster_that_costs_nothing_every_loss_is_that_of_the_run_over_mpi(tmp_path, name):
    free = Machine("free", card=Link(1e15, 0.0), node=Link(1e15, 0.0), gradient=Gradient(1e-9))
    (tmp_path / "free.toml").write_text(machines.to_toml(free))
    options = ["--steps", "8", "--batch", "8", "--log-every", "1", "--eval-every", "1000", "--threads", "1",
               "--algorithm", name]
    status, output, errors = jobs.train(*options, "--out", tmp_path / "mpi", ranks=2)
    assert status == 0, output + errors
    done = CliRunner().invoke(simulate, ["--cluster", str(tmp_path / "free.toml"), "--ranks", "2", *options,
                                         "--out", str(tmp_path / "simulated")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    lines = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("mpi", "simulated")]
    mpi, simulated = ([json.loads(line)["loss"] for line in each] for each in lines)
    assert len(mpi) == 8
    assert mpi == simulated


@pytest.mark.parametrize(("name", "by_hand"), [
    # a bucket is an eighth of the gradient, ready every 6.5 ms; the last one's mean comes after it: six messages of a
    # quarter within nodes, and 62 of 1/32 between 32 nodes with four cards each
    ("allreduce", lambda n: 6 * (5e-6 + n / 8 / 4 / 240e9) + 62 * (2.39e-6 + n / 8 / 32 / 92e9)),
    # each rank has a card of its own, and 125 of 127 partners are on other nodes; who met one that is not waits later
    ("gossip", lambda n: 2.39e-6 + n / 23e9)])
def test_a_step_of_128_ranks_with_resnet50_takes_as_long_as_by_hand(tmp_path, name, by_hand):
    """On a100-ib without jitter: four ranks a node; to another node 2 us, and three switches of 0.13."""
    machine = machines.read(machines.found("a100-ib"))
    even = dataclasses.replace(machine, gradient=dataclasses.replace(machine.gradient, jitter=0.0))
    (tmp_path / "even.toml").write_text(machines.to_toml(even))
    done = CliRunner().invoke(simulate, [
        "--cluster", str(tmp_path / "even.toml"), "--ranks", "128", "--gradients", "none", "--as", "resnet50",
        "--batch", "256", "--steps", "3", "--algorithm", name, "--out", str(tmp_path / "run")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["wall_s"] / 3 - 0.1036 == pytest.approx(by_hand(4 * 25_610_152), rel=0.01)


def test_the_nodes_of_a_simulated_cluster_have_as_many_ranks_as_the_option_says(tmp_path):
    """The run folder knows the cluster that it was; two levels send more where each node has a model to spread."""
    sent = {}
    for each in (1, 4):
        done = CliRunner().invoke(simulate, [
            "--cluster", "ethernet-10g", "--ranks", "8", "--gradients", "none", "--steps", "2", "--algorithm",
            "hierarchical", "--ranks-per-node", str(each), "--out", str(tmp_path / f"{each}")], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert machines.read(tmp_path / f"{each}" / "cluster.toml").ranks_per_node == each
        sent[each] = json.loads((tmp_path / f"{each}" / "summary.json").read_text())["bytes_sent"]
    assert sent[4] > sent[1]


def test_gradients_that_take_no_time_are_refused_in_one_line(tmp_path):
    (tmp_path / "own.toml").write_text('name = "own"\n[gradient]\nseconds = 0')
    done = CliRunner().invoke(simulate, ["--cluster", str(tmp_path / "own.toml"), "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert done.output.splitlines()[-1].startswith(
        "Error: cluster own: gradient: seconds: expected more than 0, found 0, and ")
    assert not (tmp_path / "run").exists()


# time

@settings(max_examples=8, deadline=None)
@given(some.sampled_from(["gossip", "sgp", "easgd", "adpsgd", "parameter_server", "allreduce"]), some.integers(0, 9))
def test_a_run_is_the_same_bit_by_bit_and_time_never_runs_back(name, seed):
    def once():
        times = []

        def main(host):
            x, _ = train(host, algorithms.build(name, {}), Quadratic(host.rank), 6)
            return x, host.now()
        cluster = Cluster(8, TREE, seed)
        at = cluster.clock.at
        cluster.clock.at = lambda time, call: at(time, lambda: (times.append(cluster.clock.now), call()))
        return cluster.run(main), times, cluster.wires
    (one, times, wires), (other, _, _) = once(), once()
    assert all(np.array_equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(one, other, strict=True))
    assert times == sorted(times)
    carried = wires.flows.carried
    assert carried[wires.out].sum() == pytest.approx(carried[wires.into].sum()) or name not in ("gossip", "sgp")
    for up, down in zip(wires.up, wires.down, strict=True):
        assert carried[up].sum() == pytest.approx(carried[down].sum())


@pytest.mark.parametrize(("slow", "mean"), [
    (Slow(share=0.25, factor=3.0), 1.5), (Slow(ranks=(0, 1), seconds=2.0), 1.5), (Slow(nodes=(0,), factor=2.0), 1.25),
    (Slow(share=1.0, seconds=1.0, distribution="uniform"), 2.0),
    (Slow(share=1.0, seconds=1.0, distribution="exponential"), 2.0)])
def test_slow_ranks_take_as_much_longer_as_they_are_told(slow, mean):
    machine = Machine(ranks_per_node=2, gradient=Gradient(1.0), slow=(slow,))
    times = Gradients(machine, 8)
    drawn = np.array([[times.seconds(rank, step, 0.0) for rank in range(8)] for step in range(2000)])
    assert drawn.mean() == pytest.approx(mean, rel=0.03)


def test_jitter_and_tail_and_histogram_have_their_means():
    tailed = Gradient(1.0, tail_probability=0.1, tail_alpha=3.0)
    for gradient, mean in ((Gradient(1.0, jitter=0.5), 1.0), (tailed, 1.05),
                           (Gradient(9.0, histogram=(1.0, 2.0, 6.0)), 3.0)):
        times = Gradients(Machine(gradient=gradient), 20)
        drawn = [times.seconds(rank, step, 0.0) for step in range(2000) for rank in range(20)]
        assert np.mean(drawn) == pytest.approx(mean, rel=0.02)


def test_an_episode_begins_ends_and_comes_again():
    times = Gradients(Machine(gradient=Gradient(1.0), slow=(Slow(ranks=(1,), factor=4.0, begin_s=10, end_s=12,
                                                                 every_s=5),)), 2)
    assert [times.seconds(1, 0, now) for now in (9, 10, 11.9, 12, 15, 16.9, 17.1)] == [1, 4, 4, 1, 4, 4, 1]
    assert times.seconds(0, 0, 11) == 1


# one-sided calls and absences

@pytest.mark.parametrize(("every", "served"), [(0.0, 0.3), (0.5, 0.5), (9.0, 1.0)])
def test_a_one_sided_call_waits_until_its_target_enters_mpi(every, served):
    """The target computes for a second; the call reaches it after 0.3."""
    def main(host):
        shared = host.share(np.zeros(4))
        begin = host.now()
        if host.rank == 0:
            host.compute(lambda: None)
        else:
            shared.add(0, np.ones(4))
        return host.now() - begin
    machine = dataclasses.replace(star(latency_s=0.3, bytes_per_s=1e15, gradient_s=1.0), enters_mpi_s=every)
    assert Cluster(2, machine).run(main)[1] == pytest.approx(served)


def test_a_rank_that_dies_is_waited_for_if_it_comes_back_and_named_if_it_does_not():
    def main(host):
        for _ in range(3):
            host.compute(lambda: None)
            host.mean(np.zeros(3)).wait()
        return host.now()
    alive = star(latency_s=0, gradient_s=1.0)
    back = dataclasses.replace(alive, death=(Death(1, 1.5, 5.0),))
    assert Cluster(3, back).run(main) == pytest.approx([6.5] * 3, rel=1e-6)
    gone = dataclasses.replace(alive, death=(Death(1, 1.5),))
    with pytest.raises(Deadlock, match=r"ranks \[0, 1, 2\] wait forever: rank 0 waits for all ranks in mean "
                                       r"\(its call 2\); rank 1 is dead since 1.5 s"):
        Cluster(3, gone).run(main)


# files

@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_cluster_that_is_shipped_is_read_and_written_back(path, tmp_path):
    machine = machines.read(path)
    assert machine.name == path.stem
    again = tmp_path / "again.toml"
    again.write_text(machines.to_toml(machine))
    assert machines.read(again) == machine
    found = Cluster(16, machine).run(lambda host: host.exchange(np.zeros(1000), host.rank ^ 1).wait().size)
    assert found == [1000] * 16


@pytest.mark.parametrize(("text", "told"), [
    ("ranks = 3", "unknown entry 'ranks'; the choices are name, about, "), ("cards = 0", "cards: expected at least 1"),
    ("[card]\nbytes_per_s = nan", "card: bytes_per_s: expected a finite number, found nan"),
    ("[card]\nlatency_s = -1", "card: latency_s: expected at least 0"), ("card = 3", "card: expected a table, found 3"),
    ("[gradient]\nseconds = 'long'", "gradient: seconds: expected a number, found 'long'"),
    ("[[slow]]\ndistribution = 'normal'", "slow 1: distribution: expected one of constant, uniform, exponential, "),
    ("slow = 3", "slow: expected a list, found 3"), ("[[slow]]\nranks = ['a']", "slow 1: ranks 1: expected an integer"),
    ("[[tier]]\n[[tier]]", "tier 1: expected the nodes that one of its switches joins")])
def test_what_is_wrong_with_a_clusters_file_is_one_line(tmp_path, text, told):
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        machines.read(machines.found(str(path)))
    assert told in error.value.message
    assert error.value.message.startswith(str(path))
    assert "\n" not in error.value.message
