"""What is printed never ends a program, whatever the locale."""

from __future__ import annotations

import io
import sys


def print_anything() -> None:
    """Characters that the locale's encoding does not have, as in a path, are printed as \\xfc or \\u2500."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
