"""A device made of NumPy arrays on which everything happens as late as it may: what nobody waits for is not done.

Arrays are as strict as CuPy's: they do not mix with NumPy's. What works in place, and every copy, is enqueued on a
stream; it runs when an event behind it is waited for (or polled often enough), or a value is asked for. Memory is NaN
until it is written. So a missing wait, in either direction, is a wrong number and no matter of chance.
"""

from collections import deque
from contextlib import contextmanager

import numpy as np

POLLS = 3                                   # questions that an event answers with no, if nothing else drives it


class Stream:
    def __init__(self):
        self.queue = deque()

    def run(self, until=None):
        while self.queue and not (until and until.reached):
            self.queue.popleft()()


class Event:
    def __init__(self, stream):
        self.stream, self.reached, self.polls = stream, False, POLLS
        stream.queue.append(self.reach)

    def reach(self):
        self.reached = True

    def done(self):
        self.polls -= 1
        if self.polls < 0:
            self.synchronise()
        return self.reached

    def synchronise(self):
        self.stream.run(until=self)


class NumpyDevice:
    """`Streams`. `launch` enqueues a kernel."""

    event = Event

    def __init__(self):
        self.place = {"device": "NumPy", "uuid": "NUMPY-0"}
        self.kernels, self.outward, self.inward = Stream(), Stream(), Stream()
        self.current = self.kernels

    def launch(self, kernel):
        self.current.queue.append(kernel)

    def array(self, values):
        return self.wrap(np.array(values))

    def wrap(self, values):
        array = np.asarray(values).view(Array)
        array.device = self
        return array

    def holds(self, x):
        return isinstance(x, Array)

    def empty(self, size, dtype):
        return self.wrap(poisoned(size, dtype))

    def pinned(self, size, dtype):
        return poisoned(size, dtype)

    def copy_out(self, x, into):
        self.outward.queue += [self.event(self.current).synchronise, lambda: np.copyto(into, raw(x))]
        return self.event(self.outward)

    def copy_in(self, values, into):
        self.inward.queue.append(lambda: np.copyto(raw(into), values))
        return self.event(self.inward)

    @contextmanager
    def beside(self):
        before, self.current = self.current, self.inward
        yield self.inward
        self.current = before

    def beside_done(self):
        return self.event(self.inward)

    def kernels_done(self):
        return self.event(self.current)

    def hold_beside(self, event):
        self.inward.queue.append(event.synchronise)

    def hold_kernels(self, event):
        self.current.queue.append(event.synchronise)


class Array(np.ndarray):
    """What a `NumpyDevice` holds."""

    device = None

    def __array_finalize__(self, source):
        self.device = getattr(source, "device", None)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        device = device_of((*inputs, *(out or ())))
        if out:
            outs = tuple(map(raw, out))
            device.launch(lambda: getattr(ufunc, method)(*map(raw, inputs), out=outs, **kwargs))
            return out[0]
        device.current.run()
        return wrapped(device, getattr(ufunc, method)(*map(raw, inputs), **kwargs))

    def __array_function__(self, function, types, args, kwargs):
        given = [*args, *kwargs.values()]
        device = device_of([part for each in given for part in (each if isinstance(each, list) else [each])])
        device.current.run()
        return wrapped(device, function(*map(raw, args), **{key: raw(value) for key, value in kwargs.items()}))

    def __getitem__(self, index):
        if isinstance(index, slice):
            return super().__getitem__(index)
        return self.device.wrap(self.get()[index])

    def __setitem__(self, index, value):
        device_of((self, value))
        self.device.launch(lambda: raw(self).__setitem__(index, raw(value)))

    def get(self):
        self.device.current.run()
        return raw(self).copy()

    def set(self, values):
        values = values.copy()
        self.device.launch(lambda: np.copyto(raw(self), values))

    def astype(self, dtype, **how):
        return self.device.wrap(self.get().astype(dtype, **how))

    def copy(self):
        return self.device.wrap(self.get())

    def __deepcopy__(self, memo):
        return self.copy()

    def __float__(self):
        return float(self.get())

    def __int__(self):
        return int(self.get())

    def __bool__(self):
        return bool(self.get())


def poisoned(size, dtype):
    return np.full(size, np.nan if np.dtype(dtype).kind == "f" else 99, dtype)


def raw(x):
    if isinstance(x, list):
        return list(map(raw, x))
    return x.view(np.ndarray) if isinstance(x, Array) else x


def wrapped(device, x):
    if isinstance(x, tuple):                # as of a decomposition
        return tuple(wrapped(device, each) for each in x)
    return device.wrap(x) if isinstance(x, np.ndarray | np.generic) and not isinstance(x, np.bool_) else x


def device_of(things):
    foreign = [thing for thing in things if isinstance(thing, np.ndarray) and not isinstance(thing, Array)]
    if foreign:
        raise TypeError("an array of NumPy's was mixed with one on the device")
    return next(thing.device for thing in things if isinstance(thing, Array))


def on_host(result):
    """The same with all arrays in host memory, containers included."""
    if isinstance(result, list | tuple):
        return type(result)(map(on_host, result))
    return result.get() if isinstance(result, Array) else result
