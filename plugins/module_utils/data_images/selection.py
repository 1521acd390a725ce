# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Select the files of a release for a data image: by trace, patterns or names, within a budget, without what is kept from some users."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import posix_acl
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import CHECKSUM_XATTR, Entry
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.rights import PathCount

#: Why a selected file is not in an image.
PRIVATE = "private"
UNSTORABLE = "unstorable"
BUDGET = "budget"
UNKNOWN = "unknown"
MISSING = "missing"
CHANGED = "changed"
UNREADABLE = "unreadable"
REASONS = (PRIVATE, UNSTORABLE, BUDGET, UNKNOWN, MISSING, CHANGED, UNREADABLE)

#: Increased whenever the same files and compression would give another image.
_FORMAT = 1

#: Number of wrong names that a message shows.
_SHOWN = 5

_READ = 4
_SEARCH = 1


class ChosenFile(NamedTuple):
    """A regular file of a release that has content."""

    #: Its paths relative to the release, in manifest order. The content is found by the first one.
    names: tuple[bytes, ...]
    size: int
    mtime_ns: int
    #: SHA-256 of the content as hexadecimal text; None if the manifest does not have it.
    sha256: bytes | None
    #: True if mode or ACLs keep the file from some users.
    is_private: bool
    #: How many starts opened the file, and how often it was opened, according to the trace.
    starts: int = 0
    opens: int = 0

    @property
    def path(self) -> bytes:
        """The first name."""
        return self.names[0]


class Heat(NamedTuple):
    """How many starts opened a file, and how often it was opened."""

    starts: int
    opens: int


@dataclass
class FilesLeftOut:
    """The selected files that are not in an image, by reason."""

    by_reason: dict[str, PathCount] = field(default_factory=dict)

    def add(self, reason: str, path: bytes) -> None:
        """Count a file, given its path relative to the release."""
        self.by_reason.setdefault(reason, PathCount()).add(path)

    def as_dict(self) -> dict[str, Any]:
        """Return for each reason the number of files, and the paths of the first ones."""
        return {
            reason: {"count": self.by_reason[reason].count, "paths": list(self.by_reason[reason].first)}
            for reason in REASONS
            if reason in self.by_reason
        }


@dataclass(frozen=True)
class Limits:
    """Which files an image may have."""

    #: True if files that are kept from some users may be in the image.
    private_allowed: bool
    #: Bytes of the longest name that the program can store.
    longest_name: int
    #: Bytes of content, uncompressed; None for no limit.
    budget: int | None = None


@dataclass(frozen=True)
class Selection:
    """The files that an image is to have, in order of their paths."""

    files: tuple[ChosenFile, ...]
    left_out: FilesLeftOut
    #: True if these are all files of the release that have content.
    complete: bool

    @property
    def size(self) -> int:
        """The bytes of content, uncompressed."""
        return sum(file.size for file in self.files)

    @property
    def opens(self) -> int:
        """How often the files were opened, according to the trace."""
        return sum(file.opens for file in self.files)

    def digest(self, source: bytes, compression: str) -> str:
        """Return ``sha256:`` and the digest of the selected files and of the compression. The same digest stands for the same image."""
        digest = hashlib.sha256(b"%d\0%s\0%s\0" % (_FORMAT, compression.encode(), source))
        for file in self.files:
            names = b"\0".join(file.names)
            digest.update(
                b"%d %d %s %d\0%s\0" % (file.size, file.mtime_ns, file.sha256 or b"-", len(file.names), names)
            )
        return "sha256:" + digest.hexdigest()


