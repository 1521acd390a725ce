# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finalizing an overlay: what the attributes of its upper layer say, and what follows from them.

The attributes are those of Documentation/filesystems/overlayfs.rst, and three of our own, which the overlay passes on like any
other. State is read from them and kept nowhere else.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, containing_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import relative_path

#: On a directory of the upper layer that is opaque: so is all that is below it. Its value is the directory's path in the lower layers.
SEALED = b"trusted.renderfarm-overlay.sealed"
#: On a directory in which files are having their owner changed that lose attributes by that.
RESTORING = b"trusted.renderfarm-overlay.restoring"
#: On such a file: what it has to have in the end, and its inode number, since copying a file with all of its xattrs copies this one too.
RESTORE = b"trusted.renderfarm-overlay.restore"

OPAQUE, KERNEL_SEALED, WITH_WHITEOUT_FILES = b"y", b"z", b"x"

#: The kernel looks a redirect up as one path (PATH_MAX, with its NUL).
LONGEST_REDIRECT = 4095

#: Processes that work at the same time, where nobody says how many. Copying up waits for locks in the kernel, which more than two
#: hand on all the time: on XFS four took longer than two. With a file server they mostly wait for its answers, several for each file.
WORKERS_HERE, WORKERS_FAR = 2, 8
#: File systems of the host itself whose device numbers are as those of network file systems.
_HERE = frozenset((b"bcachefs", b"btrfs", b"erofs", b"overlay", b"ramfs", b"tmpfs", b"zfs"))

PASSES = ("copy_up", "readdir", "seal", "warm")

#: How many of the entries that are left to do are named, and how many of those with the same reason.
MOST_NAMED, MOST_NAMED_PER_REASON = 100, 10


@dataclass(frozen=True)
class Marks:
    """What the attributes of a directory in the upper layer say of it."""

    #: Value of ``overlay.opaque``.
    opaque: bytes | None = None
    #: Value of ``overlay.redirect``: the directory was renamed, and this is its path in the lower layers, or its name there.
    redirect: bytes | None = None
    #: Whether the kernel has copied it up.
    copied: bool = False
    #: Our own notes: where in the lower layers it was looked for when it was sealed, and that files in it are in work.
    sealed_from: bytes | None = None
    restoring: bool = False

    @property
    def sealed(self) -> bool:
        """Whether names are looked up in the lower layers neither for this directory nor for any below it.

        Our note counts only together with the kernel's of a copy: ``cp -a`` through the overlay copies ours, and not that one.
        """
        return self.sealed_by_kernel or (self.opaque == OPAQUE and self.copied and self.sealed_from is not None)

    @property
    def sealed_by_kernel(self) -> bool:
        return self.opaque == KERNEL_SEALED


def lower_path(parent: bytes | None, name: bytes, marks: Marks) -> bytes | None:
    """Return where in the lower layers a directory of the overlay is looked for; None where it is in the upper layer alone.

    ``parent`` is that of the directory it is in. Paths start with a slash, which is the root of the layers.
    """
    if marks.opaque == OPAQUE:
        return None
    if marks.redirect and marks.redirect.startswith(b"/"):
        return marks.redirect
    return None if parent is None else posixpath.join(parent, marks.redirect or name)


def copied_from(parent: bytes | None, name: bytes, marks: Marks) -> bytes | None:
    """Return where in the lower layers a directory is, or was, that the kernel has copied up, whatever hides that now; None as above."""
    return marks.sealed_from or lower_path(parent, name, Marks(redirect=marks.redirect))


def needed_redirect(parent: bytes | None, name: bytes, redirect: bytes | None) -> bytes | None:
    """Return the redirect that a metadata-only copy needs to be found when its directory is opaque; None where it has it.

    ``parent`` is where in the lower layers its directory is looked for, and ``redirect`` what it has. A relative one, as the
    kernel writes when a file is renamed in its directory, leads nowhere from an opaque directory.
    """
    if parent is None or (redirect and redirect.startswith(b"/")):
        return None
    return posixpath.join(parent, redirect or name)


@dataclass(frozen=True)
class Attributes:
    """What a file is to have when its owner was changed: chown(2) clears the bits and the capability."""

    mode: int
    uid: int
    gid: int
    capability: bytes | None

    def to_note(self, inode: int) -> bytes:
        """Return a note for the file with this inode number in the overlay."""
        capability = (self.capability or b"").hex().encode("ascii") or b"-"
        return b"%o %d %d %s %d" % (self.mode, self.uid, self.gid, capability, inode)

    @classmethod
    def from_note(cls, note: bytes, inode: int) -> Attributes | None:
        """Return what the note says of the file with this inode number; None for a note of another file, or what is none of our notes."""
        try:
            mode, uid, gid, capability, written_for = note.split(b" ")
            found = None if capability == b"-" else bytes.fromhex(capability.decode("ascii"))
            attributes = cls(int(mode, 8), int(uid), int(gid), found)
            return attributes if int(written_for) == inode else None
        except ValueError:
            return None


@dataclass(frozen=True)
class Pending:
    """Something that is left to do, or that cannot be done."""

    #: Path within the overlay, relative to its root; empty for the root.
    path: bytes
    reason: str

    def as_dict(self) -> dict[str, str]:
        return {"path": show(self.path) or ".", "reason": self.reason}


def named(pending: Iterable[Pending]) -> list[dict[str, str]]:
    """Return the first of what is pending as a module returns it, sorted by path."""
    ordered = sorted(set(pending), key=lambda one: (one.path, one.reason))
    return [one.as_dict() for one in ordered[:MOST_NAMED]]


