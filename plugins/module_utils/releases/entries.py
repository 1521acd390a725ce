# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The values that everything else is made of: tree entries, their counts, and releases."""

from __future__ import annotations

import posixpath
import stat
from dataclasses import dataclass, field
from typing import NamedTuple

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.posix_acl import ACCESS_XATTR, DEFAULT_XATTR
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.rights import PathCount

Xattrs = tuple[tuple[bytes, bytes], ...]

#: Attribute of a manifest entry that holds the SHA-256 of the file's content, as hexadecimal text. It stays in the
#: manifest: a layer does not carry it.
CHECKSUM_XATTR = b"user.renderfarm.sha256"
CAPABILITY_XATTR = b"security.capability"
#: The attributes that change what a file does or who may use it, and so are carried from the release to the view.
CARRIED_XATTRS = frozenset((CAPABILITY_XATTR, ACCESS_XATTR, DEFAULT_XATTR))

#: NAME_MAX of linux/limits.h.
_LONGEST_NAME = 255

#: Mode bits that make a program run as its owner or group.
SET_ID = stat.S_ISUID | stat.S_ISGID


class Entry(NamedTuple):
    """One line of a composefs-dump: a name in a tree, and what it is.

    A named tuple and not a dataclass because a view has a million of them.
    """

    #: Absolute within the tree; ``/`` is the tree's root.
    path: bytes
    #: Type and permission bits, as in ``st_mode``.
    mode: int
    #: Bytes of content; the length of the target for a symbolic link; 0 for a directory.
    size: int
    nlink: int
    uid: int
    gid: int
    mtime_ns: int
    #: Symbolic link: its target. Hard link: the path of the entry it is another name of. Regular file with content:
    #: where the content is, relative to the root of the data layer. Otherwise None.
    target: bytes | None
    #: True for the second and every further name of a file.
    is_hardlink: bool
    xattrs: Xattrs

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True)
class Counts:
    """How many entries of each kind a tree has; ``hardlinks`` counts the further names of files."""

    directories: int = 0
    files: int = 0
    symlinks: int = 0
    hardlinks: int = 0

    def as_dict(self) -> dict[str, int]:
        return {
            "directories": self.directories,
            "files": self.files,
            "symlinks": self.symlinks,
            "hardlinks": self.hardlinks,
        }

    @property
    def total(self) -> int:
        return self.directories + self.files + self.symlinks + self.hardlinks


@dataclass
class Tally:
    """Counts entries, and the bytes of the files among them, while they pass by."""

    directories: int = 0
    files: int = 0
    symlinks: int = 0
    hardlinks: int = 0
    bytes: int = 0
    #: Set-ID files, and files with capabilities.
    privileged: PathCount = field(default_factory=PathCount)

    def add(self, entry: Entry) -> None:
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

    def counts(self) -> Counts:
        return Counts(self.directories, self.files, self.symlinks, self.hardlinks)


@dataclass(frozen=True)
class ManifestRecord:
    """What is known of a manifest without reading it: the content of the record file beside it."""

    #: Path of the release below the software root, for example ``houdini/20.5.410``.
    release: str
    #: ``sha256:`` and the hexadecimal SHA-256 of the uncompressed composefs-dump text.
    digest: str
    #: Size of the gzipped manifest, in bytes: a truncated file is noticed without reading it.
    stored_bytes: int
    entries: Counts
    #: Content of all regular files, in bytes, each hard-linked file once.
    bytes: int
    #: True when every file's SHA-256 is recorded.
    checksums: bool
    #: The identity of the software root: usually the path at which hosts mount it.
    root: str = ""


@dataclass(frozen=True)
class Placement:
    """One release in a view: which manifest, where it appears, and where its data is in the data layer."""

    #: Path of the gzipped manifest.
    manifest: str
    record: ManifestRecord
    #: Path within the view, relative to its root; empty for the root itself.
    at: bytes
    #: Path within the data layer, relative to its root.
    source: bytes
    #: Patterns, relative to the release, of what of it is shown (all when there are none) and of what is not.
    include: tuple[bytes, ...] = ()
    exclude: tuple[bytes, ...] = ()


def root_identity(given: str) -> str:
    """Return the identity of a software root in one form: a path without slashes at its end, or any other text as it is."""
    return posixpath.normpath(given) if given.startswith("/") else given


def relative_path(text: bytes, what: str) -> bytes:
    """Return ``text`` as a clean path relative to some root; empty for the root itself.

    Raises OverlayError, naming ``what``, for anything that could lead out of the root.
    """
    parts = text.split(b"/")
    if b".." in parts or b"\0" in text:
        raise OverlayError(f"{what} {show(text)!r} may not contain '..' or a NUL byte")
    if any(len(part) > _LONGEST_NAME for part in parts):
        raise OverlayError(f"{what} {show(text)!r} has a name of more than {_LONGEST_NAME} bytes in it")
    return b"/".join(part for part in parts if part not in (b"", b"."))
