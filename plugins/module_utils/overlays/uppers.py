# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Observe upper layers and work directories, note the lower layers that they belong to, and mount scratch space.

What was written to an overlay is found in its upper layer. Scratch space has no path, so only the number of its inodes is known.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    beneath,
    files,
    mountinfo,
    mountpoints,
    namespaces,
    syscalls,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, containing_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import (
    SCRATCH_PLACE,
    MountSpec,
    Writable,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.upper_rules import (
    RECORD,
    OwnedDirectory,
    UpperDirectory,
    UpperState,
    lower_record,
)

#: The mark below a work directory that the kernel leaves when an overlay is mounted with ``volatile``.
VOLATILE = b"work/incompat/volatile"

#: Changed entries that a message names.
_MOST_SHOWN = 5
#: Bytes of scratch space for each inode that it may have, and the fewest and most inodes of a scratch space.
_BYTES_PER_INODE = 4096
_FEWEST_INODES = 4096
_MOST_INODES = 1 << 20

_REMOUNT_FLAGS = {
    b"nosuid": syscalls.MS_NOSUID,
    b"nodev": syscalls.MS_NODEV,
    b"noexec": syscalls.MS_NOEXEC,
    b"noatime": syscalls.MS_NOATIME,
    b"nodiratime": syscalls.MS_NODIRATIME,
    b"relatime": syscalls.MS_RELATIME,
}


@dataclass(frozen=True)
class Changes:
    """What was written to an overlay."""

    #: Entries of an upper layer, or inodes of scratch space; 0 if nothing was written.
    count: int
    #: The paths of the first entries, as the overlay shows them. Those of scratch space are unknown.
    paths: tuple[bytes, ...] = ()


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
    files.make_directories(writable.place, 0o755)
    syscalls.mount(b"tmpfs", writable.place, b"tmpfs", 0, b"mode=0700,size=%d" % (writable.scratch or 0))
    for path in (writable.upper, writable.work):
        files.make_directories(path, 0o700)
    _take_rights(writable.upper, like)


def make_like_lower(spec: MountSpec) -> None:
    """Give an upper layer that no overlay has used the uid, gid and mode of the topmost lower layer, if it is declared so."""
    if spec.kept and spec.writable and spec.writable.like_lower and _record(spec.kept[0]) is None:
        _take_rights(spec.kept[0], spec.lower[0])


def _take_rights(upper: bytes, like: bytes) -> None:
    status = beneath.status_at(like)
    fd = beneath.open_layer(upper)
    try:
        os.fchown(fd, status.st_uid, status.st_gid)
        os.fchmod(fd, status.st_mode & 0o7777)
    finally:
        os.close(fd)


def mark_empty(writable: Writable) -> None:
    """Limit the inodes of a new scratch space, so that the number of free ones shows later whether something was written.

    The overlay reports the free inodes of its upper layer. How many an empty one uses depends on the kernel, so the limit is set after the
    overlay was made. Call this in the mount namespace of ``mount_scratch``.
    """
    found = os.statvfs(writable.place)
    limit = found.f_files - found.f_ffree + _free_inodes(writable.scratch or 0)
    options = b"mode=0700,size=%d,nr_inodes=%d" % (writable.scratch or 0, limit)
    syscalls.mount(b"tmpfs", writable.place, None, syscalls.MS_REMOUNT, options)


def _free_inodes(size: int) -> int:
    return max(_FEWEST_INODES, min(size // _BYTES_PER_INODE, _MOST_INODES))


def scratch_size(mount: Mount) -> int | None:
    """Return the size in bytes of an overlay's scratch space; None if it has none."""
    upper = mountinfo.overlay_layers(mount).upper if mount.fstype == b"overlay" else None
    digits = os.path.dirname(upper)[len(SCRATCH_PLACE) + 1 :] if upper and upper.startswith(SCRATCH_PLACE) else b""
    return int(digits) if digits.isdigit() else None


def scratch_changes(mount: Mount) -> Changes:
    """Return how many inodes were added to an overlay's scratch space. The overlay is the topmost mount at its mountpoint."""
    fd = beneath.open_root(mount.path)
    try:
        return Changes(abs(_free_inodes(scratch_size(mount) or 0) - os.fstatvfs(fd).f_ffree))
    finally:
        os.close(fd)


def changes_in(upper: bytes, shown: bytes = b"") -> Changes:
    """Return what was written to the upper layer of an overlay, of which ``shown`` is the directory at the mountpoint.

    A directory that has entries itself is not counted, since it may be there for its entries alone.
    """
    count = 0
    paths: list[bytes] = []
    for path in _leaves(upper):
        count += 1
        if len(paths) < _MOST_SHOWN:
            paths.append(path[len(shown) + 1 :] if shown and path.startswith(shown + b"/") else path)
    return Changes(count, tuple(paths))


def has_changes(upper: bytes) -> bool:
    """Return whether something was written to an upper layer."""
    return next(_leaves(upper), None) is not None


def _leaves(top: bytes) -> Iterator[bytes]:
    """Yield everything in an upper layer that is not a directory with entries. Users can write there, so no symbolic link is followed."""
    try:
        root = beneath.open_layer(top)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        pending = [b""]
        while pending:
            path = pending.pop()
            try:
                directory = beneath.open_at(root, path or b".")
            except OSError:
                # Somebody has just removed or exchanged it.
                yield path
                continue
            try:
                entries = sorted(
                    (entry.name, stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode))
                    for entry in beneath.entries(directory)
                )
            finally:
                os.close(directory)
            if path and not entries:
                yield path
            inner = [(posixpath.join(path, name), is_directory) for name, is_directory in entries]
            yield from (one for one, is_directory in inner if not is_directory)
            pending += [one for one, is_directory in reversed(inner) if is_directory]
    finally:
        os.close(root)


@contextlib.contextmanager
def read_only(mount: Mount) -> Iterator[None]:
    """Make an overlay read-only, in all mount namespaces, while the block runs. If the block fails, make it writable again.

    Raises OverlayError naming the processes that use it if one has a file open for writing.
    """
    flags = syscalls.MS_REMOUNT
    for flag in mount.flags:
        flags |= _REMOUNT_FLAGS.get(flag, 0)
    if not {b"noatime", b"relatime"} & set(mount.flags):
        flags |= syscalls.MS_STRICTATIME
    try:
        syscalls.mount(b"none", mount.path, None, flags | syscalls.MS_RDONLY)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise OverlayError(mountpoints.busy(mount.path)) from None
    try:
        yield
    except BaseException:
        top = mountinfo.top_mount(namespaces.own_mounts(), mount.path)
        if top is not None and top.id == mount.id:
            syscalls.mount(b"none", mount.path, None, flags)
        raise
