# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one entry of a manifest may be. Both formats of layers show exactly what passes here, and neither checks anything itself."""

from __future__ import annotations

import re
import stat

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import ManifestError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import capability, posix_acl
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    CAPABILITY_XATTR,
    CHECKSUM_XATTR,
    Entry,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.posix_acl import ACCESS_XATTR, DEFAULT_XATTR

#: NAME_MAX of linux/limits.h.
LONGEST_NAME = 255
#: The kernel looks a redirect up as one path (PATH_MAX, with its slash and its NUL), so content cannot lie deeper.
LONGEST_SOURCE = 4094
#: The path of a directory on the software root, in bytes, so that every name in it has a source.
LONGEST_DIRECTORY = LONGEST_SOURCE - 1 - LONGEST_NAME
LONGEST_TARGET = 4095
#: mkcomposefs 1.0 makes no longer files.
LARGEST_SIZE = (1 << 53) - 1
#: Seconds since 1970, the first and the last: what ext4 keeps in 34 bits, the least of the file systems for layers.
MTIMES = (-(1 << 31), (1 << 34) - (1 << 31) - 1)
_EARLIEST, _LATEST = MTIMES[0] * 1_000_000_000, (MTIMES[1] + 1) * 1_000_000_000
#: The one mode that Linux gives to symbolic links.
SYMLINK_MODE = stat.S_IFLNK | 0o777

_TYPE = 0o170000
_REGULAR_XATTRS = frozenset((CAPABILITY_XATTR, CHECKSUM_XATTR, ACCESS_XATTR))
_DIRECTORY_XATTRS = frozenset((ACCESS_XATTR, DEFAULT_XATTR))
_CHECKSUM = re.compile(rb"[0-9a-f]{64}")


def is_mtime(nanoseconds: int) -> bool:
    """Tell whether both formats can hold a time."""
    return _EARLIEST <= nanoseconds < _LATEST


def check_name(path: bytes) -> None:
    """Raises ManifestError for a path whose last part is no name of a file."""
    name = path[path.rfind(b"/") + 1 :]
    if name in (b"", b".", b"..") or b"\0" in name:
        raise ManifestError(f"{show(path)!r} is no valid name")
    if len(name) > LONGEST_NAME:
        raise ManifestError(f"the name {show(name)[:40]}... has {len(name)} bytes, and {LONGEST_NAME} is the most")


def check_depth(path: bytes, release: bytes) -> None:
    """Raises ManifestError for a directory in which a file could have a path that the kernel cannot look up."""
    if len(release) + len(path) > LONGEST_DIRECTORY:
        raise ManifestError(f"the directory {show(path)[:80]}... lies too deep")


def check_target(path: bytes, target: bytes, size: int) -> None:
    """Raises ManifestError for what is no target of a symbolic link of that size."""
    if b"\0" in target or len(target) > LONGEST_TARGET or len(target) != size:
        raise ManifestError(
            f"the target of the symbolic link {show(path)!r} has a NUL byte, another length than its size says, or more than"
            f" {LONGEST_TARGET} bytes"
        )


def check_entry(entry: Entry, release: bytes) -> None:
    """Check all of an entry but its place in the tree. ``release`` is its release's path.

    Raises ManifestError that names the entry.
    """
    # A view has a million of them, most of which are plain files.
    path, mode, size, nlink, _uid, _gid, mtime_ns, target, is_hardlink, xattrs = entry
    if nlink < 1:
        raise ManifestError(f"{show(path)!r} has no link")
    if not _EARLIEST <= mtime_ns < _LATEST:
        raise ManifestError(f"the mtime of {show(path)!r} is out of the range that layers can hold")
    kind = mode & _TYPE
    if is_hardlink:
        _check_xattrs(entry, frozenset())
    elif kind == stat.S_IFREG:
        if target != (release + path if size else None):
            raise ManifestError(f"the content of {show(path)!r} is not at its own path in the release")
        if size > LARGEST_SIZE:
            raise ManifestError(f"{show(path)!r} has {size} bytes, and {LARGEST_SIZE} is the most")
        if xattrs:
            _check_xattrs(entry, _REGULAR_XATTRS)
    elif kind == stat.S_IFDIR:
        _check_directory(entry, release)
    elif kind == stat.S_IFLNK:
        _check_symlink(entry)
    else:
        raise ManifestError(f"{show(path)!r} is neither a directory, a regular file nor a symbolic link")


def _check_directory(entry: Entry, release: bytes) -> None:
    if entry.size or entry.target is not None or entry.nlink < 2:
        raise ManifestError(f"the directory {show(entry.path)!r} has a size, content or less than two links")
    check_depth(entry.path, release)
    _check_xattrs(entry, _DIRECTORY_XATTRS)


def _check_symlink(entry: Entry) -> None:
    target = entry.target
    if not target:
        raise ManifestError(f"the symbolic link {show(entry.path)!r} has no target")
    check_target(entry.path, target, entry.size)
    if entry.mode != SYMLINK_MODE:
        raise ManifestError(f"the symbolic link {show(entry.path)!r} has a mode of its own")
    _check_xattrs(entry, frozenset())


def _check_xattrs(entry: Entry, allowed: frozenset[bytes]) -> None:
    seen: set[bytes] = set()
    for name, value in entry.xattrs:
        if name not in allowed or name in seen:
            raise ManifestError(f"{show(entry.path)!r} may not have the attribute {show(name)}, or has it twice")
        seen.add(name)
        problem = _xattr_problem(name, value, entry.mode)
        if problem:
            raise ManifestError(f"the attribute {show(name)} of {show(entry.path)!r} is malformed: {problem}")


def _xattr_problem(name: bytes, value: bytes, mode: int) -> str | None:
    if name == CAPABILITY_XATTR:
        return capability.problem(value)
    if name == CHECKSUM_XATTR:
        return None if _CHECKSUM.fullmatch(value) else "it is no SHA-256 in hexadecimal digits"
    try:
        acl = posix_acl.parse(value)
    except ValueError as error:
        return str(error)
    if posix_acl.serialize(acl) != value:
        return "its entries are out of order"
    if len(acl) > posix_acl.LARGEST:
        return f"it has {len(acl)} entries, and {posix_acl.LARGEST} is the most"
    if name == ACCESS_XATTR and (posix_acl.is_mode(acl) or posix_acl.permissions(acl) != mode & 0o777):
        return "it does not agree with the mode, or says no more than that"
    return None
