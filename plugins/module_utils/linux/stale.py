# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Removing, through an overlay that may be in use, the copies of what its lower layers do not have any more."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from ansible_collections.renderfarm.overlay.plugins.module_utils.core.finalize import Pending, copied_from
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.finalize import Overlay, Place, is_gone
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.lowers import Lowers, is_whiteout

_KEPT = "it is gone from the lower layers, but for what somebody has written or made in it"


class Removal:
    """Removes what the kernel has copied up, and nothing else."""

    def __init__(self, overlay: Overlay, lowers: Lowers, check_mode: bool, progress: Progress = no_progress) -> None:
        self._overlay = overlay
        self._lowers = lowers
        self._check_mode = check_mode
        self._progress = progress
        self.kept: list[Pending] = []
        #: Entries that were removed, or in check mode would be.
        self.count = 0

    def remove(self, parent: Place, name: bytes) -> bool:
        """Remove an entry with all that is in it; tell whether all of it could be.

        ``parent`` is the directory it is in. What could not be removed is among ``kept``.
        """
        self._progress()
        path = parent.inside(name)
        status = os.stat(self._overlay.stored(path), follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            if stat.S_ISREG(status.st_mode) and not is_gone(self._overlay, self._lowers, parent, name):
                return self._keep(path)
            if not stat.S_ISREG(status.st_mode) and self._overlay.attribute(path, b"origin") is None:
                return self._keep(path)
            self._unlink(path)
            return True
        if not is_gone(self._overlay, self._lowers, parent, name):
            return self._keep(path)
        marks = self._overlay.marks(path)
        here = Place(path, copied_from(parent.lower, name, marks), marks)
        whole = True
        for inner in sorted(os.listdir(self._overlay.stored(path))):
            if not self._is_whiteout(here.inside(inner)):
                whole = self.remove(here, inner) and whole
        self.count += whole
        if whole and not self._check_mode:
            os.rmdir(self._overlay.shown(path))
            self._forget_whiteout(path)
        return whole

    def _keep(self, path: bytes) -> bool:
        self.kept.append(Pending(path, _KEPT))
        return False

    def _unlink(self, path: bytes) -> None:
        self.count += 1
        if self._check_mode:
            return
        try:
            os.unlink(self._overlay.shown(path))
        except OSError as error:
            # The kernel cannot look up a copy without what it is a copy of, so it has nothing of it in memory either.
            if error.errno not in (errno.EIO, errno.ESTALE):
                raise
            os.unlink(self._overlay.stored(path))
        self._forget_whiteout(path)

    def _is_whiteout(self, path: bytes) -> bool:
        return is_whiteout(os.stat(self._overlay.stored(path), follow_symlinks=False))

    def _forget_whiteout(self, path: bytes) -> None:
        """Remove the whiteout that the kernel leaves when it takes the file for one that is still in a lower layer.

        It would hide a new one of the same name.
        """
        with contextlib.suppress(FileNotFoundError):
            if self._is_whiteout(path):
                os.unlink(self._overlay.stored(path))
