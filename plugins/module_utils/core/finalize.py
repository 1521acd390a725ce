# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finalizing an overlay: what the attributes of its upper layer say, and what follows from them.

The attributes are those of Documentation/filesystems/overlayfs.rst, and three of our own, which the overlay passes on like any
other. State is read from them and kept nowhere else.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.model import relative_path
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.mountinfo import Mount, containing_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.plan import Action, Plan

#: On a directory of the upper layer that is opaque: so is all that is below it. Its value is the directory's path in the lower layers.
SEALED = b"trusted.renderfarm-overlay.sealed"
#: On a directory in which files are having their owner changed that lose attributes by that.
RESTORING = b"trusted.renderfarm-overlay.restoring"
#: On such a file: what it has to have in the end.
RESTORE = b"trusted.renderfarm-overlay.restore"
_NOTE = re.compile(rb"([0-7]{1,7}) ([0-9]{1,10}) ([0-9]{1,10}) ((?:[0-9a-f]{2})+|-)")

OPAQUE, KERNEL_SEALED, WITH_WHITEOUT_FILES = b"y", b"z", b"x"

#: The kernel looks a redirect up as one path (PATH_MAX, with its NUL).
LONGEST_REDIRECT = 4095

#: Processes that work at the same time, where nobody says how many. Copying up waits for locks in the kernel, which more than two
#: hand on all the time: on XFS four took longer than two. With a file server they mostly wait for its answers, several for each file.
WORKERS_HERE, WORKERS_FAR = 2, 8
#: File systems of the host itself whose device numbers are as those of network file systems.
_HERE = frozenset((b"bcachefs", b"btrfs", b"erofs", b"overlay", b"ramfs", b"tmpfs", b"zfs"))

PASSES = ("copy_up", "readdir", "seal", "warm")

#: How many of the entries that are left to do are named.
MOST_NAMED = 100


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
        """Whether names are looked up in the lower layers neither for this directory nor for any below it."""
        return self.sealed_by_kernel or (self.opaque == OPAQUE and self.sealed_from is not None)

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

    def to_note(self) -> bytes:
        return b"%o %d %d %s" % (self.mode, self.uid, self.gid, (self.capability or b"").hex().encode("ascii") or b"-")

    @classmethod
    def from_note(cls, note: bytes) -> Attributes:
        """Raises OverlayError for what is none of our notes."""
        fields = _NOTE.fullmatch(note)
        if not fields:
            raise OverlayError(
                f"attribute {RESTORE.decode()} has the value {show(note[:100])!r}, which overlay_finalize has not written: remove it"
            )
        mode, uid, gid, capability = fields.groups()
        found = None if capability == b"-" else bytes.fromhex(capability.decode("ascii"))
        return cls(int(mode, 8), int(uid), int(gid), found)


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
    already: int = 0
    restored: int = 0
    directories_read: int = 0
    sealed: int = 0
    warmed: int = 0

    def add(self, other: Counts) -> None:
        self.copied_up += other.copied_up
        self.already += other.already
        self.restored += other.restored
        self.directories_read += other.directories_read
        self.sealed += other.sealed
        self.warmed += other.warmed

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
    plan += tuple(RemoveStale(path) for path in sorted(stale))
    if counts.sealed:
        plan += (Seal(counts.sealed),)
    return plan
