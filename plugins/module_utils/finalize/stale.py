# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Remove copies of what the lower layers no longer have, through an overlay that may be in use.

What is to be removed is looked at in the upper layer, and removed through the overlay. Users may rename directories meanwhile, so two
descriptors that were opened by the same path may lead to different directories. Before anything is removed from a directory, a random
xattr is set through one descriptor and read through the other.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import secrets
import stat

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.decisions import CarryOut
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.finalize_result import Pending
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.live_overlay import Overlay
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.lowers import Lowers, is_whiteout
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.marks import copied_from
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.tracing import is_stale, trace
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress

_KEPT = "it is gone from the lower layers and was kept, since a user wrote or made something in it"

#: The random xattr.
_TOKEN = b"trusted.renderfarm-overlay.token"

#: Flags to open a directory through the overlay. It may be unreadable, since its lower directory is gone.
_SHOWN = beneath.HOLD | os.O_DIRECTORY


class StaleRemoval:
    """Removes copies that the kernel made, and nothing else."""

    def __init__(self, overlay: Overlay, lowers: Lowers, change: CarryOut, progress: Progress = no_progress) -> None:
        self._overlay = overlay
        self._lowers = lowers
        self._change = change
        self._progress = progress
        #: What was not removed.
        self.kept: list[Pending] = []
        #: How many entries were removed.
        self.count = 0

    def remove(self, path: bytes) -> None:
        """Remove an entry and everything in it. Add what cannot be removed to ``kept``.

        Raises OSError if the next entry would fail for the same reason.
        """
        try:
            self._remove_from(*posixpath.split(path))
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
            # Somebody works in it as well, or the kernel keeps a part of it in memory until the overlay is mounted again.
            self.kept.append(Pending(path, f"it cannot be removed: {error.strerror}"))

    def _remove_from(self, directory: bytes, name: bytes) -> None:
        with contextlib.ExitStack() as stack:
            parent, stored = trace(self._overlay, directory, stack)
            if stored < 0:
                return
            shown = self._shown(self._overlay.roots.shown, directory, stored, stack)
            if shown is not None:
                self._remove(parent.path, parent.lower, name, stored, shown)

    def _shown(self, directory: int, path: bytes, stored: int, stack: contextlib.ExitStack) -> int | None:
        """Open, through the overlay, the directory that is open as ``stored`` in the upper layer; return the descriptor.

        Return None if ``path`` leads to another directory. Only a change can show that, so check mode assumes that it does not.
        """
        fd = beneath.open_at(directory, path, _SHOWN, same_mount=True)
        stack.callback(os.close, fd)
        token = secrets.token_bytes(16)
        if not self._change(beneath.set_held_attribute, fd, _TOKEN, token):
            return fd
        try:
            return fd if beneath.attribute(stored, _TOKEN) == token else None
        finally:
            beneath.remove_held_attribute(fd, _TOKEN)

    def _remove(self, directory: bytes, lower: bytes | None, name: bytes, stored: int, shown: int) -> bool:
        """Remove an entry of a directory that is open as ``stored`` and ``shown``; tell whether all of it can be removed.

        ``lower`` is the path in the lower layers that the directory is merged with.
        """
        self._progress()
        path = posixpath.join(directory, name)
        mode = beneath.status(stored, name).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            is_removable = is_stale(self._overlay, self._lowers, lower, stored, name)
        else:
            is_removable = self._is_copy(stored, name)
        if not is_removable:
            return self._keep(path)
        if stat.S_ISDIR(mode):
            return self._remove_directory(path, lower, name, stored, shown)
        self._change(self._unlink, stored, shown, name)
        self.count += 1
        return True

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
        if whole:
            self._change(self._remove_empty, stored, shown, name)
            self.count += 1
        return whole

    def _is_copy(self, stored: int, name: bytes) -> bool:
        with beneath.held(stored, name) as fd:
            return beneath.held_attribute(fd, self._overlay.prefix + b"origin") is not None

    def _keep(self, path: bytes) -> bool:
        self.kept.append(Pending(path, _KEPT))
        return False

    @staticmethod
    def _unlink(stored: int, shown: int, name: bytes) -> None:
        try:
            beneath.unlink(shown, name)
        except OSError as error:
            # The kernel cannot look up a copy without its source. So it has nothing of the copy in memory, and unlinking it below the
            # overlay is safe.
            if error.errno not in (errno.EIO, errno.ESTALE):
                raise
            beneath.unlink(stored, name)
        _remove_whiteout(stored, name)

    @staticmethod
    def _remove_empty(stored: int, shown: int, name: bytes) -> None:
        beneath.remove_directory(shown, name)
        _remove_whiteout(stored, name)


def _remove_whiteout(stored: int, name: bytes) -> None:
    """Remove the whiteout that the kernel leaves if it assumes that a lower layer still has the name. It would hide a new entry."""
    with contextlib.suppress(FileNotFoundError):
        if is_whiteout(beneath.status(stored, name)):
            beneath.unlink(stored, name)
