"""Where this program caches what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/dsgd_mpi, else ~/.cache/dsgd_mpi; it need not exist.

    A user without a home, as in a container that runs under a number that no one has, has one in /tmp.
    """
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "dsgd_mpi"
    home = os.path.expanduser("~")          # as it is where nobody knows; pathlib would raise RuntimeError
    return Path(home, ".cache", "dsgd_mpi") if home != "~" else Path(f"/tmp/dsgd_mpi-{os.getuid()}")
