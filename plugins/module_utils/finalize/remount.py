# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unmounting an overlay for a while, and mounting it again as it was, also when the run that has unmounted it was killed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Iterator
from typing import Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import remount_notes
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.remount_notes import Again
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    beneath,
    files,
    mountinfo,
    mountpoints,
    namespaces,
    record_files,
    syscalls,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import RecordError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import mounts, uppers

#: Below /run, since no overlay is mounted that way after a reboot. Only root may say what is to be mounted.
FOLDER = "/run/renderfarm-overlay/unmounted"

#: Seconds for which the kernel may hold an overlay that was unmounted, and between two looks. It lets go in the background when the last
#: process of another mount namespace has ended.
_RELEASE_SECONDS, _POLL_SECONDS = 3.0, 0.01


def unfinished(path: bytes) -> Again | None:
    """Return how to mount the overlay that a killed run has unmounted at ``path``; None where none has.

    Raises OverlayError for a note that is none of ours, or of another overlay: nothing is mounted by it.
    """
    name = _note(path)
    try:
        entry = remount_notes.from_json(record_files.read(name, remount_notes.LARGEST_NOTE))
    except FileNotFoundError:
        return None
    except RecordError as error:
        raise OverlayError(
            f"{name} should say how the overlay at {show(path)} was mounted, and does not: {error}; mount it again, and remove that file"
        ) from None
    if entry.spec.path != path:
        raise OverlayError(f"{name} is of the overlay at {show(entry.spec.path)}, and not of {show(path)}: remove it")
    return entry


def forget(path: bytes) -> None:
    """Remove the note of a killed run, when the overlay has been mounted since."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_note(path))


@contextlib.contextmanager
def unmounted(
    mount: Mount, images: tuple[bytes, ...], let_go: Callable[[], None], progress: Progress = no_progress
) -> Iterator[None]:
    """Have an overlay unmounted while the block runs. It is mounted again whatever happens in it.

    ``let_go`` is called last before, to close what this process has open of it. Raises OverlayError that names the processes when it is
    in use, and where it could not be mounted again as it is; it is as it was then.
    """
    entry = remount_notes.again(mount, images)
    _check_only_here(mount, progress)
    for layer in (*entry.spec.directories, *entry.spec.kept):
        if not beneath.is_directory_at(layer):
            raise OverlayError(
                f"{show(layer)}, a layer of the overlay at {show(mount.path)}, is not to be found: it is not unmounted"
            )
    # What it does not take now it would not take when the overlay is unmounted.
    mounts.rehearse(entry.spec)
    with _mountpoint(mount.path) as place:
        _write_note(entry)
        let_go()
        try:
            _unmount(mount, place)
        except BaseException:
            forget(mount.path)
            raise
        try:
            _wait_for_release(mount, progress)
            yield
        finally:
            _mount_at(entry, place)


def mount_again(entry: Again) -> None:
    """Mount an overlay that was unmounted. Raises OverlayError; it can be called again then."""
    with _mountpoint(entry.spec.path) as place:
        _mount_at(entry, place)


@contextlib.contextmanager
def _mountpoint(path: bytes) -> Iterator[bytes]:
    """Give a path that leads to the mountpoint through a descriptor of the directory that it is in.

    Whoever may rename a directory above it cannot have the overlay mounted elsewhere.
    """
    folder, name = os.path.split(path)
    fd = beneath.open_root(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        yield os.path.join(beneath.name_of(fd), name)
    finally:
        os.close(fd)


def _unmount(mount: Mount, place: bytes) -> None:
    try:
        syscalls.umount(place)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise OverlayError(mountpoints.busy(mount.path)) from None


def _wait_for_release(mount: Mount, progress: Progress) -> None:
    """Wait until the kernel has let go of an overlay that was unmounted. Raises OverlayError where somebody holds it."""
    limit = time.monotonic() + _RELEASE_SECONDS
    while syscalls.has_superblock(mount.device):
        if time.monotonic() > limit:
            raise OverlayError(
                f"{show(mount.path)} is in use by processes that have it open since before it was mounted there, or unmounted elsewhere;"
                " nothing was sealed"
            )
        progress()
        time.sleep(_POLL_SECONDS)


def _mount_at(entry: Again, place: bytes) -> None:
    if entry.volatile:
        _accept_volatile(entry)
    try:
        mount = mounts.new_overlay(entry.spec)
    except OverlayError as error:
        raise OverlayError(
            f"the overlay that was unmounted to be sealed is not mounted now, and the next run tries to mount it again: {error}"
        ) from None
    try:
        mounts.attach(mount, place)
    finally:
        os.close(mount)
    # A new mount is shared when the one that it is mounted on is.
    syscalls.mount(b"none", place, None, syscalls.MS_SHARED if entry.shared else syscalls.MS_PRIVATE)
    forget(entry.spec.path)


def _check_only_here(mount: Mount, progress: Progress) -> None:
    """Raises OverlayError for an overlay that is mounted elsewhere as well, where it would stay when it is unmounted here.

    A mount namespace that is about to end, such as that of another module, is waited for.
    """
    end = time.monotonic() + _RELEASE_SECONDS
    while True:
        elsewhere = _elsewhere(mount)
        if elsewhere is None:
            return
        if time.monotonic() > end:
            raise OverlayError(
                f"the overlay at {show(mount.path)} is also mounted at {elsewhere}: it can only be sealed when it is mounted nowhere"
            )
        progress()
        time.sleep(10 * _POLL_SECONDS)


def _elsewhere(mount: Mount) -> str | None:
    """Return where else an overlay is mounted and would stay, for a message; None where it is not."""
    for pid, live in namespaces.everywhere():
        for other in live:
            is_this = pid is None and other.id == mount.id
            follows = pid is not None and mountinfo.goes_with(other, mount)
            if other.device == mount.device and not is_this and not follows:
                return show(other.path) + mountinfo.in_namespace(pid)
    return None


def _accept_volatile(entry: Again) -> None:
    """Write all of the upper layer to its disk, and take away the mark that keeps a volatile one from being mounted again."""
    upper, work = map(beneath.open_layer, entry.spec.kept)
    try:
        syscalls.syncfs(upper, entry.spec.kept[0])
        files.remove_tree(os.fsdecode(os.path.join(beneath.name_of(work), uppers.VOLATILE)))
    finally:
        os.close(upper)
        os.close(work)


def _note(path: bytes) -> str:
    return os.path.join(FOLDER, hashlib.sha256(path).hexdigest()[:32] + ".json")


def _write_note(entry: Again) -> None:
    files.make_directories(os.path.dirname(FOLDER), 0o755)
    files.make_directories(FOLDER, 0o700)
    with files.written_aside(_note(entry.spec.path), 0o600) as stream:
        stream.write(remount_notes.to_json(entry))
