"""Debian's packages that a test needs, fetched as root by apt-get, without starting anything."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

NO_START = Path("/usr/sbin/policy-rc.d")    # asked by a package before it starts its own daemon


class Unavailable(Exception):
    """Why there can be none here."""


def install(what: str, packages: Iterable[str]) -> None:
    """Fetches them for `what`; one process at a time. Unavailable says why it cannot."""
    packages = list(packages)
    if not shutil.which("apt-get"):
        raise Unavailable(f"{what} needs {', '.join(packages)}, and there is no apt-get to fetch them with")
    if os.geteuid() != 0:
        raise Unavailable(f"{what} needs {', '.join(packages)}, and only root can fetch them")
    with open(Path(tempfile.gettempdir(), "dsgd-apt.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ours = not NO_START.exists()
        if ours:
            NO_START.write_text("#!/bin/sh\nexit 101\n")
            NO_START.chmod(0o755)
        try:
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
                done = subprocess.run(["apt-get", "-qq", *words], env=environment, capture_output=True, text=True)
                if done.returncode:
                    reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
                    raise Unavailable(f"apt-get {words[0]} failed: {reason}")
        finally:
            if ours:
                NO_START.unlink()
