"""Two hosts on one machine, each a network namespace, joined by a wire of a given rate. Needs root and iproute2.

MPICH's launcher alone is spoken to: its `-launcher-exec` is a script that enters the namespace instead of calling ssh.
UCX would find that both hosts have one memory: it is told to use TCP.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDRESSES = "10.77.0.1", "10.77.0.2"
LAUNCH = """#!/bin/sh
# called as ssh would be: [options] host command...
while [ "${1#-}" != "$1" ]; do shift; done
name=%s${1##*.}; shift
exec ip netns exec "$name" unshare -u sh -c "hostname $name; $*"
"""
BURST, QUEUE = "256kb", "50ms"              # of the token bucket


class NoHosts(Exception):
    """Why there can be none here."""


@contextmanager
def two_hosts(folder: Path, mpirun: str, mbit: float = 0) -> Iterator[list[str]]:
    """The words that start a Python program with one rank on each; `mbit`: of the wire, each way; 0: as it comes."""
    prefix = f"dsgd{os.getpid()}h"
    names, ends = (f"{prefix}1", f"{prefix}2"), (f"v{os.getpid()}a", f"v{os.getpid()}b")
    launcher = folder / "launch"
    launcher.write_text(LAUNCH % prefix)
    launcher.chmod(0o755)
    try:
        for name in names:
            command("ip", "netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoHosts(f"no network namespace can be made here: {said(error)}") from None
    try:
        command("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            command("ip", "link", "set", end, "netns", name)
            command("ip", "-n", name, "addr", "add", f"{address}/24", "dev", end)
            command("ip", "-n", name, "link", "set", end, "up")
            command("ip", "-n", name, "link", "set", "lo", "up")
            if mbit:
                command("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", end, "root", "tbf", "rate",
                        f"{mbit}mbit", "burst", BURST, "latency", QUEUE)
        yield ["env", "UCX_TLS=tcp,self", "ip", "netns", "exec", names[0], mpirun, "-localhost", ADDRESSES[0],
               "-launcher", "ssh", "-launcher-exec", str(launcher), "-hosts", ",".join(ADDRESSES), "-n", "2",
               "-ppn", "1", sys.executable]
    except subprocess.CalledProcessError as error:
        raise NoHosts(f"the hosts cannot be joined: {said(error)}") from None
    finally:
        for name in names:
            command("ip", "netns", "del", name)


def command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def said(error: Exception) -> str:
    return str(getattr(error, "stderr", b"").decode().strip() or error)
