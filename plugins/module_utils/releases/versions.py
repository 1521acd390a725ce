# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare version strings of software releases, such as 20.5.410, 15.1v3, 2025.2 and v1.2-rc1.

There are three orders. ``vendor`` is how software vendors write versions. ``pep440`` is that of Python's version specifiers
(https://packaging.python.org/specifications/version-specifiers/), and ``rez`` is that of rez (https://rez.readthedocs.io).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError

#: Words that mark a copy that was set aside, an unfinished version or a pre-release. All are earlier than the version itself.
_EARLIER = {
    **dict.fromkeys(("backup", "bak", "broken", "copy", "old", "orig", "temp", "tmp"), 0),
    **dict.fromkeys(("draft", "wip"), 1),
    "dev": 2,
    "alpha": 3,
    "beta": 4,
    "pre": 5,
    "preview": 5,
    "rc": 6,
}
#: Letters that do so before a number. Without one, as in 1.0.2k, a letter is that of a later revision.
_LETTERS = {"a": 3, "b": 4, "c": 6}
_TOKEN = re.compile(r"([0-9]+)|([a-z]+)(?=([0-9])?)")

#: Names in the place of a version that say which version is meant.
POINTERS = ("current", "latest")

#: A part of a sort key. Parts at one place of two keys can be compared.
Key = tuple[Any, ...]

#: Marks the end of a version. It sorts after pre-release words and before all other tokens.
_END: Key = (1, 0, "")

_PEP_440 = re.compile(
    r"v?(?:(?P<epoch>[0-9]+)!)?(?P<release>[0-9]+(?:\.[0-9]+)*)"
    r"(?:[-_.]?(?P<pre>alpha|beta|preview|pre|rc|a|b|c)[-_.]?(?P<pre_number>[0-9]*))?"
    r"(?P<post>-(?P<implicit>[0-9]+)|[-_.]?(?:post|rev|r)[-_.]?(?P<post_number>[0-9]*))?"
    r"(?P<dev>[-_.]?dev[-_.]?(?P<dev_number>[0-9]*))?"
    r"(?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?"
)
_PRE_RELEASES = {"a": 0, "b": 1, "c": 2, "p": 2, "r": 2}

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def version_key(version: str, order: str = "vendor") -> Key:
    """Return a sort key for a version in one of ``ORDERS``.

    ``vendor``: numbers compare as numbers and words as words; a number is later than a word. Separators, case, a leading ``v`` and trailing
    zeros are ignored (1.0 equals 1). Words such as ``rc``, ``wip`` and ``old`` make a version earlier (2.0rc1 is earlier than 2.0). What
    follows a ``+`` makes it later.

    ``pep440``: as Python's packages. Versions that PEP 440 does not allow are earlier than all others, in the order ``vendor``.

    ``rez``: longer is later, words are earlier than numbers, and case and zeros count.

    In each order, ``current`` and ``latest`` are earlier than all other versions: they say which version is meant, and are none.
    """
    return (0,) if version.lower() in POINTERS else (1, *ORDERS[order](version))


def is_prerelease(version: str, order: str = "vendor") -> bool:
    """Return whether a version is a pre-release, unfinished, or a copy that was set aside.

    In the order ``pep440`` only pre-releases and development releases are, unless PEP 440 does not allow the version.
    """
    match = _pep_440(version) if order == "pep440" else None
    if match:
        return bool(match["pre"] or match["dev"])
    base = version.lower().partition("+")[0]
    return any(token[0] == 0 for token in _tokens(base))


def _vendor_key(version: str) -> Key:
    base, _plus, local = version.lower().partition("+")
    return (
        *_tokens(base),
        _END,
        *((2, 0, word) if word else _number(3, digits) for digits, word, _follows in _split(local)),
    )


def _tokens(base: str) -> list[Key]:
    """Return the parts of a version without what follows a plus sign."""
    if re.match(r"v[0-9]", base):
        base = base[1:]
    tokens: list[Key] = []
    for digits, word, follows in _split(base):
        if digits:
            tokens.append(_number(3, digits))
            continue
        _drop_trailing_zeros(tokens)
        rank = _EARLIER.get(word, _LETTERS.get(word) if follows else None)
        tokens.append((2, 0, word) if rank is None else (0, rank, ""))
    _drop_trailing_zeros(tokens)
    return tokens


def _split(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield the numbers and words of a text: a number or "", a word or "", and whether a number follows the word at once."""
    for match in _TOKEN.finditer(text):
        yield match[1] or "", match[2] or "", match[3] or ""


def _number(kind: int, digits: str) -> Key:
    # Compared by length, then digit by digit, since int() refuses thousands of digits.
    digits = digits.lstrip("0")
    return kind, len(digits), digits


def _drop_trailing_zeros(tokens: list[Key]) -> None:
    while tokens and tokens[-1] == (3, 0, ""):
        tokens.pop()


def _pep_440(version: str) -> re.Match[str] | None:
    return _PEP_440.fullmatch(version.strip().lower()) if version.isascii() else None


def _pep_440_key(version: str) -> Key:
    match = _pep_440(version)
    if match is None:
        return 0, _vendor_key(version)
    release = [_number(3, part) for part in match["release"].split(".")]
    _drop_trailing_zeros(release)
    if match["pre"]:
        pre: Key = (1, _PRE_RELEASES[match["pre"][0]], *_number(3, match["pre_number"]))
    else:
        # A development release of the version itself is earlier than its pre-releases.
        pre = (0,) if match["dev"] and not match["post"] else (2,)
    post: Key = (1, *_number(3, match["implicit"] or match["post_number"] or "")) if match["post"] else (0,)
    dev: Key = (0, *_number(3, match["dev_number"])) if match["dev"] else (1,)
    parts = re.split("[-_.]", match["local"]) if match["local"] else []
    local = tuple(_number(1, part) if part.isdigit() else (0, 0, part) for part in parts)
    return 1, _number(3, match["epoch"] or ""), tuple(release), pre, post, dev, local


def _rez_key(version: str) -> Key:
    return tuple(
        tuple(
            (1, *_number(3, part), part) if part.isdigit() else (0, 0, 0, "", part)
            for part in re.findall("[0-9]+|[a-zA-Z_]+", token)
        )
        for token in re.findall("[0-9a-zA-Z_]+", version)
    )


#: The orders of versions by their names, each with what makes a sort key.
ORDERS: dict[str, Callable[[str], Key]] = {"vendor": _vendor_key, "pep440": _pep_440_key, "rez": _rez_key}


def compare(left: str, relation: str, right: str, order: str = "vendor") -> bool:
    """Return whether ``left relation right`` holds. ``relation`` is one of ``== != < <= > >=``. Raises OverlayError if it is not."""
    try:
        holds = _OPERATORS[relation]
    except KeyError:
        raise OverlayError(f"{relation!r} is not a version comparison; use one of {' '.join(_OPERATORS)}") from None
    return holds(version_key(left, order), version_key(right, order))
