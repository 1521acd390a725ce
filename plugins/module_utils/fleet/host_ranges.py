# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write many host names as few ranges, such as ``render[001-120,130]``, and sort names as people do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

# int() is quadratic, so long runs of digits are split. ASCII only: other digits are part of the text.
_DIGITS = re.compile(r"([0-9]{1,15})")
#: Characters with a meaning in ranges. A name that has one is not folded.
_SPECIAL = frozenset("[],")

#: A name as text, digits, text, digits, …, text.
_Tokens = tuple[str, ...]


def natural_key(name: str) -> tuple[tuple[object, ...], str]:
    """Return a key that sorts ``node9`` before ``node10``."""
    parts = _DIGITS.split(name)
    return tuple(int(part) if number % 2 else part for number, part in enumerate(parts)), name


def fold_hosts(hosts: Iterable[str]) -> list[str]:
    """Return host names as ranges, each name in exactly one of them, in the order of the first name of each."""
    ordered = sorted(set(hosts), key=natural_key)
    items = {(name,) if _SPECIAL & set(name) else tuple(_DIGITS.split(name)): None for name in ordered}
    while True:
        folded = _fold_once(list(items))
        if len(folded) == len(items):
            return ["".join(item) for item in items]
        items = folded


def _fold_once(items: list[_Tokens]) -> dict[_Tokens, None]:
    """Fold one number of each name: the one in which most other names differ from it."""
    alike = Counter(key for item in items for key in _keys(item))
    groups: dict[object, list[tuple[_Tokens, int]]] = {}
    for item in items:
        # Of equally good numbers the last one: in rack1-node01 that is the node.
        key = max(_keys(item), key=lambda key: (alike[key], key[0]), default=None)
        if key is None or alike[key] == 1:
            groups[item] = [(item, 0)]
        else:
            groups.setdefault(key, []).append((item, key[0]))
    return dict.fromkeys(_folded(group) for group in groups.values())


def _keys(item: _Tokens) -> list[tuple[int, _Tokens, _Tokens]]:
    """Return for each number of a name what other names must share with it to differ in that number only."""
    return [(place, item[:place], item[place + 1 :]) for place in range(1, len(item), 2)]


def _folded(group: list[tuple[_Tokens, int]]) -> _Tokens:
    item, place = group[0]
    if len(group) == 1:
        return item
    ranges = _ranges([member[place] for member, _place in group])
    return (*item[: place - 1], f"{item[place - 1]}[{ranges}]{item[place + 1]}", *item[place + 2 :])


def _ranges(numbers: list[str]) -> str:
    """Return numbers as ranges. Numbers with leading zeros keep their width."""
    padded = {len(number) for number in numbers if number[0] == "0" and len(number) > 1}
    spans: list[list[tuple[int, int, str]]] = []
    # By width first, so that a range has numbers of one width, or numbers without leading zeros.
    for width, value, number in sorted((len(one) if len(one) in padded else 0, int(one), one) for one in numbers):
        if spans and spans[-1][-1][:2] == (width, value - 1):
            spans[-1].append((width, value, number))
        else:
            spans.append([(width, value, number)])
    return ",".join(span[0][2] if len(span) == 1 else f"{span[0][2]}-{span[-1][2]}" for span in spans)
