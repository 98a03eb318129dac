"""A job that hangs says which ranks do not answer and where the others wait for them, and ends.

A rank whose wait has lasted for too long asks all others what they do (`net.mpi.alarm`). If one that answers computes,
it is waited for. If one does not answer, or all have waited that long, the lowest rank that waits reports it once, all
that can do so write their stacks to the run folder, and the job ends with STATUS. Checkpoints stay as they are.

Too long is what `--hang-timeout` says; by default a warning is due after LEAST_S, or FACTOR times the longest wait so
far if that is more, and the end after END times that. A thread on each rank looks after the rank itself: if nothing
there moves for so long, be it in MPI, in a file system or in the loader of images, it writes the stacks, and if nobody
else has ended the job ANSWERS_S later, it does.

A rank that is asked to stop while it waits asks all others at once; if the step on which all agree to stop does not
come within STOP_S, the job ends as one that was stopped, with what its newest checkpoint holds.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import platform
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from dsgd_mpi.files import regular
from dsgd_mpi.net.places import ranks_named
from dsgd_mpi.training import signals

STATUS = 4
LEAST_S, FACTOR, END = 60.0, 10.0, 5.0
STOP_S = 20.0                               # SLURM kills 30 s after it has sent a signal
CHECK_S = 0.2                               # between two looks at what other ranks ask
ANSWER_S, ANSWERS_S = 5.0, 20.0             # within which a rank that is alive answers; and all have been heard
DUMP_S = 2.0                                # for stacks to be written
TICK_S = 1.0                                # of the thread
STATES = {"T": "stopped by a signal", "D": "blocked in the kernel, as where a file system hangs", "Z": "dead",
          "X": "dead"}                      # of proc(5)
PACKAGE = str(Path(__file__).parent.parent) + os.sep
log = logging.getLogger("dsgd_mpi")


class Watch:
    """Collective to construct. `host` is an MpiHost, which calls `waiting` and `moving`, as often as it likes."""

    def __init__(self, host: Any, timeout_s: float | None, stop: signals.StopRequest) -> None:
        self.host, self.timeout_s, self.stop = host, timeout_s, stop
        self.peers = host.allgather([platform.node(), os.getpid()])
        self.folder: Path | None = None     # of the run, once it is known
        self.what, self.start = "computing", 0.0        # what this rank is doing, and the wait that it is in, if any
        self.beat = self.excused = time.perf_counter()  # when this rank last moved, and from when on waits count
        self.next = self.longest = 0.0
        self.asked: float | None = None     # when this rank asked the others, and
        self.answers: dict[int, dict[str, Any]] = {}    # who has answered that
        self.number, self.warned, self.over = 0, False, False
        self.reported = -ANSWERS_S          # when this rank heard last that another reports, and ends the job
        host.watch = self
        threading.Thread(target=self._look_after, name="watch", daemon=True).start()

    def close(self) -> None:
        self.over, self.host.watch = True, None

    # called by the host

    def waiting(self, what: str, start: float) -> None:
        """This rank has waited since `start`, by time.perf_counter."""
        now = time.perf_counter()
        if now < self.next:
            return
        self._move(now)
        if start != self.start:
            self.what, self.start, self.asked, self.warned = what, start, None, False
        waited = now - max(start, self.excused)
        self._answer(waited)
        if self.stop():
            self.host.stop.ask()
        if self.asked is None and waited > (self.ending() if self.warned else self.patience()):
            self.asked, self.number, self.answers = now, self.number + 1, {}
            for rank in self._others():
                self.host.alarm.send(rank, {"asks": self.number})
        if self.asked is not None and now > self.asked + self._answer_s():
            self._judge(now, waited)

    def shrunk(self, living: list[int]) -> None:
        """The ranks are now those, by their numbers so far."""
        self.peers = [self.peers[rank] for rank in living]
        self.asked, self.answers, self.warned = None, {}, False
        self.excused = self.beat = time.perf_counter()

    def moving(self) -> None:
        """This rank computes, and its messages progress."""
        now = time.perf_counter()
        if now >= self.next:
            self._move(now)
            self.what, self.start = "computing", 0.0
            self._answer(0.0)

    # how long is too long, in seconds

    def patience(self) -> float:
        """Until the others are asked."""
        usual = self.timeout_s or max(LEAST_S, FACTOR * self.longest)
        return min(usual, STOP_S) if self._cannot_stop() else usual

    def ending(self) -> float:
        """Until the job ends."""
        if self._cannot_stop():
            return STOP_S
        if self.timeout_s == 0:
            return float("inf")
        return self.timeout_s or END * self.patience()

    def _answer_s(self) -> float:
        """How long a rank that is alive may take to answer."""
        return min(ANSWER_S, self.patience())

    def _cannot_stop(self) -> bool:
        """Whether this rank was asked to stop and the others have not agreed on the step yet."""
        return self.stop() and not self.host.stop.settled()

    # what this rank knows of the others

    def gone(self) -> str:
        """The ranks on this node whose processes have ended, in words; "" if there are none."""
        return self._named([rank for rank in self._others() if self._state(rank) in ("Z", "X")])

    def _others(self) -> list[int]:
        return [rank for rank in range(self.host.size) if rank != self.host.rank]

    def _number(self) -> int:
        """This rank's when the job began, as in env.json and in all that is said here."""
        number: int = self.host.members[self.host.rank]
        return number

    def _state(self, rank: int) -> str:
        """A letter of proc(5), of a process on this node; "" on another."""
        node, pid = self.peers[rank]
        if node != platform.node():
            return ""
        try:
            return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return "X"
        except OSError:
            return ""

    def _named(self, ranks: list[int]) -> str:
        words = []
        for rank in ranks:
            node, pid = self.peers[rank]
            state = STATES.get(self._state(rank), "")
            words.append(f"rank {self.host.members[rank]} (pid {pid} on {node}{', ' * bool(state)}{state})")
        return ", ".join(words)

    def _move(self, now: float) -> None:
        self.longest = max(self.longest, now - self.beat)
        self.beat, self.next = now, now + CHECK_S

    def ended(self, waited: float) -> None:
        """A wait of that many seconds is over."""
        self.longest = max(self.longest, waited)

    def _answer(self, waited: float) -> None:
        for rank, news in self.host.alarm.heard():
            if "asks" in news:
                self.host.alarm.send(rank, {"number": news["asks"], "what": self.what, "waited": waited})
            elif "dump" in news:
                self._dump()
                self.reported = time.perf_counter()
            elif news["number"] == self.number:
                self.answers[rank] = news

    def _judge(self, now: float, waited: float) -> None:
        """Once those that can have answered."""
        missing = [rank for rank in self._others() if rank not in self.answers]
        stuck = sorted([self.host.rank, *(rank for rank, news in self.answers.items() if news["waited"] > waited / 2)])
        if not missing and len(stuck) < self.host.size:
            self.excused, self.asked = now, None            # somebody computes, and is waited for
            return
        assert self.asked is not None
        if self.host.rank != stuck[0] and now < max(self.asked + 2 * self._answer_s(), self.reported + ANSWERS_S):
            return                          # that one reports it
        ends = waited >= self.ending()
        report = f"no progress for {waited:.0f} s{self._where()}: {self._blame(missing)}{self._waits()}"
        if not ends:
            self.warned, self.asked = True, None
            log.warning("%s; %s", report, "the job goes on waiting (--hang-timeout 0)" if self.timeout_s == 0 else
                        f"the job ends once that has lasted for {self.ending():.0f} s (--hang-timeout)")
            return
        for rank in self.answers:
            self.host.alarm.send(rank, {"dump": True})
        self._dump()
        time.sleep(2 * CHECK_S)             # the others do likewise
        self._end(report)

    def _where(self) -> str:
        return f" at step {self.host.stop.step}" if self.host.stop.step else ""

    def _blame(self, missing: list[int]) -> str:
        if not missing:
            return "all ranks wait; " if self.host.size > 1 else ""
        return f"{self._named(missing)} {'does' if len(missing) == 1 else 'do'} not answer; "

    def _waits(self) -> str:
        """Who waits where, whether for long or not."""
        own = {self.host.rank: self.what}
        others = {rank: news["what"] for rank, news in self.answers.items() if news["waited"]}
        by_what: dict[str, list[int]] = {}
        for rank, what in sorted((own | others).items()):
            by_what.setdefault(what, []).append(self.host.members[rank])
        return ", ".join(f"{ranks_named(ranks)} wait{'s' * (len(ranks) == 1)} in {what}"
                         for what, ranks in by_what.items())

    # the end

    def _dump(self) -> None:
        """The stacks of all threads of this rank. It takes no longer than DUMP_S: the file system may be what hangs."""
        writer = threading.Thread(target=self._write_stacks, daemon=True)
        writer.start()
        writer.join(DUMP_S)

    def _write_stacks(self) -> None:
        if self.folder:
            path = self.folder / f"hang-rank{self._number()}.txt"
            with suppress(OSError), open(path, "w", encoding="utf-8", opener=regular) as file:
                faulthandler.dump_traceback(file, all_threads=True)

    def _end(self, report: str) -> None:
        told = f"; stacks are in {self.folder}/hang-rank*.txt; continue with --resume {self.folder}"
        sys.stdout.flush()
        print(f"Error: {report}{told if self.folder else ''}", file=sys.stderr, flush=True)
        self.host.abort(signals.STATUS if self.stop() else STATUS)

    def _innermost(self) -> str:
        """The function of this package in which the main thread is."""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        while frame and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        return f"{frame.f_code.co_name} of {frame.f_code.co_filename[len(PACKAGE):]}" if frame else "foreign code"

    def _look_after(self) -> None:
        """The thread: it counts its own ticks, which a process that is stopped and continued does not have."""
        seen, still, dumped = self.beat, 0.0, False
        while not self.over:
            time.sleep(TICK_S)
            if self.beat != seen:
                seen, still, dumped = self.beat, 0.0, False
                continue
            still += TICK_S
            if still > self.patience() and not dumped:
                dumped = True
                self._dump()
            if still > self.ending() + ANSWERS_S:
                self._dump()
                self._end(f"nothing has moved on {self._named([self.host.rank])} for {still:.0f} s{self._where()}; "
                          f"the last thing was: {self.what}, in {self._innermost()}")
