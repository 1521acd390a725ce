# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Upper layers and work directories: what is there, making them, and noting what they were used with."""

from __future__ import annotations

import os

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, files, namespaces, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, containing_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec, Writable
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.upper_rules import (
    RECORD,
    Folder,
    Place,
    UpperState,
    record_of,
)

#: Where the kernel notes, below the work directory, that nothing is synced.
VOLATILE = b"work/incompat/volatile"


def observe(spec: MountSpec) -> UpperState | None:
    """Return what is there of an overlay's upper layer; None where it has none, or a scratch one."""
    if not spec.kept:
        return None
    everywhere = [(pid, mount) for pid, live in namespaces.everywhere() for mount in live]
    here = [mount for pid, mount in everywhere if pid is None]
    upper, work = (_place(path, here) for path in spec.kept)
    volatile = os.path.join(work.path, VOLATILE)
    return UpperState(
        upper,
        work,
        _record(upper.path) if upper.exists else None,
        volatile if beneath.is_at(volatile) else None,
        tuple((pid, mount) for pid, mount in everywhere if mount.fstype == b"overlay"),
    )


def _place(path: bytes, live: list[Mount]) -> Place:
    folders = []
    parts = path.split(b"/")
    for number in range(1, len(parts) + 1):
        folder = b"/".join(parts[:number]) or b"/"
        try:
            status = beneath.status_at(folder)
        except FileNotFoundError:
            break
        folders.append(Folder(folder, status.st_uid, status.st_mode))
    exists = folders[-1].path == path
    if exists and not beneath.is_directory_at(path):
        raise OverlayError(f"{show(path)} is not a directory: it cannot be an upper layer or work directory")
    mount = containing_mount(live, folders[-1].path)
    if mount is None:
        raise OverlayError(f"{show(path)}: no mount is found that it is on")
    return Place(path, exists, mount, tuple(folders))


def _record(path: bytes) -> bytes | None:
    fd = beneath.open_layer(path)
    try:
        return beneath.attribute(fd, RECORD)
    finally:
        os.close(fd)


def note(spec: MountSpec) -> None:
    """Note in an upper layer which lower layers it is used with, once."""
    if not spec.kept:
        return
    fd = beneath.open_layer(spec.kept[0])
    try:
        if beneath.attribute(fd, RECORD) is None:
            beneath.set_attribute(fd, RECORD, record_of(spec))
    finally:
        os.close(fd)


def mount_scratch(writable: Writable, like: bytes) -> None:
    """Mount the file system in memory of a scratch upper layer. To be run in a mount namespace of its own.

    The root of the overlay is that of its upper layer, so it gets owner and mode of ``like``, the uppermost lower layer.
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
