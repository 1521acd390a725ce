# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Owners, groups and modes in a view: those of the releases, or others instead of them."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from typing import NamedTuple

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import posix_acl
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    CAPABILITY_XATTR,
    SET_ID,
    Xattrs,
)

#: Pairs of a number in the manifests and the number in the view.
NumberMap = tuple[tuple[int, int], ...]

_ALL = 0o7777
_WHO = {"u": stat.S_ISUID | 0o700, "g": stat.S_ISGID | 0o070, "o": stat.S_ISVTX | 0o007, "a": _ALL}
_PERMISSIONS = {"r": 0o444, "w": 0o222, "x": 0o111, "X": 0, "s": stat.S_ISUID | stat.S_ISGID, "t": stat.S_ISVTX}
_COPIED = {"u": 0o700, "g": 0o070, "o": 0o007}
_CLAUSE = re.compile(r"([ugoa]+)((?:[-+=](?:[rwxXst]*|[ugo]))+)")
_CHANGE = re.compile(r"([-+=])([rwxXst]+|[ugo]|)")


class ModeChange(NamedTuple):
    """One step of a symbolic mode, such as ``go-w``."""

    operator: str
    #: The bits that belong to those whom the change is for.
    affected: int
    #: Permissions as letters, or one of ``u``, ``g`` and ``o``, whose permissions are copied.
    permissions: str


def parse_mode(text: str) -> tuple[ModeChange, ...]:
    """Return the steps of a symbolic mode as chmod(1) has it, with those whom it is for always named.

    Raises OverlayError for anything else.
    """
    changes: list[ModeChange] = []
    for clause in text.split(","):
        match = _CLAUSE.fullmatch(clause)
        if match is None:
            raise OverlayError(
                f"mode {text!r} is no symbolic mode: give clauses such as 'go-w,a+rX', each with one or more of u, g, o and a,"
                " an operator of + - =, and permissions of r w x X s t"
            )
        affected = 0
        for who in match.group(1):
            affected |= _WHO[who]
        changes += [ModeChange(operator, affected, letters) for operator, letters in _CHANGE.findall(match.group(2))]
    return tuple(changes)


def changed_mode(mode: int, changes: tuple[ModeChange, ...]) -> int:
    """Return a mode, with its type, after the changes, as chmod(1) would leave it. Links have no mode of their own."""
    if stat.S_ISLNK(mode):
        return mode
    bits = stat.S_IMODE(mode)
    directory = stat.S_ISDIR(mode)
    for operator, affected, letters in changes:
        value = _value(letters, bits, directory) & affected
        if operator == "+":
            bits |= value
        elif operator == "-":
            bits &= ~value
        else:
            # The set-ID bits of a directory are about who owns what is made in it: they go only when they are named.
            named = value if "s" in letters else 0
            kept = ~affected | ((stat.S_ISUID | stat.S_ISGID) & ~named if directory else 0)
            bits = bits & kept | value
    return stat.S_IFMT(mode) | bits


def _value(letters: str, bits: int, directory: bool) -> int:
    if letters in _COPIED:
        copied = bits & _COPIED[letters]
        return sum(permission for permission in (0o444, 0o222, 0o111) if copied & permission)
    value = 0
    for letter in letters:
        value |= _PERMISSIONS[letter]
    if "X" in letters and (directory or bits & 0o111):
        value |= 0o111
    return value


@dataclass(frozen=True)
class Attributes:
    """What becomes of owners, groups and modes. Without anything given they are those of the manifests."""

    #: Who owns all that ``owner_map`` does not name; None for the owner in the manifest. The same for groups.
    owner: int | None = None
    group: int | None = None
    owner_map: NumberMap = ()
    group_map: NumberMap = ()
    #: Changes of the modes of files and directories.
    mode: tuple[ModeChange, ...] = ()
    #: Leave set-ID bits and capabilities to files whose owner or group becomes another one.
    keep_setid: bool = False

    @property
    def strips(self) -> bool:
        """Whether files can lose set-ID bits and capabilities."""
        mapped = self.owner is not None or self.group is not None or self.owner_map or self.group_map
        return bool(mapped) and not self.keep_setid

    def uid(self, uid: int) -> int:
        return dict(self.owner_map).get(uid, uid if self.owner is None else self.owner)

    def gid(self, gid: int) -> int:
        return dict(self.group_map).get(gid, gid if self.group is None else self.group)


def is_privileged(mode: int, xattrs: Xattrs) -> bool:
    """Tell whether a file is a regular one that gives rights to who runs it."""
    return stat.S_ISREG(mode) and bool(mode & SET_ID or any(name == CAPABILITY_XATTR for name, _value in xattrs))


def without_privileges(mode: int, xattrs: Xattrs) -> tuple[int, Xattrs]:
    """Return a regular file's mode and attributes as chown(2) leaves them.

    Unlike there, the set-group-ID bit goes also where the group may not execute the file: ``mode`` may add that later.
    """
    return mode & ~SET_ID, tuple(pair for pair in xattrs if pair[0] != CAPABILITY_XATTR)


def changed_acls(xattrs: Xattrs, mode: int, owners: dict[int, int], groups: dict[int, int]) -> Xattrs:
    """Return attributes with named users and groups of ACLs mapped, and the access ACL as chmod(2) to ``mode`` leaves it."""
    changed = []
    for name, value in xattrs:
        if name in (posix_acl.ACCESS_XATTR, posix_acl.DEFAULT_XATTR):
            acl = posix_acl.mapped(posix_acl.parse(value), owners, groups)
            value = posix_acl.serialize(posix_acl.with_mode(acl, mode) if name == posix_acl.ACCESS_XATTR else acl)
        changed.append((name, value))
    return tuple(changed)
