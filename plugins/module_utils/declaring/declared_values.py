# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check values of a declaration, and bring them to their type. Each refusal says what the value must be.

Ansible gives values of types that it derives from Python's, and YAML takes some text for numbers, dates or booleans.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import (
    OverlayError,
    did_you_mean,
    show_text,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes, to_text
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import relative_path
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores import locations

#: Characters of a value or a key that a message shows.
_SHOWN = 60
#: Bytes of the longest path: PATH_MAX of linux/limits.h without the NUL byte at its end. A name in it has at most NAME_MAX bytes.
_LONGEST_PATH, _LONGEST_NAME = 4095, 255
#: The largest number: 300 years in seconds. The end of what lasts longer is no date.
_LARGEST = 10_000_000_000
_TRUE = ("y", "yes", "on", "true", "t", "1")
_FALSE = ("n", "no", "off", "false", "f", "0")
#: A size in bytes, as Ansible takes it.
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)[KMGTPEZYkmgtpezy]?[bB]?")


class InvalidValueError(ValueError):
    """A value is not what its key takes. The text is the end of a sentence that begins with the name of the key."""


#: Makes a value what its key takes. Raises InvalidValueError.
Convert = Callable[[Any], Any]


def is_blank(value: Any) -> bool:
    """Return whether a value counts as not given, as the empty answer of an AWX survey does."""
    return value is None or (isinstance(value, str) and not value.strip())


def shortened(text: str) -> str:
    """Return a text for a message: on one line, and shortened."""
    shown = show_text(str(text))
    return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."


def described(value: Any) -> str:
    """Return a value for a message, shortened."""
    # Values come from Ansible, which derives types of its own from Python's.
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        shown = repr(str(value))
        return f"the text {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '...'}"
    if isinstance(value, (int, float)):
        # Python refuses to write out integers of thousands of digits.
        return "a number that is too large" if abs(value) >= 1e30 else f"the number {value}"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    if value is None:
        return "nothing"
    return (
        f"the date {value.isoformat()}"
        if hasattr(value, "isoformat")
        else f"a value of the type {type(value).__name__}"
    )


def in_quotes(value: Any) -> str:
    """Return the end of a message about a value that has to be text: what to do if YAML took text for something else."""
    if isinstance(value, bool):
        return ": put it in quotes, since YAML takes on, off, yes and no for true and false"
    if isinstance(value, float):
        return ": put it in quotes, since YAML takes 1.10 for the number 1.1"
    if isinstance(value, int) or hasattr(value, "isoformat"):
        return ": put it in quotes"
    return ""


def text_of(value: Any) -> str:
    """Return a text. Raises InvalidValueError, as all functions below, if the value is something else."""
    if not isinstance(value, str):
        raise InvalidValueError(f"must be text, not {described(value)}{in_quotes(value)}")
    bytes_of(value)
    return str(value)


def bytes_of(text: str) -> bytes:
    """Return a text as bytes. Raises InvalidValueError for what modules cannot be given: NUL, and a surrogate that stands for no byte."""
    if "\0" in text:
        raise InvalidValueError("must not have a NUL byte")
    try:
        return to_bytes(text)
    except UnicodeEncodeError:
        raise InvalidValueError(f"must be Unicode text, which {described(text)} is not") from None


