# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Removing, through an overlay that may be in use, the copies of what its lower layers do not have any more.

What is to be removed is looked at in the upper layer, and removed through the overlay. Users may exchange directories meanwhile, so
that two descriptors that were opened by the same name may lead to different ones: a directory in which something is removed is
known by a random xattr, which is set through the one and read through the other.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import secrets
import stat

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.copy_up import Overlay, is_gone, trace
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.lowers import Lowers, is_whiteout
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.marks import Pending, copied_from
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress

_KEPT = "it is gone from the lower layers, but for what somebody has written or made in it"

#: The xattr by which the two descriptors of a directory are known to belong together.
_TOKEN = b"trusted.renderfarm-overlay.token"

#: What a directory is opened with through the overlay: its lower part may be gone, so that it may not be readable.
_SHOWN = beneath.HOLD | os.O_DIRECTORY


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

    def remove(self, path: bytes) -> None:
        """Remove an entry with all that is in it. What could not be removed is among ``kept``."""
        try:
            self._remove_below(*posixpath.split(path))
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
            # Somebody works in it as well, or the kernel has what is gone half in memory, until it is mounted again.
            self.kept.append(Pending(path, f"it cannot be removed: {error.strerror}"))

    def _remove_below(self, folder: bytes, name: bytes) -> None:
        with contextlib.ExitStack() as stack:
            parent, stored = trace(self._overlay, folder, stack)
            if stored < 0:
                return
            shown = self._shown(self._overlay.roots.shown, folder, stored, stack)
            if shown is not None:
                self._remove(parent.path, parent.lower, name, stored, shown)

    def _shown(self, directory: int, path: bytes, stored: int, stack: contextlib.ExitStack) -> int | None:
        """Return a descriptor, through the overlay, of the directory that ``stored`` is in the upper layer.

        In check mode it is not compared, since that needs a change, and nothing is removed. None where it is another directory.
        """
        fd = beneath.open_at(directory, path, _SHOWN, same_mount=True)
        stack.callback(os.close, fd)
        if self._check_mode:
            return fd
        token = secrets.token_bytes(16)
        beneath.set_held_attribute(fd, _TOKEN, token)
        try:
            return fd if beneath.attribute(stored, _TOKEN) == token else None
        finally:
            beneath.remove_held_attribute(fd, _TOKEN)

    def _remove(self, folder: bytes, lower: bytes | None, name: bytes, stored: int, shown: int) -> bool:
        """Remove an entry of the directory ``folder``, which is open twice; tell whether all of it could be.

        ``lower`` is where that directory is looked for in the lower layers.
        """
        self._progress()
        path = posixpath.join(folder, name)
        status = beneath.status(stored, name)
        if not stat.S_ISDIR(status.st_mode):
            if stat.S_ISREG(status.st_mode) and not is_gone(self._overlay, self._lowers, lower, stored, name):
                return self._keep(path)
            if not stat.S_ISREG(status.st_mode) and not self._is_copy(stored, name):
                return self._keep(path)
            self._unlink(stored, shown, name)
            return True
        if not is_gone(self._overlay, self._lowers, lower, stored, name):
            return self._keep(path)
        return self._remove_directory(path, lower, name, stored, shown)

    def _remove_directory(self, path: bytes, lower: bytes | None, name: bytes, stored: int, shown: int) -> bool:
        with contextlib.ExitStack() as stack:
            inner = stack.enter_context(beneath.opened(stored, name, same_mount=True))
            inner_shown = self._shown(shown, name, inner, stack)
            marks = self._overlay.marks(inner)
            if inner_shown is None or not marks.copied:
                return self._keep(path)
            source = copied_from(lower, name, marks)
            whole = True
            for found in sorted(beneath.names(inner)):
                if not is_whiteout(beneath.status(inner, found)):
                    whole = self._remove(path, source, found, inner, inner_shown) and whole
        self.count += whole
        if whole and not self._check_mode:
            beneath.remove_directory(shown, name)
            self._forget_whiteout(stored, name)
        return whole

    def _is_copy(self, stored: int, name: bytes) -> bool:
        with beneath.held(stored, name) as fd:
            return beneath.held_attribute(fd, self._overlay.prefix + b"origin") is not None

    def _keep(self, path: bytes) -> bool:
        self.kept.append(Pending(path, _KEPT))
        return False

    def _unlink(self, stored: int, shown: int, name: bytes) -> None:
        self.count += 1
        if self._check_mode:
            return
        try:
            beneath.unlink(shown, name)
        except OSError as error:
            # The kernel cannot look up a copy without what it is a copy of, so it has nothing of it in memory either.
            if error.errno not in (errno.EIO, errno.ESTALE):
                raise
            beneath.unlink(stored, name)
        self._forget_whiteout(stored, name)

    @staticmethod
    def _forget_whiteout(stored: int, name: bytes) -> None:
        """Remove the whiteout that the kernel leaves when it takes the file for one that is still in a lower layer.

        It would hide a new one of the same name.
        """
        with contextlib.suppress(FileNotFoundError):
            if is_whiteout(beneath.status(stored, name)):
                beneath.unlink(stored, name)
