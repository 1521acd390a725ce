# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the access rights of an entry besides its owner and mode: ACLs and file capabilities.

If a layer cannot carry an ACL, the mode is narrowed, so that a view never grants more than the release does.
"""

from __future__ import annotations

import os
import stat

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import xattrs
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import nfs4_acl, posix_acl
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    CAPABILITY_XATTR,
    CARRIED_XATTRS,
    Xattrs,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.posix_acl import ACCESS_XATTR, DEFAULT_XATTR
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.rights import PathCount

_CAPABILITY, _ACCESS, _DEFAULT, _NFS4 = (
    os.fsdecode(name) for name in (CAPABILITY_XATTR, ACCESS_XATTR, DEFAULT_XATTR, nfs4_acl.XATTR)
)
#: NFS lists these besides the ACL. They are parts of it.
_NFS4_PARTS = frozenset(("system.nfs4_dacl", "system.nfs4_sacl"))
#: The xattrs that this file reads or may ignore. Any other ``system.`` xattr may be an ACL of an unknown kind.
_KNOWN = frozenset(map(os.fsdecode, CARRIED_XATTRS)) | {_NFS4} | _NFS4_PARTS
_PERMISSIONS = 0o777


class RightsReader:
    """Read the rights of the entries of one release, which is on one file system. ``top`` is an open descriptor of its directory."""

    def __init__(self, top: int) -> None:
        #: Entries whose ACL a layer cannot hold. Their mode grants no more than the ACL, and may grant less to some users.
        self.narrowed = PathCount()
        # An NFS 4 client needs a further call to the server to list xattrs, and has none that are carried.
        self._has_nfs4_acls = _has_nfs4_acl(top)

    def read(self, target: xattrs.Target, status: os.stat_result, path: bytes) -> tuple[int, Xattrs]:
        """Return the mode and xattrs that the manifest records for a regular file or directory, given its ``status`` and ``path``."""
        if self._has_nfs4_acls:
            return self._nfs4_mode(target, status.st_mode, path), ()
        names = xattrs.names(target)
        if not names:
            return status.st_mode, ()
        mode, found = status.st_mode, []
        if _CAPABILITY in names and stat.S_ISREG(mode):
            capability = xattrs.read(target, CAPABILITY_XATTR)
            if capability is not None:
                found.append((CAPABILITY_XATTR, capability))
        if _ACCESS in names and _NFS4 not in names:
            mode, access = self._access(target, status, path)
            found += access
        if _DEFAULT in names and stat.S_ISDIR(mode):
            found += self._default(target, path)
        if _NFS4 in names:
            # No file system has ACLs of both kinds.
            mode = self._nfs4_mode(target, mode, path)
        elif any(name.startswith("system.") and name not in _KNOWN for name in names):
            self.narrowed.add(path)
        return mode, tuple(found)

    def _access(
        self, target: xattrs.Target, status: os.stat_result, path: bytes
    ) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Return the mode of a file with an access ACL, and the xattr of the ACL if a layer can carry it."""
        mode = status.st_mode
        value = xattrs.read(target, ACCESS_XATTR)
        if value is None:
            return mode, []
        try:
            # If the mode grants less than the mask of the ACL, the file system checks both.
            acl = posix_acl.limited(posix_acl.parse(value), mode)
        except ValueError:
            self.narrowed.add(path)
            return mode & ~_PERMISSIONS, []
        if posix_acl.is_mode(acl):
            return mode & ~_PERMISSIONS | posix_acl.permissions(acl), []
        if len(acl) > posix_acl.LARGEST:
            self.narrowed.add(path)
            return mode & ~_PERMISSIONS | posix_acl.narrowed(acl, status.st_uid, status.st_gid), []
        return mode & ~_PERMISSIONS | posix_acl.permissions(acl), [(ACCESS_XATTR, posix_acl.serialize(acl))]

    def _default(self, target: xattrs.Target, path: bytes) -> list[tuple[bytes, bytes]]:
        """Return the xattr of a directory's default ACL if a layer can carry it."""
        value = xattrs.read(target, DEFAULT_XATTR)
        if value is None:
            return []
        try:
            acl = posix_acl.parse(value)
        except ValueError:
            acl = ()
        if not 0 < len(acl) <= posix_acl.LARGEST:
            self.narrowed.add(path)
            return []
        return [(DEFAULT_XATTR, posix_acl.serialize(acl))]

    def _nfs4_mode(self, target: xattrs.Target, mode: int, path: bytes) -> int:
        """Return the mode of an entry narrowed by its NFSv4 ACL. An ACL that is unreadable or malformed grants nothing."""
        try:
            value = _nfs4_acl(target)
            if value is None:
                return mode
            granted = nfs4_acl.summarize(value)
        except (ValueError, PermissionError):
            granted = nfs4_acl.AclSummary(0, True)
        narrowed = mode & ~_PERMISSIONS | mode & granted.permissions
        if narrowed != mode or granted.names_others:
            self.narrowed.add(path)
        return narrowed


def _has_nfs4_acl(target: xattrs.Target) -> bool:
    try:
        return _nfs4_acl(target) is not None
    except PermissionError:
        return True


def _nfs4_acl(target: xattrs.Target) -> bytes | None:
    return xattrs.read(target, nfs4_acl.XATTR)
