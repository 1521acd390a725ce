# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check records before anything in them is used: small JSON objects that somebody else may have written.

A record is described by a check: a function that takes a value and returns what is wrong with it, or None. Checks of values are combined
into checks of lists and objects. Every field has a type, a form and a largest length. An unknown field is refused, since a newer version
of the collection that adds a field also raises the number of the format.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable, Optional

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes, to_text

Check = Callable[[Any], Optional[str]]

#: Bytes of a path, PATH_MAX of the kernel without the NUL byte at its end.
LONGEST_PATH = 4095

#: Largest whole number of a file's size, and of what is counted.
LARGEST_SIZE = (1 << 63) - 1
#: Largest uid and gid; the next number means 'leave as it is' to chown(2).
LARGEST_OWNER = (1 << 32) - 2

#: Digits of the largest whole number that a record may have. Python needs quadratic time to read a long one.
_MOST_DIGITS = 20
#: Characters of a value that a message shows.
_SHOWN = 60

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class RecordError(OverlayError):
    """A record is malformed, or was written by a newer version of the collection."""


class OutdatedError(OverlayError):
    """A record was written by an older version of the collection. What it describes must be made again."""


@dataclass(frozen=True)
class RecordKind:
    """A kind of record: the form of its fields, the length of its text, and the number of its format."""

    fields: Check
    #: Bytes of the longest text.
    largest: int
    #: The field with the number of the format; empty if the kind has none.
    format_field: str = ""
    #: The number of the format that is written.
    format: int = 0
    #: The lowest number of a format that is read; 0 means only ``format`` is. Lower numbers are outdated.
    oldest: int = 0

    def dump(self, values: Mapping[str, Any]) -> bytes:
        """Return a record as JSON text. Raises RecordError if ``load`` would refuse it."""
        if self.format_field:
            values = {self.format_field: self.format, **values}
        text = json.dumps(values, indent=1, sort_keys=True).encode("ascii") + b"\n"
        problem = self.fields(values) or (f"it has {len(text)} bytes" if len(text) > self.largest else None)
        if problem:
            raise RecordError(problem)
        return text

    def load(self, text: bytes) -> dict[str, Any]:
        """Return the checked fields of a record.

        Raises OutdatedError naming the format if an older version of the collection wrote it, and RecordError if it is not a record of this
        kind.
        """
        values = _parsed(text, self.largest)
        if self.format_field:
            self._check_format(values.get(self.format_field))
        problem = self.fields(values)
        if problem:
            raise RecordError(problem)
        return values

    def _check_format(self, found: Any) -> None:
        problem = integer(1, 1 << 31)(found)
        if problem:
            raise RecordError(f"{self.format_field!r} {problem}")
        if found > self.format:
            raise RecordError(f"{self.format_field!r} is {found}: a newer version of the collection wrote it")
        if found < (self.oldest or self.format):
            raise OutdatedError(f"an older version of the collection made it (format {found})")