def account_of(value: Any) -> str:
    """Return the name of a user or group, or a uid or gid as text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text_of(value)


def path_of(value: Any) -> str:
    """Return an absolute path in its shortest form."""
    if not isinstance(value, str) or not value.startswith("/"):
        raise InvalidValueError(f"must be an absolute path, not {described(value)}")
    _check_length(value)
    return posixpath.normpath("/" + value.lstrip("/"))


def _check_length(path: str) -> None:
    """Raise InvalidValueError if the kernel takes no such path."""
    encoded = bytes_of(path)
    longest = max(map(len, encoded.split(b"/")))
    if len(encoded) > _LONGEST_PATH or longest > _LONGEST_NAME:
        raise InvalidValueError(
            f"must have at most {_LONGEST_PATH} bytes, and {_LONGEST_NAME} in each name, not {len(encoded)} and {longest}"
        )


def location_of(value: Any) -> str:
    """Return the absolute path of a directory, or the address of a web server that serves one."""
    if not isinstance(value, str) or not locations.is_address(value):
        return path_of(value)
    problem = locations.problem_of(value)
    if problem:
        raise InvalidValueError(f"{locations.shown(value)} {problem}")
    return value.rstrip("/")


def relative_path_of(value: Any, what: str) -> str:
    """Return a relative path; ``what`` is what has it, for the message."""
    if not isinstance(value, str):
        raise InvalidValueError(f"must have {what} as a path, not {described(value)}{in_quotes(value)}")
    _check_length(value)
    try:
        return to_text(relative_path(bytes_of(value), what))
    except OverlayError as error:
        raise InvalidValueError(f"is wrong: {error}") from None


def one_of(*words: str) -> Convert:
    """Return a function that takes one of some words."""

    def convert(value: Any) -> str:
        if value not in words:
            meant = did_you_mean("none" if value is False else str(value), words)
            raise InvalidValueError(f"must be {', '.join(words[:-1])} or {words[-1]}, not {described(value)}{meant}")
        return str(value)

    return convert


def boolean_of(value: Any) -> bool:
    """Return a boolean, which may be given as a word for one."""
    word = str(value).strip().lower()
    if not isinstance(value, (bool, int, str)) or word not in (*_TRUE, *_FALSE):
        raise InvalidValueError(f"must be true or false, not {described(value)}")
    return word in _TRUE


def number_of(value: Any) -> float:
    """Return a number from 0 on, which may be given as text."""
    try:
        found = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = None
    except OverflowError:
        found = float("inf")
    if found is None or math.isnan(found) or found < 0:
        raise InvalidValueError(f"must be a number from 0 on, not {described(value)}")
    if found > _LARGEST:
        raise InvalidValueError(f"must be a number up to {_LARGEST}, not {described(value)}")
    return found


def whole_number_of(value: Any) -> int:
    """Return a whole number from 0 on, which may be given as text."""
    found = number_of(value)
    if found != int(found):
        raise InvalidValueError(f"must be a whole number, not {described(value)}")
    return int(found)


def size_of(value: Any) -> str:
    """Return a size above 0 as text, which may have a unit."""
    found = None if isinstance(value, bool) else _SIZE.fullmatch(str(value))
    if found is None or not float(found[1]):
        raise InvalidValueError(f"must be a size above 0, such as 2G, not {described(value)}")
    return str(value)


def list_of(value: Any, what: str) -> list[Any]:
    """Return a list; ``what`` is what it has, for the message."""
    if not isinstance(value, (list, tuple)):
        raise InvalidValueError(
            f"must be a list of {what}, not {described(value)}: give a list, also if it has one entry"
        )
    return list(value)


def paths_of(value: Any) -> list[str]:
    """Return a list of absolute paths."""
    return [path_of(one) for one in list_of(value, "absolute paths")]


def mapping_of(value: Any) -> dict[Any, Any]:
    """Return a mapping."""
    if not isinstance(value, Mapping):
        raise InvalidValueError(f"must be a mapping, not {described(value)}")
    return dict(value)


def check_keys(value: Mapping[Any, Any], known: Sequence[str], what: str) -> None:
    """Raise InvalidValueError if a mapping has a key that is not known; ``what`` is what the mapping stands for."""
    wrong = next((name for name in value if name not in known), None)
    if wrong is not None or None in value:
        shown = shortened(wrong) if isinstance(wrong, str) else described(wrong)
        raise InvalidValueError(f"has {what} with the key {shown}: the keys are {', '.join(known)}")
