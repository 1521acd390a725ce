# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reduce NFSv4 ACLs to permission bits. An NFS client shows an ACL as the xattr ``system.nfs4_acl`` (RFC 7530, section 6; nfs4_acl(5)).

A layer cannot hold an NFSv4 ACL, and the mode that a server sends with it is only an approximation. The permission bits that this file
computes grant no more than the ACL does.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import NamedTuple

XATTR = b"system.nfs4_acl"

_ALLOW, _DENY = 0, 1
#: The entry applies to new files in the directory, not to the directory itself.
_INHERIT_ONLY = 0x08
_READ, _WRITE, _APPEND, _EXECUTE = 0x01, 0x02, 0x04, 0x20

_OWNER, _GROUP, _EVERYONE = b"OWNER@", b"GROUP@", b"EVERYONE@"
_NUMBERS = struct.Struct(">IIII")
#: The largest number of entries that is accepted. A server cannot send more in one reply.
_LARGEST = 4096


class _Ace(NamedTuple):
    kind: int
    mask: int
    who: bytes


class AclSummary(NamedTuple):
    """The permission bits that stand for an NFSv4 ACL in a layer."""

    #: Permission bits that grant no more than the ACL.
    permissions: int
    #: True if the ACL has entries for users or groups other than the owner, the owning group and everyone.
    names_others: bool


def summarize(value: bytes) -> AclSummary:
    """Return the permissions that an ACL certainly grants to the owner, the owning group and others.

    A user or group that the ACL names may be any user. What it denies to them is denied to all; what it grants to them is ignored.
    Raises ValueError if ``value`` is not an NFSv4 ACL.
    """
    aces = _parse(value)
    owner = _least(aces, {_OWNER, _EVERYONE}, set())
    group = _least(aces, {_GROUP, _EVERYONE}, {_OWNER})
    other = _least(aces, {_EVERYONE}, {_OWNER, _GROUP})
    named = any(ace.who not in (_OWNER, _GROUP, _EVERYONE) and ace.mask & _ASKED for ace in aces)
    return AclSummary(owner << 6 | group << 3 | other, named)


_ASKED = _READ | _WRITE | _APPEND | _EXECUTE


def _least(aces: list[_Ace], certain: Collection[bytes], impossible: Collection[bytes]) -> int:
    """Return the permissions of a user to whom entries for ``certain`` apply, for ``impossible`` do not, and for all others may apply."""
    allowed = denied = 0
    for kind, mask, who in aces:
        if kind == _DENY and who not in impossible:
            denied |= mask & ~allowed
        elif kind == _ALLOW and who in certain:
            allowed |= mask & ~denied
    read = 4 if allowed & _READ else 0
    write = 2 if allowed & _WRITE and allowed & _APPEND else 0
    return read | write | (1 if allowed & _EXECUTE else 0)


def _parse(value: bytes) -> list[_Ace]:
    """Return the entries that allow or deny access to the file itself. Raises ValueError if ``value`` is malformed."""
    if len(value) < 4:
        raise ValueError("it is too short")
    count = int.from_bytes(value[:4], "big")
    if count > _LARGEST:
        raise ValueError(f"it claims {count} entries, and at most {_LARGEST} are allowed")
    position = 4
    found = []
    for _number in range(count):
        if position + _NUMBERS.size > len(value):
            raise ValueError("it ends within an entry")
        kind, flags, mask, length = _NUMBERS.unpack_from(value, position)
        position += _NUMBERS.size
        who = value[position : position + length]
        if len(who) < length:
            raise ValueError("it ends within a name")
        position += length + -length % 4
        if kind in (_ALLOW, _DENY) and not flags & _INHERIT_ONLY:
            found.append(_Ace(kind, mask, who))
    return found
