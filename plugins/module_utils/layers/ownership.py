# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Change the owners, groups, modes and ACLs of a view's entries by the rules that the view declares."""

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

#: Pairs of a uid or gid in manifests and the one in the view.
IdMap = tuple[tuple[int, int], ...]

_ALL = 0o7777
_CLASSES = {"u": stat.S_ISUID | 0o700, "g": stat.S_ISGID | 0o070, "o": stat.S_ISVTX | 0o007, "a": _ALL}
_PERMISSIONS = {"r": 0o444, "w": 0o222, "x": 0o111, "X": 0, "s": stat.S_ISUID | stat.S_ISGID, "t": stat.S_ISVTX}
_COPIED = {"u": 0o700, "g": 0o070, "o": 0o007}
_CLAUSE = re.compile(r"([ugoa]+)((?:[-+=](?:[rwxXst]*|[ugo]))+)")
_CHANGE = re.compile(r"([-+=])([rwxXst]+|[ugo]|)")


class ModeChange(NamedTuple):
    """One step of a symbolic mode, such as ``go-w``."""

    operator: str
    #: The mode bits of the classes of users to which the step applies.
    affected: int
    #: The letters of permissions, or one of ``u``, ``g`` and ``o`` to copy the permissions of that class.
    permissions: str


def parse_mode(text: str) -> tuple[ModeChange, ...]:
    """Return the steps of a symbolic mode as in chmod(1). Unlike there, each clause must name the classes of users.

    Raises OverlayError if ``text`` is not such a mode.
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
        for letter in match.group(1):
            affected |= _CLASSES[letter]
        changes += [ModeChange(operator, affected, letters) for operator, letters in _CHANGE.findall(match.group(2))]
    return tuple(changes)


def changed_mode(mode: int, changes: tuple[ModeChange, ...]) -> int:
    """Return ``mode``, which includes the file type, as chmod(1) with ``changes`` leaves it. Symbolic links are not changed."""
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
            # Like chmod(1), "=" keeps the set-ID bits of a directory unless it names them.
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
class OwnershipRules:
    """How a view changes owners, groups and modes. By default it shows those of the manifests."""

    #: The uid of the owner of all entries that ``owner_map`` does not map; None keeps the uid in the manifest. Likewise for gids.
    owner: int | None = None
    group: int | None = None
    owner_map: IdMap = ()
    group_map: IdMap = ()
    #: Changes to the modes of files and directories.
    mode: tuple[ModeChange, ...] = ()
    #: Keep set-ID bits and capabilities of files whose owner or group changes.
    keep_setid: bool = False

    @property
    def strips(self) -> bool:
        """True if files may lose set-ID bits and capabilities."""
        mapped = self.owner is not None or self.group is not None or self.owner_map or self.group_map
        return bool(mapped) and not self.keep_setid

    def uid(self, uid: int) -> int:
        """Return the uid in the view for a uid in a manifest."""
        return dict(self.owner_map).get(uid, uid if self.owner is None else self.owner)

    def gid(self, gid: int) -> int:
        """Return the gid in the view for a gid in a manifest."""
        return dict(self.group_map).get(gid, gid if self.group is None else self.group)


def is_privileged(mode: int, xattrs: Xattrs) -> bool:
    """Return whether an entry is a regular file with set-ID bits or capabilities."""
    return stat.S_ISREG(mode) and bool(mode & SET_ID or any(name == CAPABILITY_XATTR for name, _value in xattrs))


def without_privileges(mode: int, xattrs: Xattrs) -> tuple[int, Xattrs]:
    """Return the mode and xattrs of a regular file as chown(2) leaves them.

    Unlike chown(2), clear the set-group-ID bit also if the group may not execute the file, since a rule may add that permission later.
    """
    return mode & ~SET_ID, tuple(pair for pair in xattrs if pair[0] != CAPABILITY_XATTR)


def changed_acls(xattrs: Xattrs, mode: int, owners: dict[int, int], groups: dict[int, int]) -> Xattrs:
    """Return xattrs with the named users and groups of ACLs mapped, and the access ACL as chmod(2) with ``mode`` leaves it."""
    changed = []
    for name, value in xattrs:
        if name in posix_acl.ACL_XATTRS:
            acl = posix_acl.mapped(posix_acl.parse(value), owners, groups)
            value = posix_acl.serialize(posix_acl.with_mode(acl, mode) if name == posix_acl.ACCESS_XATTR else acl)
        changed.append((name, value))
    return tuple(changed)
