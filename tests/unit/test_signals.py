"""Signals ask a run to stop; Ctrl-C only once, and those of a terminal unless they were ignored."""

import signal
import time

import pytest

from dsgd_mpi.training import signals
from dsgd_mpi.training.signals import SIGNALS, StopRequest


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_even_if_a_library_has_taken_it_meanwhile(number):
    stop = StopRequest()
    signal.signal(number, signal.SIG_IGN)
    stop.listen()
    assert not stop()
    signal.raise_signal(number)
    assert stop()
    assert stop.reason() == "on request"


def test_what_was_ignored_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stop.listen()
    signal.raise_signal(signal.SIGHUP)
    assert not stop()


def test_a_second_ctrl_c_ends_the_process_unless_it_is_the_same_one(monkeypatch):
    ended = []
    monkeypatch.setattr(signals, "SECOND_S", 0.2)
    stop = StopRequest()
    for _ in range(3):                      # the launcher's too
        signal.raise_signal(signal.SIGINT)
    time.sleep(0.3)
    monkeypatch.setattr(signal, "raise_signal", ended.append)
    stop._ask(signal.SIGTERM, None)
    assert not ended
    stop._ask(signal.SIGINT, None)
    assert ended == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
