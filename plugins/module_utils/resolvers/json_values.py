# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read values of parsed JSON and name the key in the error when one is missing or has the wrong type."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError


def parsed(value: Any, what: str) -> Any:
    """Return a value as it is, or parsed if it is JSON text. Raises OverlayError naming ``what`` if the text is not JSON."""
    if not isinstance(value, (str, bytes)):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise OverlayError(f"{what} is not JSON: {error}") from None


def mapping(value: Any, where: str) -> Mapping[Any, Any]:
    """Return a value that is a mapping. Raises OverlayError naming ``where`` otherwise."""
    if not isinstance(value, Mapping):
        raise OverlayError(f"{where} must be a mapping, not {_kind(value)}")
    return value


def sequence(value: Any, where: str) -> Sequence[Any]:
    """Return a value that is a list. Raises OverlayError naming ``where`` otherwise."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise OverlayError(f"{where} must be a list, not {_kind(value)}")
    return value


def text(value: Any, where: str) -> str:
    """Return a value that is text and not empty, as a plain string. Raises OverlayError naming ``where`` otherwise."""
    if not isinstance(value, str):
        raise OverlayError(f"{where} must be text, not {_kind(value)}")
    if not value:
        raise OverlayError(f"{where} is empty")
    return str(value)


def member(holder: Mapping[Any, Any], key: str, where: str) -> Any:
    """Return the value of a key. Raises OverlayError naming the key and ``where`` if there is none."""
    if key not in holder:
        raise OverlayError(f"{where} has no key {key!r}")
    return holder[key]


def _kind(value: Any) -> str:
    """Return the type of a value in the words of JSON."""
    names = (
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "text"),
        (Mapping, "a mapping"),
        (Sequence, "a list"),
    )
    if value is None:
        return "null"
    return next((name for kind, name in names if isinstance(value, kind)), type(value).__name__)
