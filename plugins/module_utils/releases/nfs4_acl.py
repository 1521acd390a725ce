# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NFSv4 ACLs as an NFS client shows them: the attribute ``system.nfs4_acl`` (RFC 7530, section 6; nfs4_acl(5)).

A layer cannot hold one, and the mode that a server sends beside it is only a summary. What is worked out here are permission bits
that give nobody more than the ACL does.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import NamedTuple

XATTR = b"system.nfs4_acl"

_ALLOW, _DENY = 0, 1
#: The entry is for what is made in the directory, and not for the directory.
_INHERIT_ONLY = 0x08
_READ, _WRITE, _APPEND, _EXECUTE = 0x01, 0x02, 0x04, 0x20

_OWNER, _GROUP, _EVERYONE = b"OWNER@", b"GROUP@", b"EVERYONE@"
_NUMBERS = struct.Struct(">IIII")
#: Entries are read up to here; servers send no more than fit into a reply.
_LARGEST = 4096


class _Ace(NamedTuple):
    kind: int
    mask: int
    who: bytes


class Verdict(NamedTuple):
    """What an NFSv4 ACL means for a layer, which has a mode instead."""

    #: Permission bits that give nobody more than the ACL.
    permissions: int
    #: True where the ACL names users or groups beyond the owner, the owning group and everybody.
    names_others: bool


def judge(value: bytes) -> Verdict:
    """Return what an ACL grants to owner, owning group and others, whoever else they may be.

    Users and groups that it names can be anybody: what they are denied is taken from all, and what they are granted is given to nobody.
    Raises ValueError for what is no ACL.
    """
    aces = _parse(value)
    owner = _least(aces, {_OWNER, _EVERYONE}, set())
    group = _least(aces, {_GROUP, _EVERYONE}, {_OWNER})
    other = _least(aces, {_EVERYONE}, {_OWNER, _GROUP})
    named = any(ace.who not in (_OWNER, _GROUP, _EVERYONE) and ace.mask & _ASKED for ace in aces)
    return Verdict(owner << 6 | group << 3 | other, named)


_ASKED = _READ | _WRITE | _APPEND | _EXECUTE


def _least(aces: list[_Ace], certain: Collection[bytes], impossible: Collection[bytes]) -> int:
    """Return the permissions of everybody who is surely ``certain`` and surely not ``impossible``, and may be all others."""
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
    """Return the entries that are for the file itself and allow or deny something."""
    if len(value) < 4:
        raise ValueError("it is too short")
    count = int.from_bytes(value[:4], "big")
    if count > _LARGEST:
        raise ValueError(f"it says that it has {count} entries")
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
