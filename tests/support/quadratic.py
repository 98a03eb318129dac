"""A small problem whose answer is known: each rank sees the gradient of one quadratic, with noise of its own."""

import time

import numpy as np

from dsgd_mpi import optim
from dsgd_mpi.arrays.flat import Buckets, Layout, beside
from dsgd_mpi.optim.sgd import Sgd


class Quadratic:
    """f(x) = 1/2 sum h (x - b)^2, gradients with noise drawn from (seed, rank, call)."""

    def __init__(self, rank=0, size=40, noise=0.3, seed=5):
        self.h = np.linspace(0.1, 1, size)
        self.b = np.random.default_rng(7).normal(size=size)
        self.rank, self.noise, self.seed, self.calls = rank, noise, seed, 0

    def start(self):
        return np.zeros_like(self.b)

    def loss(self, x):
        return float(np.sum(self.h * (x - self.b) ** 2) / 2)

    def gradient(self, x, hear=None, least=0):
        draw = np.random.default_rng((self.seed, self.rank, self.calls))
        self.calls += 1
        h, b, noise = (beside(x, each) for each in (self.h, self.b, self.noise * draw.normal(size=x.size)))
        g = np.empty_like(x)
        ready = Buckets(least, lambda part: hear(g, part)) if hear else lambda part: None
        for end in range(x.size, 0, -10):   # in stretches, as a network would
            part = slice(max(end - 10, 0), end)
            np.subtract(x[part], b[part], out=g[part])
            g[part] *= h[part]
            g[part] += noise[part]
            ready(part)
        return g


class Skewed(Quadratic):
    """A quadratic of each rank's own, without noise: data that differ from rank to rank."""

    def __init__(self, rank, size=20):
        super().__init__(rank, size, noise=0.0)
        draw = np.random.default_rng((3, rank))
        self.b, self.h = draw.normal(size=size), draw.uniform(0.2, 1.5, size)

    @staticmethod
    def minimum(ranks):
        """Of the sum over so many ranks."""
        tasks = [Skewed(rank) for rank in range(ranks)]
        return sum(task.h * task.b for task in tasks) / sum(task.h for task in tasks)


def sgd_for(x, momentum=0.9, weight_decay=0.0):
    return Sgd(momentum, weight_decay=weight_decay).start(Layout({"x": x.shape}), x)


def optimizer_for(algorithm, x, momentum=0.9):
    """The one that the algorithm wants: SGD without weight decay, or another with its defaults."""
    if algorithm.default_optimizer == "sgd":
        return sgd_for(x, momentum)
    return optim.find(algorithm.default_optimizer)().start(Layout({"x": x.shape}), x)


def on(host, values):
    """`values` where the algorithms of this host have their arrays: itself, or a copy on the host's device."""
    return host.device.array(values) if hasattr(host, "device") else values


def in_one_piece(host, gradient):
    """What algorithms get for a function that knows nothing of hearers."""
    def whole(x, hear=None, least=0):
        g = host.compute(gradient, x)
        if hear:
            hear(g, slice(0, g.size))
        return g
    return whole


def train(host, algorithm, task, steps, lr=0.05, momentum=0.9, x=None, pause_s=0.0):
    """A bare training loop, with a pause after each step: returns x and the optimiser."""
    x = on(host, task.start()) if x is None else x
    optimizer = optimizer_for(algorithm, x, momentum)
    algorithm.start(host, x, optimizer)
    for _ in range(steps):
        go_on(host, algorithm, task, x, lr)
        time.sleep(pause_s)
    return x, optimizer


def go_on(host, algorithm, task, x, lr=0.05):
    algorithm.step(x, lambda x, hear=None, least=0: host.compute(task.gradient, x, hear, least), lr)