def by_reason(pending: Iterable[Pending]) -> list[dict[str, Any]]:
    """Return what is pending grouped by reason, the most frequent first, each with the number of entries and the first of their paths."""
    paths: dict[str, list[bytes]] = {}
    for one in sorted(set(pending), key=lambda one: one.path):
        paths.setdefault(one.reason, []).append(one.path)
    return [
        {
            "reason": reason,
            "total": len(found),
            "paths": [show(path) or "." for path in found[:MOST_NAMED_PER_REASON]],
        }
        for reason, found in sorted(paths.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def refuse_content(path: bytes, files: int, size: int) -> str:
    """Return the sentence that refuses to finalize an overlay at ``path`` whose files would be copied with their content."""
    gib = f" ({size / (1 << 30):.1f} GiB)" if size >= 1 << 30 else ""
    return (
        f"the overlay at {show(path)} is mounted without metacopy=on, so that copying up copies content: {files} files with {size} bytes"
        f"{gib} would be copied from the lower layers to its upper layer. Mount it with metacopy=on, or allow that"
        " with 'copy_content: true'; nothing was changed"
    )


def stripped(paths: Collection[bytes]) -> str:
    """Return the warning which names the files that lost set-ID bits or capabilities."""
    named_ones = ", ".join(show(path) for path in sorted(paths)[:MOST_NAMED_PER_REASON])
    more = f" and {len(paths) - MOST_NAMED_PER_REASON} more" if len(paths) > MOST_NAMED_PER_REASON else ""
    return (
        f"with their owner or group, {len(paths)} files lost their set-ID bits or capabilities: {named_ones}{more}; 'keep_setid: true'"
        " keeps them in files that are copied up after this"
    )


def chosen_subtrees(given: Collection[bytes]) -> tuple[bytes, ...]:
    """Return the subtrees as paths relative to the overlay, sorted, without those inside of others. Raises OverlayError."""
    found: list[bytes] = []
    for path in sorted({relative_path(one, "subtree") for one in given}):
        if not path:
            raise OverlayError(
                "a subtree is a directory below the overlay's own: leave 'subtrees' out to finalize all of them"
            )
        if not any(path.startswith(other + b"/") for other in found):
            found.append(path)
    return tuple(found)


def usual_workers(lowers: Iterable[bytes], mounts: Sequence[Mount]) -> int:
    """Return how many processes finalize an overlay over these lower layers where nobody says it."""

    def is_here(path: bytes) -> bool:
        mount = containing_mount(mounts, path)
        return mount is not None and (mount.device[0] != 0 or mount.fstype in _HERE)

    return WORKERS_HERE if all(map(is_here, lowers)) else WORKERS_FAR


def depth(path: bytes) -> int:
    """Return how many levels below the overlay's root a directory is."""
    return path.count(b"/") + 1 if path else 0


def with_parents(paths: Iterable[bytes]) -> set[bytes]:
    """Return the paths, and those of all directories that they are in, the root among them."""
    found: set[bytes] = set()
    for path in paths:
        while path not in found:
            found.add(path)
            path = posixpath.dirname(path)
    return found


@dataclass(frozen=True)
class CopyUp(Action):
    count: int

    def __str__(self) -> str:
        return f"copy up the metadata of {self.count} entries"


@dataclass(frozen=True)
class CopyContent(Action):
    count: int
    size: int

    def __str__(self) -> str:
        return f"copy the content of {self.count} files, {self.size} bytes, to the upper layer"


@dataclass(frozen=True)
class FinishOwners(Action):
    count: int

    def __str__(self) -> str:
        return f"finish changing the owner of {self.count} files, as a run that was killed had begun"


@dataclass(frozen=True)
class Seal(Action):
    count: int

    def __str__(self) -> str:
        return f"seal {self.count} directories"


@dataclass(frozen=True)
class RemoveStale(Action):
    path: bytes

    def __str__(self) -> str:
        return f"remove what was copied up of {show(self.path)}, which is gone from the lower layers"


@dataclass(frozen=True)
class MountAgain(Action):
    path: bytes

    def __str__(self) -> str:
        return f"mount the overlay at {show(self.path)} again, which a run that was killed had unmounted"


@dataclass
class Counts:
    """What was done, or in check mode would be done."""

    copied_up: int = 0
    #: Files whose content is copied with that, and its bytes.
    content_files: int = 0
    content_bytes: int = 0
    already: int = 0
    restored: int = 0
    #: Files that lost set-ID bits or capabilities, since their owner or group was changed.
    setid_stripped: int = 0
    directories_read: int = 0
    sealed: int = 0
    warmed: int = 0

    def add(self, other: Counts) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def plan_of(mounted_again: bytes | None, counts: Counts, stale: Iterable[bytes]) -> Plan:
    """Return the actions that the counts amount to. Reading directories changes nothing."""
    plan: Plan = ()
    if mounted_again is not None:
        plan += (MountAgain(mounted_again),)
    if counts.restored:
        plan += (FinishOwners(counts.restored),)
    if counts.copied_up:
        plan += (CopyUp(counts.copied_up),)
    if counts.content_files:
        plan += (CopyContent(counts.content_files, counts.content_bytes),)
    plan += tuple(RemoveStale(path) for path in sorted(stale))
    if counts.sealed:
        plan += (Seal(counts.sealed),)
    return plan
