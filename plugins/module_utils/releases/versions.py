# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare version strings of software releases, such as 20.5.410, 15.1v3, 2025.2 and v1.2-rc1."""

from __future__ import annotations

import operator
import re
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError

#: Words that mark a pre-release, which is earlier than the version itself.
_EARLIER = {"dev": 0, "a": 1, "alpha": 1, "b": 2, "beta": 2, "pre": 3, "preview": 3, "c": 4, "rc": 4}
_TOKEN = re.compile(r"[0-9]+|[a-z]+")

Token = tuple[int, int, str]

#: Marks the end of a version. It sorts after pre-release words and before all other tokens.
_END: Token = (1, 0, "")

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def version_key(version: str) -> tuple[Token, ...]:
    """Return a sort key for a version.

    Numbers compare as numbers and words as words; a number is later than a word. Separators, case, a leading ``v`` and trailing zeros are
    ignored (1.0 equals 1). ``dev``, ``alpha``, ``beta``, ``pre`` and ``rc`` mark pre-releases (2.0rc1 is earlier than 2.0).
    """
    text = version.lower()
    if re.match(r"v[0-9]", text):
        text = text[1:]
    tokens: list[Token] = []
    for token in _TOKEN.findall(text):
        if token.isdigit():
            # Compared by length, then digit by digit, since int() refuses thousands of digits.
            digits = token.lstrip("0")
            tokens.append((3, len(digits), digits))
        else:
            _drop_trailing_zeros(tokens)
            tokens.append((0, _EARLIER[token], "") if token in _EARLIER else (2, 0, token))
    _drop_trailing_zeros(tokens)
    return (*tokens, _END)


def _drop_trailing_zeros(tokens: list[Token]) -> None:
    while tokens and tokens[-1] == (3, 0, ""):
        tokens.pop()


def compare(left: str, relation: str, right: str) -> bool:
    """Return whether ``left relation right`` holds. ``relation`` is one of ``== != < <= > >=``. Raises OverlayError if it is not."""
    try:
        holds = _OPERATORS[relation]
    except KeyError:
        raise OverlayError(f"{relation!r} is not a version comparison; use one of {' '.join(_OPERATORS)}") from None
    return holds(version_key(left), version_key(right))