def _parsed(text: bytes, largest: int) -> dict[str, Any]:
    if len(text) > largest:
        raise RecordError(f"it has more than {largest} bytes")
    try:
        found = json.loads(
            text, parse_int=_whole_number, parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates
        )
    except RecursionError:
        raise RecordError("it is nested too deeply") from None
    except ValueError as error:
        raise RecordError(f"it is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise RecordError("it is not a JSON object")
    return found


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise RecordError("it has a number of too many digits")
    return int(digits)


def _refuse_constant(word: str) -> None:
    raise RecordError(f"it has {word} where a number should be")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise RecordError("it has a field twice")
    return found


# Checks of single values


def integer(low: int, high: int) -> Check:
    def problem(value: Any) -> str | None:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return None
        return f"has to be a whole number from {low} to {high}, and is {_shown(value)}"

    return problem


def number(low: float, high: float) -> Check:
    def problem(value: Any) -> str | None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return None if is_number and low <= value <= high else f"has to be a number, and is {_shown(value)}"

    return problem


def boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else f"has to be true or false, and is {_shown(value)}"


def word(*words: str) -> Check:
    def problem(value: Any) -> str | None:
        known = isinstance(value, str) and value in words
        return None if known else f"has to be one of {', '.join(words)}, and is {_shown(value)}"

    return problem


def form(pattern: str) -> Check:
    expression = re.compile(pattern)

    def problem(value: Any) -> str | None:
        fits = isinstance(value, str) and expression.fullmatch(value)
        return None if fits else f"has to be of the form {pattern}, and is {_shown(value)}"

    return problem


def digest(value: Any) -> str | None:
    fits = isinstance(value, str) and _DIGEST.fullmatch(value)
    return None if fits else f"has to be sha256: and 64 hexadecimal digits, and is {_shown(value)}"


def text(longest: int = LONGEST_PATH, shortest: int = 1) -> Check:
    """Describe a text without NUL that is, as bytes, of a length within limits; bytes that are not UTF-8 are lone surrogates."""

    def problem(value: Any) -> str | None:
        encoded = _encoded(value)
        if encoded is None or not shortest <= len(encoded) <= longest or b"\0" in encoded:
            return f"has to be a text of {shortest} to {longest} bytes without NUL, and is {_shown(value)}"
        return None

    return problem


def relative(shortest: int = 1, longest: int = LONGEST_PATH) -> Check:
    """Describe a clean path below some root: no slash at an end, no empty part, no '.' and no '..'."""
    is_text = text(longest, shortest)

    def problem(value: Any) -> str | None:
        wrong = is_text(value)
        if wrong or value == "":
            return wrong
        if any(part in ("", ".", "..") for part in value.split("/")):
            return f"has to be a path relative to a root, without '..', and is {_shown(value)}"
        return None

    return problem


def absolute(value: Any) -> str | None:
    wrong = text()(value)
    return wrong or (None if value.startswith("/") else f"has to be an absolute path, and is {_shown(value)}")


# Checks of lists and objects


def nullable(described: Check) -> Check:
    return lambda value: None if value is None else described(value)


def list_of(described: Check, longest: int, shortest: int = 0) -> Check:
    def problem(value: Any) -> str | None:
        if not isinstance(value, (list, tuple)) or not shortest <= len(value) <= longest:
            return f"has to be a list of {shortest} to {longest} elements, and is {_shown(value)}"
        return _first((f"[{position}]", described(element)) for position, element in enumerate(value))

    return problem


def fields(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Describe an object that has all fields of ``required``, may have those of ``optional``, and has no other ones."""
    known = {**required, **(optional or {})}

    def problem(value: Any) -> str | None:
        if not isinstance(value, dict):
            return f"has to be an object, and is {_shown(value)}"
        missing = [name for name in required if name not in value]
        if missing:
            return f"lacks the field {missing[0]!r}"
        unknown = [name for name in value if name not in known]
        if unknown:
            return f"has an unknown field {_shown(unknown[0])}"
        return _first((f"field {name!r}", known[name](element)) for name, element in value.items())

    return problem


def mapping(named: Check, described: Check, longest: int) -> Check:
    """Describe an object with at most ``longest`` fields of any names. ``named`` describes the names, and ``described`` the values."""

    def problem(value: Any) -> str | None:
        if not isinstance(value, dict) or len(value) > longest:
            return f"has to be an object of at most {longest} fields, and is {_shown(value)}"
        return _first((f"field {_shown(name)}", named(name) or described(element)) for name, element in value.items())

    return problem


def _first(problems: Any) -> str | None:
    """Return the first problem, after the name of the value that has it; None if no value has one."""
    return next((f"{name} {problem}" for name, problem in problems if problem), None)


def _encoded(value: Any) -> bytes | None:
    """Return a text as bytes; None if the value is not a text, or has lone surrogates that do not stand for bytes."""
    if not isinstance(value, str):
        return None
    try:
        encoded = to_bytes(value)
    except UnicodeEncodeError:
        return None
    return encoded if to_text(encoded) == value else None


def _shown(value: Any) -> str:
    """Return a value for a message, cut to a readable length."""
    if isinstance(value, (list, tuple, dict)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} elements"
    shown = show(repr(value).encode("utf-8", "backslashreplace"))
    return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
