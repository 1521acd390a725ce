# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parse, change and narrow POSIX ACLs in the form of the kernel's xattrs (include/uapi/linux/posix_acl_xattr.h, acl(5)).

The group bits of the mode of a file with an access ACL are the mask of the ACL. Without the ACL they would grant too much or too little.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

ACCESS_XATTR = b"system.posix_acl_access"
DEFAULT_XATTR = b"system.posix_acl_default"
ACL_XATTRS = frozenset((ACCESS_XATTR, DEFAULT_XATTR))

OWNER, USER, OWNING_GROUP, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

#: The largest number of entries. More do not fit into a block of ext4, the file system of most layers.
LARGEST = 500

_VERSION = 2
_NO_ID = (1 << 32) - 1
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")


class AclEntry(NamedTuple):
    """An ACL entry: its tag, and the permissions that it grants (4 read, 2 write, 1 execute)."""

    tag: int
    permissions: int
    #: The uid or gid of a named user or group; otherwise ACL_UNDEFINED_ID, the largest number.
    number: int = _NO_ID


Acl = tuple[AclEntry, ...]


def parse(value: bytes) -> Acl:
    """Return the entries of an ACL, ordered by tag, then by uid or gid.

    Raises ValueError if the kernel would refuse the ACL (posix_acl_valid).
    """
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise ValueError(f"no ACL has a length of {len(value)} bytes")
    if _HEADER.unpack_from(value)[0] != _VERSION:
        raise ValueError(f"ACL version {_HEADER.unpack_from(value)[0]} is unknown")
    found = []
    for tag, permissions, number in _ENTRY.iter_unpack(value[_HEADER.size :]):
        if tag not in (OWNER, USER, OWNING_GROUP, GROUP, MASK, OTHER) or permissions > 7:
            raise ValueError(f"an entry has the unknown tag {tag} or invalid permissions {permissions}")
        named = tag in (USER, GROUP)
        if named and number == _NO_ID:
            raise ValueError("a named user or group has no uid or gid")
        found.append(AclEntry(tag, permissions, number if named else _NO_ID))
    acl = _sorted(found)
    tags = [entry.tag for entry in acl]
    single = [tags.count(tag) for tag in (OWNER, OWNING_GROUP, OTHER, MASK)]
    if single[:3] != [1, 1, 1] or single[3] > 1 or (not single[3] and (USER in tags or GROUP in tags)):
        raise ValueError("the entry of the owner, owning group, others or mask is missing or duplicated")
    return acl


def serialize(acl: Acl) -> bytes:
    """Return the value of the xattr for ``acl``."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in acl)


def _sorted(entries: Iterable[AclEntry]) -> Acl:
    # The kernel uses the first of several entries for one user. A stable sort keeps their order.
    return tuple(sorted(entries, key=lambda entry: (entry.tag, entry.number)))


def _group_class(acl: Acl) -> int:
    """Return the tag of the entry that equals the group bits of the mode: the mask, or the owning group if there is no mask."""
    return MASK if any(entry.tag == MASK for entry in acl) else OWNING_GROUP


def permissions(acl: Acl) -> int:
    """Return the permission bits of the mode of a file that has ``acl`` as its access ACL."""
    of = {entry.tag: entry.permissions for entry in acl}
    return of[OWNER] << 6 | of[_group_class(acl)] << 3 | of[OTHER]


def is_mode(acl: Acl) -> bool:
    """Return whether an access ACL is equivalent to a mode: it has no mask and no named users or groups."""
    return len(acl) == 3


def with_mode(acl: Acl, mode: int) -> Acl:
    """Return an access ACL as chmod(2) with ``mode`` changes it."""
    new = {OWNER: mode >> 6 & 7, _group_class(acl): mode >> 3 & 7, OTHER: mode & 7}
    return tuple(entry._replace(permissions=new.get(entry.tag, entry.permissions)) for entry in acl)


def limited(acl: Acl, mode: int) -> Acl:
    """Return an access ACL without the permissions that ``mode`` does not grant."""
    return with_mode(acl, permissions(acl) & mode)


def mapped(acl: Acl, owners: Mapping[int, int], groups: Mapping[int, int]) -> Acl:
    """Return an ACL with the uids and gids of its named users and groups mapped.

    If several users or groups are mapped to one, the result keeps the permissions that all of them had, so that no user gains any.
    """
    if not owners and not groups:
        return acl
    merged: dict[tuple[int, int], int] = {}
    for tag, granted, number in acl:
        new = owners.get(number, number) if tag == USER else groups.get(number, number) if tag == GROUP else number
        merged[(tag, new)] = merged.get((tag, new), 7) & granted
    return _sorted(AclEntry(tag, granted, number) for (tag, number), granted in merged.items())


def narrowed(acl: Acl, uid: int, gid: int) -> int:
    """Return permission bits that grant no more than an access ACL to any user, whatever their groups; ``uid`` and ``gid`` own the file.

    Members of the owning group, and others, may be users that the ACL names. Others may also be members of groups that it names. So the
    bits of both classes are limited to what all of these entries grant.
    """
    of = {entry.tag: entry.permissions for entry in acl}
    mask = of.get(MASK, 7)
    group, other = of[OWNING_GROUP] & mask, of[OTHER]
    for tag, granted, number in acl:
        # The kernel checks the owner before named users. A member of the owning group has the permissions of that group in any case.
        if tag == USER and number != uid:
            group &= granted & mask
            other &= granted & mask
        elif tag == GROUP and number != gid:
            other &= granted & mask
    return of[OWNER] << 6 | group << 3 | other
