"""Laws of a conversion that ranks share: the same bytes as one process makes, and one error that ends all of them.

Threads stand for ranks here, and queues for MPI.
"""

import json
import threading
from collections import deque
from functools import partial

import pytest
from click.testing import CliRunner

from dsgd_mpi.data import making, ranks, sharding
from dsgd_mpi.data.commands import data
from dsgd_mpi.data.formats import check
from dsgd_mpi.data.pictures import Broken
from dsgd_mpi.data.sharding import Form, Plan, writer
from dsgd_mpi.errors import RunError, UsageError

SIZE = 3
IMAGE = (8, 8, 3)


class Alarm:
    def __init__(self, rank, boxes):
        self.rank, self.boxes, self.sent = rank, boxes, []

    def send(self, rank, news):
        self.boxes[rank].append((self.rank, json.loads(json.dumps(news))))

    def heard(self):
        while self.boxes[self.rank]:
            yield self.boxes[self.rank].popleft()


class Aborted(Exception):
    pass


class Host:
    size = SIZE

    def __init__(self, rank, boxes):
        self.rank, self.alarm = rank, Alarm(rank, boxes)

    def abort(self, status):
        raise Aborted(status)


class Job:
    """Rank 0 is the test itself; `statuses` are those with which the others end."""

    def __init__(self, kinds):
        boxes = [deque() for _ in range(SIZE)]
        self.statuses = {}
        self.lead = ranks.Shared(Host(0, boxes), kinds, 2)
        self.threads = [threading.Thread(target=self.help, args=(ranks.Helper(Host(rank, boxes), kinds, 2),))
                        for rank in range(1, SIZE)]
        for thread in self.threads:
            thread.start()

    def help(self, helper):
        try:
            self.statuses[helper.host.rank] = helper.serve()
        except UsageError as problem:
            self.statuses[helper.host.rank] = helper.failed(problem.message, problem.exit_code)

    def end(self, status):
        self.lead.end(status)
        for thread in self.threads:
            thread.join(20)
        return self.statuses


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(sharding, "SHARD_BYTES", 10 * 192)
    monkeypatch.setattr(ranks, "TELL_S", 0.0)


def plan(draw=making._drawn):
    items = [[making.Drawn(f"{part} {i}", i % 4, 64) for i in range(count)] for part, count in (("a", 90), ("b", 20))]
    return Plan(*items, list("abcd"), "made up", "none", IMAGE, partial(draw, IMAGE, False))


def kinds(made, strict=False):
    return {"shards": writer(Form(made.image, made.make, False, making.Drawn), strict)}


def contents(folder):
    return {path.name: path.read_bytes() for path in [*(folder / "set").iterdir(), folder / "set.h5"]}


def test_ranks_together_make_the_same_bytes_as_one_process(tmp_path):
    for name in ("alone", "shared"):
        (tmp_path / name).mkdir()
    sharding.make(tmp_path / "alone" / "set.h5", plan(), 2)
    threads, ticks = set(), []

    def drawn(*args):
        threads.add(threading.current_thread())
        return making._drawn(*args)

    job = Job(kinds(plan(drawn)))
    sharding.make(tmp_path / "shared" / "set.h5", plan(), 2, tick=ticks.append, work=job.lead)
    assert job.end(0) == {1: 0, 2: 0}
    assert sum(ticks) == 110
    assert len(threads) >= SIZE             # of each rank at least one
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    check(tmp_path / "shared" / "set.h5")


def test_jobs_are_dealt_out_once_and_in_turns():
    done = []
    job = Job({"some": lambda each, tick: done.append(each) or tick(1), "more": lambda each, tick: done.append(-each)})
    ticks = []
    job.lead.do("some", list(range(20)), ticks.append)
    assert (sorted(done), sum(ticks)) == (list(range(20)), 20)
    job.lead.do("more", [21, 22], ticks.append)
    assert sorted(done)[:2] == [-22, -21]
    assert job.end(0) == {1: 0, 2: 0}


@pytest.mark.parametrize("name", ["a 3", "b 15"])
def test_an_error_of_any_rank_ends_all_and_tells_whose_it_is(tmp_path, name):
    def drawn(image, jpeg, item):
        if item.name == name:
            raise Broken("half a picture")
        return making._drawn(image, jpeg, item)

    job = Job(kinds(plan(drawn), True))
    with pytest.raises((RunError, UsageError), match=f"{name}: expected an image, found half a picture") as told:
        sharding.make(tmp_path / "set.h5", plan(), 2, work=job.lead)
    assert isinstance(told.value, UsageError) or told.value.message.startswith(("rank 1 on ", "rank 2 on "))
    assert told.value.exit_code == 2
    assert job.end(2) == {1: 2, 2: 2}
    assert not (tmp_path / "set.h5").exists()


def test_all_end_at_once_where_rank_0_fails_while_others_work():
    begun = threading.Event()

    def work(job, done):
        if job == 0:
            begun.wait(10)
            raise UsageError("no more")
        begun.set()
        while done(0):
            pass

    job = Job({"some": work})
    with pytest.raises(UsageError, match="no more"):
        job.lead.do("some", [0, 1, 2], id)
    assert job.end(2) == {1: 2, 2: 2}


def test_a_rank_that_nobody_hears_ends_the_job_itself(monkeypatch, capfd):
    monkeypatch.setattr(ranks, "GRACE_S", 0.1)
    helper = ranks.Helper(Host(1, [deque(), deque()]), {}, 1)
    with pytest.raises(Aborted):
        helper.failed("no decoder", 2)
    assert capfd.readouterr().err == "Error: no decoder\n"
    lead = ranks.Shared(Host(0, [deque() for _ in range(SIZE)]), {}, 1)
    with pytest.raises(Aborted):
        lead.end(2)                         # nobody answers


def test_on_other_ranks_nothing_is_printed_and_what_is_not_shared_is_not_done(tmp_path, monkeypatch):
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "3")
    for arguments, status in ((["verify", tmp_path / "x.h5"], 0), (["synthetic", "--nothing"], 2), (["--help"], 0)):
        done = CliRunner().invoke(data, [str(argument) for argument in arguments])
        assert (done.exit_code, done.output) == (status, "")
