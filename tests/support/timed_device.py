"""A device that does nothing but keep time, by a clock of its own, and fails as CUDA does."""

import weakref
from types import SimpleNamespace


class Failed(RuntimeError):
    """CUDA's error."""


class Memory:
    def __init__(self, size):
        self.size, self.data = size, SimpleNamespace(ptr=1)


class Timed:
    """`Device`; `work(seconds)` is a launch. `held`: bytes that are in use, `room`: those that it has.

    `released`: bytes that were in use whenever the others were given back.
    """

    versions = ("NVIDIA H200", "sm90", "driver13000")
    stream = SimpleNamespace(ptr=1)

    def __init__(self, room=1 << 34):
        self.clock, self.recording, self.failed, self.replays = 0.0, None, None, 0
        self.timing = False
        self.room, self.held, self.most, self.released = room, 0, 0, []

    def work(self, seconds):
        """Takes so many seconds; "broken": cannot be recorded, "fault": touches an illegal address."""
        (self.do if self.recording is None else self.recording.append)(seconds)

    def do(self, seconds):
        assert not self.timing, "a launch that is timed outside of a recording"
        if seconds == "fault":
            self.failed = Failed("cudaErrorIllegalAddress")     # the next call tells

    def begin(self):
        self.wait()
        self.recording = []

    def end(self):
        recording, self.recording = self.recording, None
        if "broken" in recording:
            raise RuntimeError("cudaErrorStreamCaptureInvalidated")

        def replay():
            self.replays += 1
            self.clock += sum(recording) + 5 * (self.replays % 4 == 2)      # now and then something comes between
        return replay

    def seconds(self, replay):
        before, self.timing = self.clock, True
        replay()
        self.timing = False
        return self.clock - before

    def wait(self):
        assert self.recording is None
        if self.failed:
            raise self.failed

    def empty(self, shape, dtype):
        size, = shape
        if self.held + size > self.room:
            raise MemoryError(f"{size} bytes")
        memory = Memory(size)
        self.held += size
        self.most = max(self.most, self.held)
        weakref.finalize(memory, self.free, size)
        return memory

    def free(self, size):
        self.held -= size

    def release(self):
        self.released.append(self.held)
