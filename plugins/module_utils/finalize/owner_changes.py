# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Change the owner of files that chown(2) takes set-ID bits or a capability from, and set these again.

A run that is killed in between leaves a note in the file, and a mark on its directory, so that a later run can finish the change.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import parallel
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.marks import RESTORE, RESTORING, OwnerChange
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import CAPABILITY_XATTR

_READABLE = 0o555


@dataclass
class OwnerChanger:
    """Changes owners in one directory of the overlay."""

    #: Two names of one file must not be changed at the same time.
    lock: parallel.Lock
    #: Whether the directory has the mark RESTORING.
    marked: bool = False
    #: How many changes were begun and not finished.
    unfinished: int = 0

    def change(self, directory: int, name: bytes, held: int, uid: int, gid: int) -> None:
        """Change the owner of ``name`` in an open directory, which ``held`` holds, and set its bits and capability again."""
        with self.lock.held():
            if not self.marked:
                beneath.set_attribute(directory, RESTORING, b"y")
                self.marked = True
            status = os.fstat(held)
            if (status.st_uid, status.st_gid) == (uid, gid):
                # Another of its names was changed just now.
                beneath.keep_times(directory, name, status.st_atime_ns)
                return
            self.unfinished += 1
            capability = beneath.held_attribute(held, CAPABILITY_XATTR)
            change = OwnerChange(stat.S_IMODE(status.st_mode), uid, gid, capability)
            # Copying the file up may change its inode number, which the note contains.
            beneath.keep_held_times(held, status.st_atime_ns)
            beneath.set_held_attribute(held, RESTORE, change.to_note(os.fstat(held).st_ino))
            _finish(held, change)
            self.unfinished -= 1

    def finish(self, held: int, change: OwnerChange) -> None:
        """Finish a change that a killed run began."""
        with self.lock.held():
            _finish(held, change)


def begun_change(held: int) -> OwnerChange | None:
    """Return the change of owner that a killed run began on a file, or None if there is none."""
    status = os.fstat(held)
    if not stat.S_ISREG(status.st_mode):
        return None
    note = beneath.held_attribute(held, RESTORE)
    return None if note is None else OwnerChange.from_note(note, status.st_ino)


def _finish(held: int, change: OwnerChange) -> None:
    # Without write permission, nobody but the new owner can write to the file before it has its bits and its capability. They would
    # otherwise apply to what was written.
    beneath.change_mode(held, change.mode & _READABLE)
    beneath.change_owner(held, change.uid, change.gid)
    if change.capability is not None:
        beneath.set_held_attribute(held, CAPABILITY_XATTR, change.capability)
    beneath.change_mode(held, change.mode)
    beneath.remove_held_attribute(held, RESTORE)
