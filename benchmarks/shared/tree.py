"""The commit that a checkout equals. Nothing but the standard library: a bare machine may have no more."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]            # of the checkout


def commit(root: Path = ROOT) -> str:
    """The commit that the working tree equals, results aside; ValueError, in one line, where there is none."""
    try:
        head = git(root, "rev-parse", "--short", "HEAD").strip()
        status = git(root, "status", "--porcelain", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError) as error:
        found = f"no commit ({(getattr(error, 'stderr', '') or str(error)).strip()})"
    else:
        if not status:
            return head
        changed = [line[3:] for line in status.splitlines()]
        found = f"{len(changed)} changed or new: {', '.join(changed[:3])}{', ...' if changed[3:] else ''}"
    raise ValueError(f"a result names the commit that was measured; expected a working tree without changes, "
                     f"found {found}; commit first, or run with --no-save")


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout
