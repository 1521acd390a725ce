# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""POSIX ACLs as the kernel keeps them in extended attributes (include/uapi/linux/posix_acl_xattr.h, acl(5)).

While a file has an access ACL, the group bits of its mode are the ACL's mask: without the ACL they say too much or too little.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

ACCESS_XATTR = b"system.posix_acl_access"
DEFAULT_XATTR = b"system.posix_acl_default"

OWNER, USER, OWNING_GROUP, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

#: Entries of one ACL. More do not fit into a block of ext4, which is where most layers are.
LARGEST = 500

_VERSION = 2
_NO_ID = (1 << 32) - 1
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")


class AclEntry(NamedTuple):
    """One entry: whom it is for, and what it grants (4 read, 2 write, 1 execute)."""

    tag: int
    permissions: int
    #: uid or gid of a named user or group; the largest number for all others.
    number: int = _NO_ID


Acl = tuple[AclEntry, ...]


def parse(value: bytes) -> Acl:
    """Return the entries of an ACL, in the order of their tags and numbers.

    Raises ValueError for what the kernel would not take (posix_acl_valid).
    """
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise ValueError(f"{len(value)} bytes are no length of an ACL")
    if _HEADER.unpack_from(value)[0] != _VERSION:
        raise ValueError(f"version {_HEADER.unpack_from(value)[0]} of ACLs is not known")
    found = []
    for tag, permissions, number in _ENTRY.iter_unpack(value[_HEADER.size :]):
        if tag not in (OWNER, USER, OWNING_GROUP, GROUP, MASK, OTHER) or permissions > 7:
            raise ValueError(f"an entry with the tag {tag} and the permissions {permissions} is not known")
        named = tag in (USER, GROUP)
        if named and number == _NO_ID:
            raise ValueError("a named user or group has no number")
        found.append(AclEntry(tag, permissions, number if named else _NO_ID))
    acl = _sorted(found)
    tags = [entry.tag for entry in acl]
    single = [tags.count(tag) for tag in (OWNER, OWNING_GROUP, OTHER, MASK)]
    if single[:3] != [1, 1, 1] or single[3] > 1 or (not single[3] and (USER in tags or GROUP in tags)):
        raise ValueError("the owner, the owning group, others or the mask are missing or there twice")
    return acl


def serialize(acl: Acl) -> bytes:
    """Return the value of the attribute."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in acl)


def _sorted(entries: Iterable[AclEntry]) -> Acl:
    # Of entries for the same user the kernel takes the first, so these keep their order.
    return tuple(sorted(entries, key=lambda entry: (entry.tag, entry.number)))


def _group_class(acl: Acl) -> int:
    """Return the tag of the entry that the group bits of a mode are: the mask or, where there is none, the owning group."""
    return MASK if any(entry.tag == MASK for entry in acl) else OWNING_GROUP


def permissions(acl: Acl) -> int:
    """Return the permission bits of the mode of a file with this access ACL."""
    of = {entry.tag: entry.permissions for entry in acl}
    return of[OWNER] << 6 | of[_group_class(acl)] << 3 | of[OTHER]


def is_mode(acl: Acl) -> bool:
    """Tell whether an access ACL says no more than the mode does."""
    return len(acl) == 3


def with_mode(acl: Acl, mode: int) -> Acl:
    """Return an access ACL as chmod(2) leaves it."""
    new = {OWNER: mode >> 6 & 7, _group_class(acl): mode >> 3 & 7, OTHER: mode & 7}
    return tuple(entry._replace(permissions=new.get(entry.tag, entry.permissions)) for entry in acl)


def limited(acl: Acl, mode: int) -> Acl:
    """Return an access ACL that gives no class more than the mode does as well."""
    return with_mode(acl, permissions(acl) & mode)


def mapped(acl: Acl, owners: Mapping[int, int], groups: Mapping[int, int]) -> Acl:
    """Return an ACL with its named users and groups mapped.

    Several that become one have what all of them had, so that nobody gains.
    """
    if not owners and not groups:
        return acl
    merged: dict[tuple[int, int], int] = {}
    for tag, granted, number in acl:
        new = owners.get(number, number) if tag == USER else groups.get(number, number) if tag == GROUP else number
        merged[(tag, new)] = merged.get((tag, new), 7) & granted
    return _sorted(AclEntry(tag, granted, number) for (tag, number), granted in merged.items())


def narrowed(acl: Acl, uid: int, gid: int) -> int:
    """Return permission bits that give no user of any groups more than an access ACL does; ``uid`` and ``gid`` own the file.

    Members of the owning group and others may be users that the ACL names, and others may be in groups that it names, so the bits of
    both are what all of these have.
    """
    of = {entry.tag: entry.permissions for entry in acl}
    mask = of.get(MASK, 7)
    group, other = of[OWNING_GROUP] & mask, of[OTHER]
    for tag, granted, number in acl:
        # The owner is asked for before named users, and a member of the owning group has what that grants in any case.
        if tag == USER and number != uid:
            group &= granted & mask
            other &= granted & mask
        elif tag == GROUP and number != gid:
            other &= granted & mask
    return of[OWNER] << 6 | group << 3 | other
