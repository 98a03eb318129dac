"""Contestants of a benchmark that compute nothing, and fail in every way in which one can."""

import os
import time
from collections import defaultdict

LOSSES = [7.0, 6.5, 6.0]


def work(doing=lambda: None):
    def steps():
        time.sleep(1e-3)
        doing()
    return {"steps": steps, "step": steps, "whole": lambda: None, "bytes": lambda: 1 << 30, "name": lambda: "none"}


def sound(*args):
    *_, started = args
    started()
    return work(), LOSSES


def willing(*args):
    """Has a piece by every name."""
    return defaultdict(lambda: lambda: None), []


def refuse():
    raise ImportError("no such library\nand more")


def after(turns, doing):
    """Work, once at the start and then `turns` times, that does nothing, and something else after that."""
    left = [turns + 1]

    def once():
        left[0] -= 1
        if left[0] < 0:
            doing()
    return work(once)


def fallible(case, dtype, compiled, graphed, *_):
    """In PyTorch's place: sound, disagreeing, refusing from the start, or ending in the middle."""
    if not compiled:
        return work(), LOSSES if not graphed else [7.0, 6.5, 9.0]
    if not graphed:
        refuse()
    return after(1, lambda: os._exit(3)), LOSSES


def on_cpu(case, training, dtype, channels_last, compiled, started):
    """The same for a benchmark on CPUs; one ends with an error of Python's, in the middle."""
    started()
    if compiled:
        return after(1, refuse), LOSSES
    return work(), LOSSES if channels_last else [7.0, float("nan"), 6.0]


def not_even_a_start(*args):
    return refuse()
