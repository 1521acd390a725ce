# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Define the values that describe a release: tree entries, counts of entries, manifest records, and placements in a view."""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import records
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.posix_acl import ACCESS_XATTR, ACL_XATTRS
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.rights import PathCount

Xattrs = tuple[tuple[bytes, bytes], ...]

CAPABILITY_XATTR = b"security.capability"
#: Xattr of a manifest entry that holds the SHA-256 of the file's content as hexadecimal text. Views do not have it.
CHECKSUM_XATTR = b"user.renderfarm.sha256"

#: The xattrs that a view carries from its releases, by type of file: those that change what a program may do or who may use a file.
#: Symbolic links carry none.
FILE_XATTRS = frozenset((CAPABILITY_XATTR, ACCESS_XATTR))
DIRECTORY_XATTRS = ACL_XATTRS
CARRIED_XATTRS = FILE_XATTRS | DIRECTORY_XATTRS
#: The xattrs that a manifest may have. Others are refused: with ``trusted.overlay.redirect`` whoever writes a manifest could show any
#: file of the data layer under any name.
MANIFEST_XATTRS = CARRIED_XATTRS | {CHECKSUM_XATTR}

#: NAME_MAX of linux/limits.h.
_LONGEST_NAME = 255

#: The set-user-ID and set-group-ID bits of a mode.
SET_ID = stat.S_ISUID | stat.S_ISGID


class Entry(NamedTuple):
    """One line of composefs-dump text: a name in a tree, and the file it names.

    A named tuple is faster than a dataclass, and a view may have a million entries.
    """

    #: Absolute path within the tree; ``/`` is the root of the tree.
    path: bytes
    #: File type and permission bits, as in ``st_mode``.
    mode: int
    #: Bytes of content of a file, or of the target of a symbolic link; 0 for a directory.
    size: int
    nlink: int
    uid: int
    gid: int
    mtime_ns: int
    #: Symbolic link: its target. Hard link: path of the entry with the first name of the file. Regular file with content: path of the
    #: content, relative to the root of the data layer. None for everything else.
    target: bytes | None
    #: True for every name of a file but its first.
    is_hardlink: bool
    xattrs: Xattrs

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True)
class EntryCounts:
    """The number of entries of each kind in a tree; ``hardlinks`` counts every name of a file but its first."""

    directories: int = 0
    files: int = 0
    symlinks: int = 0
    hardlinks: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counts by kind, for return values and records."""
        return {
            "directories": self.directories,
            "files": self.files,
            "symlinks": self.symlinks,
            "hardlinks": self.hardlinks,
        }

    @property
    def total(self) -> int:
        """Return the number of all entries, which is the number of lines of the manifest."""
        return self.directories + self.files + self.symlinks + self.hardlinks


@dataclass
class Tally:
    """Count entries, and the bytes of regular files, while entries are read or written."""

    directories: int = 0
    files: int = 0
    symlinks: int = 0
    hardlinks: int = 0
    bytes: int = 0
    #: Files with set-ID bits or capabilities.
    privileged: PathCount = field(default_factory=PathCount)

    def add(self, entry: Entry) -> None:
        """Count one entry."""
        if entry.is_hardlink:
            self.hardlinks += 1
        elif stat.S_ISREG(entry.mode):
            self.files += 1
            self.bytes += entry.size
            if entry.mode & SET_ID or (entry.xattrs and any(name == CAPABILITY_XATTR for name, _value in entry.xattrs)):
                self.privileged.add(entry.path)
        elif stat.S_ISDIR(entry.mode):
            self.directories += 1
        else:
            self.symlinks += 1

    def counts(self) -> EntryCounts:
        """Return the counts of this moment."""
        return EntryCounts(self.directories, self.files, self.symlinks, self.hardlinks)


@dataclass(frozen=True)
class ManifestRecord:
    """The record of a manifest: a summary in a small file beside it."""

    #: Path of the release below the software root, for example ``houdini/20.5.410``.
    release: str
    #: ``sha256:`` and the hexadecimal SHA-256 of the uncompressed composefs-dump text.
    digest: str
    #: Size of the gzipped manifest in bytes, which shows truncation without reading the manifest.
    stored_bytes: int
    entries: EntryCounts
    #: Bytes of content of all regular files. A file with several names is counted once.
    bytes: int
    #: True if the manifest has the SHA-256 of every file.
    checksums: bool
    #: Identity of the software root: usually the path at which hosts mount it.
    root: str = ""


#: What counts of entries are in a record.
ENTRY_COUNTS = records.fields(dict.fromkeys(EntryCounts().as_dict(), records.integer(0, records.LARGEST_SIZE)))


@dataclass(frozen=True)
class Placement:
    """A release in a view: its manifest, its place in the view, and the path of its data in the data layer."""

    #: Path of the gzipped manifest.
    manifest: str
    record: ManifestRecord
    #: Path in the view, relative to its root; empty for the root itself.
    at: bytes
    #: Path in the data layer, relative to its root.
    source: bytes
    #: Patterns of paths, relative to the release, that the view shows (all paths if there are none), and that it does not show.
    include: tuple[bytes, ...] = ()
    exclude: tuple[bytes, ...] = ()


def root_identity(given: str) -> str:
    """Return the identity of a software root in its normal form: a path without a trailing slash, or any other text unchanged."""
    return posixpath.normpath(given) if given.startswith("/") else given


def below_root(release: str, prefix: str) -> str:
    """Return the path of a release below its software root. ``prefix`` is what its name has before that path; empty if nothing.

    Raises OverlayError if the name of the release does not begin with the prefix.
    """
    if not prefix:
        return release
    path = release[len(prefix) + 1 :]
    if not path or not release.startswith(prefix + "/"):
        raise OverlayError(
            f"release {release} is not of the software root {prefix}: the names of its releases begin with {prefix}/"
        )
    return path


def root_of_release(release: str, names: Sequence[str]) -> str:
    """Return the name of the software root that a release is of: its name begins with it. ``names`` are those of the declared roots.

    Raises OverlayError if the name of the release begins with none of them, or has nothing after it.
    """
    name, _slash, path = release.partition("/")
    if name not in names or not path:
        raise OverlayError(
            f"release {release} is of none of the roots {', '.join(names)}: its name must begin with that of its root, as in"
            f" {names[0]}/VERSION"
        )
    return name


def relative_path(text: bytes, what: str) -> bytes:
    """Return ``text`` as a normalised path relative to a root; empty for the root itself.

    Raises OverlayError naming ``what`` if the path could lead out of the root or has a name that is too long.
    """
    parts = text.split(b"/")
    if b".." in parts or b"\0" in text:
        raise OverlayError(f"{what} {show(text)!r} may not contain '..' or a NUL byte")
    if any(len(part) > _LONGEST_NAME for part in parts):
        raise OverlayError(f"{what} {show(text)!r} has a component of more than {_LONGEST_NAME} bytes")
    return b"/".join(part for part in parts if part not in (b"", b"."))
