"""When a run counts as hanging and what is said of it, by a clock that the test moves."""

import threading
import time
from types import SimpleNamespace

import pytest

from dsgd_mpi.training import watch
from dsgd_mpi.training.watch import END, LEAST_S, STOP_S, Watch

WAITS, COMPUTES = {"what": "mean", "waited": 1e9}, {"what": "computing", "waited": 0.0}


class Ended(Exception):
    """The job, with a status."""


class Host:
    """Rank 0 of three, whose peers give the `answers` of a test."""

    rank, size, members = 0, 3, (0, 1, 2)

    def __init__(self, answers):
        self.replies, self.news, self.answered = answers, [], []
        self.alarm, self.watch = self, None
        self.stop = SimpleNamespace(step=7, ask=lambda: None, settled=lambda: False)

    def allgather(self, own):
        return [["elsewhere", 10 + rank] for rank in range(self.size)]

    def send(self, rank, news):
        if "asks" in news:
            if rank in self.replies:
                self.news.append((rank, {"number": news["asks"], **self.replies[rank]}))
        else:
            self.answered.append((rank, news))

    def heard(self):
        news, self.news = self.news, []
        return news

    def abort(self, status):
        raise Ended(status)


@pytest.fixture
def waiting(monkeypatch, tmp_path):
    """For a rank that waits in a mean from 0 on: the second at which its job ends, and the status."""
    def wait(answers, timeout=None, seconds=1000, asked=lambda: False, longest=0.0):
        now = [0.0]
        monkeypatch.setattr(watch.threading.Thread, "start", lambda thread: None)
        monkeypatch.setattr(watch.threading.Thread, "join", lambda thread, limit: None)
        monkeypatch.setattr(watch.time, "perf_counter", lambda: now[0])
        monkeypatch.setattr(watch.time, "sleep", lambda seconds: None)
        host = Host(answers)
        guard = Watch(host, timeout, asked)
        guard.folder, guard.longest = tmp_path, longest
        while now[0] < seconds:
            now[0] += 0.25
            try:
                guard.waiting("mean", 0.1)
            except Ended as end:
                return now[0], end.args[0]
        return None
    return wait


def test_a_rank_that_does_not_answer_is_warned_of_and_then_ends_the_job(waiting, capsys, caplog):
    second, status = waiting({1: WAITS})
    assert (status, second) == (4, pytest.approx(END * LEAST_S, abs=10))
    assert capsys.readouterr().err.startswith("Error: no progress for ")
    assert "step 7: rank 2 (pid 12 on elsewhere) does not answer; ranks 0-1 wait in mean" in caplog.text
    assert caplog.text.count("does not answer") == 1        # the other time it is the error


def test_a_rank_that_computes_is_waited_for_and_all_that_wait_for_each_other_are_not(waiting, capsys):
    assert waiting({1: WAITS, 2: COMPUTES}) is None
    assert waiting({1: WAITS, 2: WAITS})[1] == 4
    assert "step 7: all ranks wait; ranks 0-2 wait in mean" in capsys.readouterr().err


def test_a_job_is_reported_once_however_long_the_rank_that_reports_it_takes_to_end_it(monkeypatch, tmp_path):
    now = [100.0]
    monkeypatch.setattr(watch.threading.Thread, "start", lambda thread: None)
    monkeypatch.setattr(watch.threading.Thread, "join", lambda thread, limit: None)
    monkeypatch.setattr(watch.time, "perf_counter", lambda: now[0])
    host = Host({0: WAITS})
    host.rank = 2
    guard = Watch(host, 2.0, lambda: False)
    while not guard.answers:                                # rank 0 waits, too, and is to report it
        now[0] += 0.25
        guard.waiting("mean", 99.0)
    host.news.append((0, {"dump": True}))
    for _ in range(int(watch.ANSWERS_S / 0.25)):
        guard.waiting("mean", 99.0)
        now[0] += 0.25
    now[0] += 0.25
    with pytest.raises(Ended):
        guard.waiting("mean", 99.0)


def test_the_limit_is_the_one_given_or_grows_with_the_longest_wait_and_0_only_warns(waiting, caplog):
    assert waiting({1: WAITS}, timeout=20)[0] == pytest.approx(20, abs=6)
    assert waiting({1: WAITS}, longest=12.0)[0] == pytest.approx(END * 120, abs=10)
    caplog.clear()
    assert waiting({1: WAITS}, timeout=0) is None
    assert caplog.text.count("does not answer") == 1


def test_a_rank_that_is_asked_to_stop_waits_no_longer_than_its_batch_system_does(waiting):
    second, status = waiting({1: WAITS}, asked=lambda: True)
    assert (status, second) == (75, pytest.approx(STOP_S, abs=8))


def test_a_file_system_that_hangs_does_not_keep_the_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(watch, "DUMP_S", 0.1)
    monkeypatch.setattr(watch, "open", lambda *args, **kw: threading.Event().wait(), raising=False)
    guard = Watch(Host({}), None, lambda: False)
    guard.folder = tmp_path
    start = time.monotonic()
    guard._dump()
    assert time.monotonic() - start < 5
    assert guard._innermost().startswith(("foreign", "_innermost of training/watch.py"))
    guard.close()
