# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trace directories and copies of the upper layer to the lower layers."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.directories import OverlayDirectory
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.live_overlay import Overlay
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.lowers import Lowers
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.marks import (
    Marks,
    copied_from,
    lower_path,
    needed_redirect,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show


def start(overlay: Overlay, path: bytes) -> OverlayDirectory:
    """Return the directory in which a walk begins. Raises OverlayError if ``path`` is not a directory of the overlay."""
    if path:
        _check_is_shown(overlay, path)
    with contextlib.ExitStack() as stack:
        return trace(overlay, path, stack)[0]


def _check_is_shown(overlay: Overlay, path: bytes) -> None:
    try:
        os.close(overlay.open(path))
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
            raise OverlayError(
                f"subtree {show(path)} is not a directory of the overlay at {show(overlay.mount.path)}"
            ) from None
        raise


def trace(overlay: Overlay, path: bytes, stack: contextlib.ExitStack) -> tuple[OverlayDirectory, int]:
    """Return a directory as the upper layer has it now, and its descriptor there, which ``stack`` closes. It is -1 if there is none.

    Open each directory on the way in the one above it, so that they belong together even if one of them is renamed.
    """
    stored = overlay.roots.upper
    directory = OverlayDirectory(b"", b"/", overlay.marks(stored))
    for name in path.split(b"/") if path else ():
        inner = directory.child(name)
        if stored >= 0:
            stored = _open_if_there(stored, name)
            if stored >= 0:
                stack.callback(os.close, stored)
        if directory.is_sealed:
            # Everything below is sealed as well, whatever its own marks.
            directory = OverlayDirectory(inner, None, directory.marks)
            continue
        marks = overlay.marks(stored) if stored >= 0 else None
        directory = OverlayDirectory(inner, lower_path(directory.lower, name, marks or Marks()), marks)
    return directory, stored


def _open_if_there(stored: int, name: bytes) -> int:
    try:
        return beneath.open_at(stored, name, same_mount=True)
    except (FileNotFoundError, NotADirectoryError):
        return -1


def is_stale(overlay: Overlay, lowers: Lowers, lower: bytes | None, stored: int, name: bytes) -> bool:
    """Return whether an entry of the upper layer is a copy of something that the lower layers no longer have.

    ``stored`` is the open directory of the upper layer that holds the entry. ``lower`` is the path in the lower layers that this directory
    is merged with. The entry may have been renamed since it was copied up. A file with its content is no copy any more, nor is an entry
    without the kernel's mark. Links and special files carry no path, so a renamed one cannot be told from a stale one: they are not stale.
    """
    try:
        fd = beneath.hold(stored, name)
    except FileNotFoundError:
        return False
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            marks = overlay.marks_in(stored, name)
            source = copied_from(lower, name, marks)
            return marks.copied and source is not None and not lowers.has(source)
        if not stat.S_ISREG(mode) or beneath.held_attribute(fd, overlay.prefix + b"metacopy") is None:
            return False
        redirect = beneath.held_attribute(fd, overlay.prefix + b"redirect")
    finally:
        os.close(fd)
    source = needed_redirect(lower, name, redirect) or redirect
    return source is not None and not lowers.has(source)