def release_files(
    entries: Iterable[Entry], heat: Mapping[bytes, Heat], closed_above: bool = False
) -> dict[bytes, ChosenFile]:
    """Return the files of a release that have content, by each of their names.

    ``entries`` are in manifest order. ``heat`` is that of the trace, by paths relative to the release. ``closed_above`` tells that some
    users cannot reach the release.
    """
    closed = _ClosedDirectories()
    found: dict[bytes, ChosenFile] = {}
    names: dict[bytes, list[bytes]] = {}
    is_open: dict[bytes, bool] = {}
    first: dict[bytes, Entry] = {}
    for entry in entries:
        if entry.is_directory:
            closed.enter(entry)
        elif stat.S_ISREG(entry.mode) and entry.size:
            content = (entry.target or b"") if entry.is_hardlink else entry.path
            first.setdefault(content, entry)
            names.setdefault(content, []).append(entry.path[1:])
            is_open[content] = is_open.get(content, False) or not closed.is_inside(entry.path)
    for content, entry in first.items():
        heats = [heat[name] for name in names[content] if name in heat]
        file = ChosenFile(
            tuple(names[content]),
            entry.size,
            entry.mtime_ns,
            next((value for name, value in entry.xattrs if name == CHECKSUM_XATTR), None),
            closed_above or not is_open[content] or not grants_all(entry, _READ),
            max((one.starts for one in heats), default=0),
            sum(one.opens for one in heats),
        )
        found.update(dict.fromkeys(file.names, file))
    return found


class _ClosedDirectories:
    """The directories above the current entry that some users may not search."""

    def __init__(self) -> None:
        #: Path of the outermost one, with a trailing slash; empty if there is none.
        self._prefix = b""

    def enter(self, entry: Entry) -> None:
        """Note a directory, in manifest order."""
        if not self.is_inside(entry.path) and not grants_all(entry, _SEARCH):
            self._prefix = entry.path.rstrip(b"/") + b"/"

    def is_inside(self, path: bytes) -> bool:
        return bool(self._prefix) and path.startswith(self._prefix)


def grants_all(entry: Entry, permission: int) -> bool:
    """Return whether mode and ACL of an entry grant a permission (4 read, 1 search) to every user other than the owner.

    An owner can change the mode, so nothing is kept from one.
    """
    for name, value in entry.xattrs:
        if name == posix_acl.ACCESS_XATTR:
            # A mask limits all others, so a permission that it lacks is lacking for somebody.
            return all(one.tag == posix_acl.OWNER or one.permissions & permission for one in posix_acl.parse(value))
    return bool(entry.mode >> 3 & permission and entry.mode & permission)


def named_files(
    files: Mapping[bytes, ChosenFile], names: Iterable[bytes], left_out: FilesLeftOut
) -> tuple[ChosenFile, ...]:
    """Return the files with these names, each once. Names that no file with content has are left out as unknown."""
    chosen: dict[bytes, ChosenFile] = {}
    for name in names:
        file = files.get(name)
        if file is None:
            left_out.add(UNKNOWN, name)
        else:
            chosen[file.path] = file
    return tuple(chosen.values())


def check_listed(files: Mapping[bytes, ChosenFile], names: Sequence[bytes], others: Collection[bytes]) -> None:
    """Check that the release has all listed files. Raises OverlayError naming those that it lacks.

    ``others`` are the paths of empty files, which need no content.
    """
    wrong = [name for name in names if name not in files and name not in others]
    if wrong:
        shown = ", ".join(show(name) for name in wrong[:_SHOWN])
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise OverlayError(
            f"the release has no regular files {shown}{more}: give paths relative to the release in 'files', or patterns in 'globs'"
        )


def select(chosen: Iterable[ChosenFile], total: int, limits: Limits, left_out: FilesLeftOut) -> Selection:
    """Return the files that an image is to have: those of ``chosen`` that may be in one, the hottest first until the budget is spent.

    A file that does not fit is left out, and smaller ones after it may still fit. ``total`` is the number of files of the release.
    """
    ordered = sorted(chosen, key=lambda file: (-file.starts, -file.opens, file.path))
    room = limits.budget
    taken = []
    for file in ordered:
        reason = _obstacle(file, limits, room)
        if reason:
            left_out.add(reason, file.path)
            continue
        if room is not None:
            room -= file.size
        taken.append(file)
    taken.sort(key=lambda file: file.path)
    return Selection(tuple(taken), left_out, len(taken) == total)


def _obstacle(file: ChosenFile, limits: Limits, room: int | None) -> str | None:
    """Return the reason why a file cannot be in the image; None if it can."""
    if file.is_private and not limits.private_allowed:
        return PRIVATE
    longest = max(len(part) for name in file.names for part in name.split(b"/"))
    # EROFS counts the seconds since 1970 without a sign.
    if longest > limits.longest_name or file.mtime_ns < 0:
        return UNSTORABLE
    return BUDGET if room is not None and file.size > room else None
