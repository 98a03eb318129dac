"""Our CUDA kernels under a race detector: launches are noted, and a program under ThreadSanitizer repeats them."""

import ctypes
import os
import re
import subprocess
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np

from dsgd_mpi.kernels.gpu.device import macros, source
from tests.support.emulation.emulated import COMPILER, FOLDER, Emulated, cell, entries, kernels

HERE = Path(__file__).parent
SYNCHRONISATION = re.compile(r"__(?:syncthreads|threadfence)\(\);")
RACES, DIFFERS = 66, 67                     # exit codes
NAMES = [name for _, name in kernels(source())]
TOGETHER = {name for part in source().split('extern "C"')[1:] if "over_grid(" in part
            for _, name in kernels(f'extern "C"{part}')}        # whose blocks work together
MOST_THREADS, MOST_LAUNCHES = 512, 2        # of a kernel, that are repeated


class Noting(Emulated):
    """`noted`: of small launches the kernel, how many elements a thread takes at a time, the rest with all memory."""

    def __init__(self, format_):
        super().__init__(format_)
        self.noted = []

    def kernel(self, name, vec, grid, block, *arguments):
        launch = super().kernel(name, vec, grid, block, *arguments)

        def noted():
            before = [each for each, *_ in self.noted].count(name)
            if before < MOST_LAUNCHES and np.prod(grid) * np.prod(block) <= MOST_THREADS:
                self.noted.append((name, vec, described(name, grid, block, arguments)))
            launch()
        return noted


def described(name, grid, block, arguments):
    """A launch in 64-bit words, as races_main.hpp reads it."""
    arrays = [each for each in arguments if isinstance(each, np.ndarray)]
    rounds = 12 if name in TOGETHER else 2
    words = [NAMES.index(name), rounds, *(*grid, 1, 1)[:3], *(*block, 1, 1)[:3]]
    regions = merged((each.ctypes.data // 16 * 16, each.ctypes.data + each.nbytes) for each in arrays)
    words.append(len(regions))
    for start, end in regions:
        size = -(-(end - start) // 8)
        words += [start, size, *np.frombuffer(ctypes.string_at(start, end - start).ljust(8 * size), np.uint64)]
    words.append(len(arguments))
    for each in arguments:
        pointer = each is None or isinstance(each, np.ndarray)
        words += [int(pointer), int.from_bytes(bytes(cell(each)), "little")]
    return np.array(words, np.uint64).tobytes()


def merged(intervals):
    found = []
    for start, end in sorted(intervals):
        if found and start < found[-1][1]:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([start, end])
    return found


def synchronisations():
    """The file and the words of each."""
    text = source()
    return [(text[: match.start()].rpartition('#line 1 "')[2].partition('"')[0], match[0])
            for match in SYNCHRONISATION.finditer(text)]


@cache
def program(given, vec):
    """The program for a format, which can leave out one of `synchronisations`."""
    number = count()
    text = SYNCHRONISATION.sub(lambda match: f"if (left_out != {next(number)}) {match[0]}", source())
    stem = FOLDER / f"races-{given.bits}-{given.bfloat}-{vec}"
    stem.with_suffix(".cpp").write_text("\n".join([
        f'#include "{HERE / "cuda_races.hpp"}"', "static int left_out;", text, *entries(text),
        "static void (*const KERNELS[])(const unsigned*, const unsigned*, void**) = {",
        ", ".join(f"launch_{name}" for name in NAMES), "};", f'#include "{HERE / "races_main.hpp"}"']))
    command = [COMPILER, *macros(given, vec), f"-DDIFFERS={DIFFERS}", "-fsanitize=thread", "-O1",
               "-g1", "-w", "-pthread", "-o", stem, stem.with_suffix(".cpp")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return stem


def raced(given, launches, left_out=-1):
    """What the detector says of launches (of `noted`), one synchronisation being left out; "" if there is no race."""
    for vec in {vec for _, vec, _ in launches}:
        path = FOLDER / "launches"
        path.write_bytes(b"".join(words for _, of, words in launches if of == vec))
        done = subprocess.run([program(given, vec), path, str(left_out)], capture_output=True, text=True, timeout=100,
                              env={**os.environ, "TSAN_OPTIONS": f"halt_on_error=1 exitcode={RACES}"})
        if done.returncode:
            assert done.returncode in (RACES, DIFFERS), done.stderr
            return done.stderr or "the result depends on the order"
    return ""
