# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The xattrs of an upper layer that finalizing reads and writes, and what follows from them.

The kernel's xattrs are those of Documentation/filesystems/overlayfs.rst. Four are ours, and the overlay passes them through like any
other. All state of a finalized overlay is in these xattrs.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

#: Marks an opaque directory of the upper layer: it and everything below it is sealed. The value is its path in the lower layers.
SEALED = b"trusted.renderfarm-overlay.sealed"
#: Marks a directory in which files are given another owner, and get their set-ID bits and capabilities back afterwards.
RESTORING = b"trusted.renderfarm-overlay.restoring"
#: Marks such a file. The value is the note of an OwnerChange.
RESTORE = b"trusted.renderfarm-overlay.restore"

#: Marks a file whose content is being copied to the upper layer, which changes its mtime. The value is the note of that mtime.
MTIME = b"trusted.renderfarm-overlay.mtime"

#: Values of ``overlay.opaque``: opaque, sealed by the kernel, and with whiteouts that are regular files.
OPAQUE, KERNEL_SEALED, WITH_WHITEOUT_FILES = b"y", b"z", b"x"

#: Bytes. The kernel resolves a redirect as one path (PATH_MAX, which includes the NUL).
LONGEST_REDIRECT = 4095


@dataclass(frozen=True)
class Marks:
    """The xattrs of a directory in the upper layer."""

    #: Value of ``overlay.opaque``.
    opaque: bytes | None = None
    #: Value of ``overlay.redirect``: an absolute path in the lower layers, or the old name of a renamed directory.
    redirect: bytes | None = None
    #: Whether the kernel copied the directory up (``overlay.origin``).
    copied: bool = False
    #: Value of SEALED.
    sealed_from: bytes | None = None
    #: Whether RESTORING is set.
    restoring: bool = False

    @property
    def sealed(self) -> bool:
        """Whether a run sealed the directory, and everything below it.

        SEALED counts only together with the kernel's mark of a copy. ``cp -a`` through the overlay copies the former, not the latter.
        """
        return self.opaque == OPAQUE and self.copied and self.sealed_from is not None

    @property
    def sealed_by_kernel(self) -> bool:
        """Whether the kernel sealed the directory. It seals each directory separately, and finds its entries in the lower layers."""
        return self.opaque == KERNEL_SEALED


def lower_path(parent: bytes | None, name: bytes, marks: Marks) -> bytes | None:
    """Return the path in the lower layers that a directory is merged with, or None if it is in the upper layer alone.

    ``parent`` is the same path of its parent directory. Paths start with a slash, which is the root of the layers.
    """
    if marks.opaque == OPAQUE:
        return None
    if marks.redirect and marks.redirect.startswith(b"/"):
        return marks.redirect
    return None if parent is None else posixpath.join(parent, marks.redirect or name)


def copied_from(parent: bytes | None, name: bytes, marks: Marks) -> bytes | None:
    """Return the path in the lower layers from which a directory was copied up, or None if there is none.

    Unlike ``lower_path``, ignore marks that hide the lower directory now. ``parent`` is as for ``lower_path``.
    """
    return marks.sealed_from or lower_path(parent, name, Marks(redirect=marks.redirect))


def needed_redirect(parent: bytes | None, name: bytes, redirect: bytes | None) -> bytes | None:
    """Return the redirect that a metadata-only copy needs once its directory is opaque, or None if it needs no other one.

    ``parent`` is the path in the lower layers that its directory is merged with. ``redirect`` is the redirect that the copy has. The
    kernel writes a relative one when a file is renamed within its directory, and cannot resolve it from an opaque directory.
    """
    if parent is None or (redirect and redirect.startswith(b"/")):
        return None
    return posixpath.join(parent, redirect or name)


@dataclass(frozen=True)
class OwnerChange:
    """The result of a change of owner: chown(2) clears the set-ID bits and the capability, so they are set again afterwards."""

    mode: int
    uid: int
    gid: int
    #: Value of ``security.capability``.
    capability: bytes | None

    def to_note(self, inode: int) -> bytes:
        """Return the value of RESTORE for the file with this inode number in the overlay.

        Copying a file with all of its xattrs copies the note too. The inode number makes it invalid there.
        """
        capability = (self.capability or b"").hex().encode("ascii") or b"-"
        return b"%o %d %d %s %d" % (self.mode, self.uid, self.gid, capability, inode)

    @classmethod
    def from_note(cls, note: bytes, inode: int) -> OwnerChange | None:
        """Parse the value of RESTORE of the file with this inode number. Return None if it is malformed or written for another file."""
        try:
            mode, uid, gid, capability, written_for = note.split(b" ")
            found = None if capability == b"-" else bytes.fromhex(capability.decode("ascii"))
            change = cls(int(mode, 8), int(uid), int(gid), found)
            return change if int(written_for) == inode else None
        except ValueError:
            return None


def mtime_to_note(mtime_ns: int, inode: int) -> bytes:
    """Return the value of MTIME for the file with this inode number in the overlay. ``mtime_ns`` is in nanoseconds.

    The inode number makes the note invalid in a copy of the file.
    """
    return b"%d %d" % (mtime_ns, inode)


def mtime_from_note(note: bytes, inode: int) -> int | None:
    """Parse the value of MTIME of the file with this inode number; return nanoseconds.

    Return None if it is malformed, out of range, or written for another file.
    """
    try:
        mtime_ns, written_for = map(int, note.split(b" "))
    except ValueError:
        return None
    return mtime_ns if written_for == inode and abs(mtime_ns) < 1 << 63 else None


def empty_lower(upper: bytes) -> bytes:
    """Return the path of the empty directory that is the lower layer of a detached overlay. It is beside the upper layer."""
    return upper.rstrip(b"/") + b".detached"
