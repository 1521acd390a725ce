"""Count the inputs that the tests of hostile input give to each reader, and how many of them the reader accepts."""

from __future__ import annotations

from collections import Counter
from typing import Callable, TypeVar

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError

GIVEN: Counter[str] = Counter()
TAKEN: Counter[str] = Counter()

Value = TypeVar("Value")


def outcome(reader: str, read: Callable[[], Value]) -> Value | None:
    """Return the value that a reader returns; None if it refuses the input with OverlayError.

    Any other exception is a fault of the reader, and is raised.
    """
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
    """Return the counts in one line; empty if there are none."""
    if not GIVEN:
        return ""
    each = ", ".join(f"{reader} {count:,} ({TAKEN[reader]:,} taken)" for reader, count in sorted(GIVEN.items()))
    return f"hostile input: {sum(GIVEN.values()):,} tried: {each}"
