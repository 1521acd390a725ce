# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking into the lower layers of an overlay, as the overlay sees them but without its upper layer."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.image_names import image_path
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.mountinfo import OverlayLayers, check_absolute
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.options import (
    MountSpec,
    Settings,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mounts

_ROOT = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Lowers:
    """The lower layers, merged. Paths start with a slash, which is their root."""

    def __init__(self, root: int) -> None:
        """``root`` is an open directory."""
        self._root = root
        self._device = os.fstat(root).st_dev

    def names(self, path: bytes) -> set[bytes] | None:
        """Return the names in a directory; None where there is none. Raises OSError where it cannot be read."""
        try:
            fd = os.open(b"." + path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            if os.fstat(fd).st_dev != self._device:
                # The overlay does not see it, but the directory below it, which is usually empty.
                raise OSError(errno.EXDEV, "another file system is mounted there in the lower layer", os.fsdecode(path))
            with os.scandir(b"/proc/self/fd/%d" % fd) as found:
                return {entry.name for entry in found if not _is_whiteout(entry)}
        finally:
            os.close(fd)

    def has(self, path: bytes) -> bool:
        """Tell whether there is something. Raises OSError where that cannot be found out."""
        try:
            status = os.stat(b"." + path, dir_fd=self._root, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return not is_whiteout(status)


def is_whiteout(status: os.stat_result) -> bool:
    """Tell whether something in a layer is no file, but says that there is none of its name."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_whiteout(entry: os.DirEntry[bytes]) -> bool:
    if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False) or entry.is_symlink():
        return False
    return is_whiteout(entry.stat(follow_symlinks=False))


def images_among(layers: OverlayLayers) -> tuple[bytes, ...]:
    """Return the image files that lower layers of a live overlay are, which the kernel reports by their names alone."""
    return tuple(
        image_path(layer) for layer in layers.lower if os.path.isfile(image_path(layer)) and not os.path.isdir(layer)
    )


@contextlib.contextmanager
def opened(layers: OverlayLayers) -> Iterator[Lowers]:
    """Give the lower layers of an overlay. Raises OverlayError where they are not there, or empty."""
    check_absolute("the overlay", (*layers.lower, *layers.data))
    found = images_among(layers)
    if len(layers.lower) == 1 and not layers.data and not found:
        root = os.open(layers.lower[0], _ROOT)
    else:
        settings: Settings = ((b"metacopy", b"on"), (b"redirect_dir", b"follow"))
        if (b"userxattr", None) in layers.settings:
            settings = ((b"userxattr", None),)
        root = mounts.new_overlay(
            MountSpec(b"the lower layers", layers.lower, layers.data, settings, frozenset(("ro",)), found)
        )
    try:
        lowers = Lowers(root)
        if not lowers.names(b"/"):
            raise OverlayError(
                f"{', '.join(map(show, layers.lower))}: the lower layers show nothing at all, as when a file server is not mounted"
            )
        yield lowers
    finally:
        os.close(root)
