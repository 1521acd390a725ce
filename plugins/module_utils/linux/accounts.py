# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Resolve names of users and groups of this host to uids and gids."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Mapping
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError

LookUp = Callable[[str], int]

#: The largest uid and gid. The next number is -1, which means 'leave as it is' to chown(2).
_LARGEST = (1 << 32) - 2


def user(name: str) -> int:
    """Return the uid of a user. Raises KeyError if there is no such user."""
    return pwd.getpwnam(name).pw_uid


def group(name: str) -> int:
    """Return the gid of a group. Raises KeyError if there is no such group."""
    return grp.getgrnam(name).gr_gid


def number(given: str, option: str, look_up: LookUp) -> int:
    """Return the uid or gid for a name or a number. Raises OverlayError naming ``option`` if there is none."""
    if given.isascii() and given.isdigit():
        # int() refuses thousands of digits with a ValueError.
        if len(given) > 20 or int(given) > _LARGEST:
            raise OverlayError(f"{option} {given[:40]} is larger than the largest uid or gid, {_LARGEST}")
        return int(given)
    try:
        return look_up(given)
    except KeyError:
        raise OverlayError(f"{option} {given!r} does not exist on this host; give one that does, or a number") from None


def number_map(given: Mapping[Any, Any], option: str, look_up: LookUp) -> tuple[tuple[int, int], ...]:
    """Return pairs of uids or gids for a dictionary of names or numbers. Raises OverlayError if one is mapped twice."""
    found: dict[int, int] = {}
    for before, after in given.items():
        old, new = (number(str(one), option, look_up) for one in (before, after))
        if found.setdefault(old, new) != new:
            raise OverlayError(f"{option} maps {old} to {found[old]} and, under another name, to {new}")
    return tuple(found.items())
