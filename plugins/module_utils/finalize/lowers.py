# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look into the lower layers of an overlay, merged as the overlay merges them, without its upper layer."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections.abc import Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import OverlayLayers, check_absolute
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import image_path
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec, Settings


class Lowers:
    """The merged lower layers. Paths start with a slash, which is their root."""

    def __init__(self, root: int) -> None:
        """``root`` is the open root directory of the lower layers."""
        self.root = root

    def open(self, path: bytes) -> int:
        """Open a directory; return the descriptor, or -1 if there is none. Raises OSError if it cannot be opened."""
        try:
            return beneath.open_at(self.root, path.lstrip(b"/"), same_mount=True)
        except (FileNotFoundError, NotADirectoryError):
            return -1
        except OSError as error:
            if error.errno == errno.ELOOP:
                # The overlay does not follow symbolic links in its layers either.
                return -1
            if error.errno == errno.EXDEV:
                # The overlay shows the directory below that mount, which is usually empty.
                text = "another file system is mounted there in the lower layer"
                raise OSError(errno.EXDEV, text, os.fsdecode(path)) from None
            raise

    def refresh(self, path: bytes) -> None:
        """Have the names in a directory looked up again where it has changed on the file server, whatever is cached."""
        try:
            os.close(beneath.hold_fresh(self.root, path.lstrip(b"/")))
        except OSError as error:
            # The client knows now that the directory is gone.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE):
                raise

    def names(self, path: bytes) -> set[bytes] | None:
        """Return the names in a directory, or None if there is none. Raises OSError if it cannot be read."""
        fd = self.open(path)
        if fd < 0:
            return None
        try:
            return {entry.name for entry in beneath.entries(fd) if not _is_whiteout(entry)}
        finally:
            os.close(fd)

    def has(self, path: bytes) -> bool:
        """Return whether a path exists. Raises OSError if its directory cannot be opened."""
        directory, name = posixpath.split(path)
        fd = self.open(directory)
        if fd < 0:
            return False
        try:
            return not is_whiteout(beneath.status(fd, name or b"."))
        except FileNotFoundError:
            return False
        finally:
            os.close(fd)


def is_whiteout(status: os.stat_result) -> bool:
    """Return whether an entry of a layer is a whiteout, which hides its name in the layers below."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_whiteout(entry: os.DirEntry[bytes]) -> bool:
    if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False) or entry.is_symlink():
        return False
    return is_whiteout(entry.stat(follow_symlinks=False))


def images_among(layers: OverlayLayers) -> tuple[bytes, ...]:
    """Return the image files among the lower and data layers of a mounted overlay. The kernel reports these by name only."""
    return tuple(
        image_path(layer)
        for layer in (*layers.lower, *layers.data)
        if not beneath.is_directory_at(layer) and beneath.is_file_at(image_path(layer))
    )


@contextlib.contextmanager
def opened(layers: OverlayLayers) -> Iterator[Lowers]:
    """Open the lower layers of an overlay while the block runs. Raises OverlayError if they are missing or empty."""
    check_absolute("the overlay", (*layers.lower, *layers.data))
    found = images_among(layers)
    if len(layers.lower) == 1 and not layers.data and not found:
        root = beneath.open_layer(layers.lower[0])
    else:
        settings: Settings = ((b"metacopy", b"on"), (b"redirect_dir", b"follow"))
        if (b"userxattr", None) in layers.settings:
            settings = ((b"userxattr", None),)
        root = creating.new_overlay(
            MountSpec(b"the lower layers", layers.lower, layers.data, settings, frozenset(("ro",)), found)
        )
    try:
        lowers = Lowers(root)
        if not lowers.names(b"/"):
            raise OverlayError(
                f"{', '.join(map(show, layers.lower))}: the lower layers show nothing at all, as if a file server is not mounted: mount it,"
                " and run this again"
            )
        yield lowers
    finally:
        os.close(root)
