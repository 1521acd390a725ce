# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Observe upper layers and work directories, note the lower layers that they belong to, and mount scratch space."""

from __future__ import annotations

import os

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, files, namespaces, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, containing_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec, Writable
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.upper_rules import (
    RECORD,
    OwnedDirectory,
    UpperDirectory,
    UpperState,
    lower_record,
)

#: The mark below a work directory that the kernel leaves when an overlay is mounted with ``volatile``.
VOLATILE = b"work/incompat/volatile"


def observe(spec: MountSpec) -> UpperState | None:
    """Return the state of an overlay's upper layer and work directory; None if it has none, or scratch space.

    Raises OverlayError if one of them is not a directory.
    """
    if not spec.kept:
        return None
    everywhere = [(pid, mount) for pid, live in namespaces.everywhere() for mount in live]
    here = [mount for pid, mount in everywhere if pid is None]
    upper, work = (_observed(path, here) for path in spec.kept)
    volatile = os.path.join(work.path, VOLATILE)
    return UpperState(
        upper,
        work,
        _record(upper.path) if upper.exists else None,
        volatile if beneath.is_at(volatile) else None,
        tuple((pid, mount) for pid, mount in everywhere if mount.fstype == b"overlay"),
    )


def _observed(path: bytes, live: list[Mount]) -> UpperDirectory:
    directories = []
    parts = path.split(b"/")
    for number in range(1, len(parts) + 1):
        directory = b"/".join(parts[:number]) or b"/"
        try:
            status = beneath.status_at(directory)
        except FileNotFoundError:
            break
        directories.append(OwnedDirectory(directory, status.st_uid, status.st_mode))
    exists = directories[-1].path == path
    if exists and not beneath.is_directory_at(path):
        raise OverlayError(
            f"{show(path)} is not a directory, so it cannot be an upper layer or work directory: use another path"
        )
    mount = containing_mount(live, directories[-1].path)
    if mount is None:
        raise OverlayError(
            f"the mount that holds {show(path)} is not visible to this process: run the task outside of a chroot"
        )
    return UpperDirectory(path, exists, mount, tuple(directories))


def _record(path: bytes) -> bytes | None:
    fd = beneath.open_layer(path)
    try:
        return beneath.attribute(fd, RECORD)
    finally:
        os.close(fd)


def note(spec: MountSpec) -> None:
    """Note the lower layers of an overlay in an xattr of its upper layer, unless the upper layer has that xattr."""
    if not spec.kept:
        return
    fd = beneath.open_layer(spec.kept[0])
    try:
        if beneath.attribute(fd, RECORD) is None:
            beneath.set_attribute(fd, RECORD, lower_record(spec))
    finally:
        os.close(fd)


def mount_scratch(writable: Writable, like: bytes) -> None:
    """Mount the tmpfs of a scratch upper layer and make the directories in it. Call this in a private mount namespace.

    ``like`` is the topmost lower layer. The upper layer gets its uid, gid and mode, since the root of the overlay shows those of the
    upper layer.
    """
    status = beneath.status_at(like)
    files.make_directories(writable.place, 0o755)
    syscalls.mount(b"tmpfs", writable.place, b"tmpfs", 0, b"mode=0700,size=%d" % (writable.scratch or 0))
    for path in (writable.upper, writable.work):
        files.make_directories(path, 0o700)
    fd = beneath.open_layer(writable.upper)
    try:
        os.fchown(fd, status.st_uid, status.st_gid)
        os.fchmod(fd, status.st_mode & 0o7777)
    finally:
        os.close(fd)
