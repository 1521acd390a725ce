"""Count the inputs that the tests of hostile input give to each reader, and how many of them the reader accepts."""

from __future__ import annotations

from collections import Counter
from typing import Callable, TypeVar

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError

GIVEN: Counter[str] = Counter()
TAKEN: Counter[str] = Counter()

Value = TypeVar("Value")


#: Characters of the longest message.
_LONGEST = 20_000


def outcome(
    reader: str,
    read: Callable[[], Value],
    refusals: type[Exception] | tuple[type[Exception], ...] = OverlayError,
) -> Value | None:
    """Return the value that a reader returns; None if it refuses the input with one of ``refusals``.

    Any other exception is a fault of the reader, and is raised. So is a message that is empty, very long, or would control a terminal.
    """
    GIVEN[reader] += 1
    try:
        value = read()
    except refusals as error:
        message = str(error)
    else:
        TAKEN[reader] += 1
        return value
    assert 0 < len(message) < _LONGEST
    assert message.replace("\n", " ").isprintable(), f"control characters in {message!r}"
    return None


def summary() -> str:
    """Return the counts in one line; empty if there are none."""
    if not GIVEN:
        return ""
    each = ", ".join(f"{reader} {count:,} ({TAKEN[reader]:,} taken)" for reader, count in sorted(GIVEN.items()))
    return f"hostile input: {sum(GIVEN.values()):,} tried: {each}"
