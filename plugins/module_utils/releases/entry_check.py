# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check each entry of a manifest by itself. Layers of every format show what passes these checks, and check nothing again."""

from __future__ import annotations

import re
import stat

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import ManifestError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import capability, posix_acl
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    CAPABILITY_XATTR,
    CHECKSUM_XATTR,
    DIRECTORY_XATTRS,
    FILE_XATTRS,
    Entry,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.posix_acl import ACCESS_XATTR

#: NAME_MAX of linux/limits.h.
LONGEST_NAME = 255
#: Bytes of the path of a file's content. The kernel resolves a redirect as one path: PATH_MAX less a leading slash and a NUL byte.
LONGEST_SOURCE = 4094
#: Bytes of the path of a directory below the software root, such that the path of every file in it fits into LONGEST_SOURCE.
LONGEST_DIRECTORY = LONGEST_SOURCE - 1 - LONGEST_NAME
#: Bytes of the target of a symbolic link: PATH_MAX less a NUL byte.
LONGEST_TARGET = 4095
#: Bytes of the largest file that mkcomposefs 1.0 writes.
LARGEST_SIZE = (1 << 53) - 1
#: The first and last mtime in seconds since 1970. ext4 keeps 34 bits, fewer than other file systems for layers.
MTIMES = (-(1 << 31), (1 << 34) - (1 << 31) - 1)
_EARLIEST, _LATEST = MTIMES[0] * 1_000_000_000, (MTIMES[1] + 1) * 1_000_000_000
#: The mode of every symbolic link on Linux.
SYMLINK_MODE = stat.S_IFLNK | 0o777

_TYPE = 0o170000
_REGULAR_XATTRS = FILE_XATTRS | {CHECKSUM_XATTR}
_CHECKSUM = re.compile(rb"[0-9a-f]{64}")


def is_mtime(nanoseconds: int) -> bool:
    """Return whether layers of every format can hold an mtime, given in nanoseconds since 1970."""
    return _EARLIEST <= nanoseconds < _LATEST


def check_name(path: bytes) -> None:
    """Check that the last component of ``path`` is a valid file name. Raises ManifestError if it is not."""
    name = path[path.rfind(b"/") + 1 :]
    if name in (b"", b".", b"..") or b"\0" in name:
        raise ManifestError(f"{show(path)!r} is not a valid name")
    if len(name) > LONGEST_NAME:
        raise ManifestError(
            f"the name {show(name)[:40]}... has {len(name)} bytes, and at most {LONGEST_NAME} are allowed"
        )


def check_depth(path: bytes, release: bytes) -> None:
    """Check the length of a directory's path. Raises ManifestError if the kernel could not look up the content of a file in it."""
    if len(release) + len(path) > LONGEST_DIRECTORY:
        raise ManifestError(f"the directory {show(path)[:80]}... is nested too deeply")


def check_target(path: bytes, target: bytes, size: int) -> None:
    """Check the target of a symbolic link. Raises ManifestError if the target is invalid or does not have ``size`` bytes."""
    if b"\0" in target or len(target) > LONGEST_TARGET or len(target) != size:
        raise ManifestError(
            f"the target of symbolic link {show(path)!r} has a NUL byte, differs in length from the recorded size, or is longer than"
            f" {LONGEST_TARGET} bytes"
        )


def check_entry(entry: Entry, release: bytes) -> None:
    """Check everything about an entry but its place in the tree. ``release`` is the path of the release.

    Raises ManifestError naming the entry if it is invalid.
    """
    # A view may have a million entries, most of them regular files: this path is kept short.
    path, mode, size, nlink, _uid, _gid, mtime_ns, target, is_hardlink, xattrs = entry
    if nlink < 1:
        raise ManifestError(f"{show(path)!r} has a link count of 0")
    if not _EARLIEST <= mtime_ns < _LATEST:
        raise ManifestError(f"the mtime of {show(path)!r} is out of the range that a layer can hold")
    kind = mode & _TYPE
    if is_hardlink:
        _check_xattrs(entry, frozenset())
    elif kind == stat.S_IFREG:
        if target != (release + path if size else None):
            raise ManifestError(f"the content path of {show(path)!r} is not the path of the file in the release")
        if size > LARGEST_SIZE:
            raise ManifestError(f"{show(path)!r} has {size} bytes, and at most {LARGEST_SIZE} are allowed")
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
        raise ManifestError(f"the directory {show(entry.path)!r} has a size, content, or a link count below 2")
    check_depth(entry.path, release)
    _check_xattrs(entry, DIRECTORY_XATTRS)


def _check_symlink(entry: Entry) -> None:
    target = entry.target
    if not target:
        raise ManifestError(f"symbolic link {show(entry.path)!r} has no target")
    check_target(entry.path, target, entry.size)
    if entry.mode != SYMLINK_MODE:
        raise ManifestError(f"symbolic link {show(entry.path)!r} has a mode other than 0777")
    _check_xattrs(entry, frozenset())


def _check_xattrs(entry: Entry, allowed: frozenset[bytes]) -> None:
    seen: set[bytes] = set()
    for name, value in entry.xattrs:
        if name not in allowed or name in seen:
            raise ManifestError(f"{show(entry.path)!r} may not have the xattr {show(name)}, or has it twice")
        seen.add(name)
        problem = _xattr_problem(name, value, entry.mode)
        if problem:
            raise ManifestError(f"the xattr {show(name)} of {show(entry.path)!r} is malformed: {problem}")


def _xattr_problem(name: bytes, value: bytes, mode: int) -> str | None:
    if name == CAPABILITY_XATTR:
        return capability.problem(value)
    if name == CHECKSUM_XATTR:
        return None if _CHECKSUM.fullmatch(value) else "it is not a SHA-256 in hexadecimal digits"
    try:
        acl = posix_acl.parse(value)
    except ValueError as error:
        return str(error)
    if posix_acl.serialize(acl) != value:
        return "its entries are out of order"
    if len(acl) > posix_acl.LARGEST:
        return f"it has {len(acl)} entries, and at most {posix_acl.LARGEST} are allowed"
    if name == ACCESS_XATTR and (posix_acl.is_mode(acl) or posix_acl.permissions(acl) != mode & 0o777):
        return "it contradicts the mode or is equivalent to it"
    return None
