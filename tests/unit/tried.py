"""What the tests of hostile input have tried: how many inputs each reader was given, and how many of these it took."""

from __future__ import annotations

from collections import Counter
from typing import Callable, TypeVar

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError

GIVEN: Counter[str] = Counter()
TAKEN: Counter[str] = Counter()

Value = TypeVar("Value")


def outcome(reader: str, read: Callable[[], Value]) -> Value | None:
    """Return what a reader makes of an input; None where it refuses it in words. Any other exception is a fault of the reader."""
    GIVEN[reader] += 1
    try:
        value = read()
    except OverlayError as error:
        message = str(error)
    else:
        TAKEN[reader] += 1
        return value
    assert 0 < len(message) < 20_000
    return None


def summary() -> str:
    """Return the counts in one line; empty where nothing was tried."""
    if not GIVEN:
        return ""
    each = ", ".join(f"{reader} {count:,} ({TAKEN[reader]:,} taken)" for reader, count in sorted(GIVEN.items()))
    return f"hostile input: {sum(GIVEN.values()):,} tried: {each}"
