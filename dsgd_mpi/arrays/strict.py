"""JSON that every reader takes: a number that is not finite becomes null, since JSON has no name for it (RFC 8259)."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(content: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    """`content` as text, of which json.loads makes the same but for numbers that are not finite: they are None."""
    return json.dumps(finite_or_none(content), indent=indent, sort_keys=sort_keys, allow_nan=False)


def finite_or_none(content: Any) -> Any:
    """A copy of dicts, lists and tuples in which NaN and infinities, NumPy's too, are None."""
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, dict):
        return {key: finite_or_none(value) for key, value in content.items()}
    return [finite_or_none(value) for value in content] if isinstance(content, list | tuple) else content
