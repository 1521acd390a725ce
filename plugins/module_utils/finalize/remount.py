# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unmount an overlay for a while, and mount it again as it was, even if the run that unmounted it is killed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Iterator
from typing import Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import remount_notes
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.remount_notes import RemountSpec
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
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating, uppers

#: Directory of the notes. It is below /run, since they are void after a reboot. Only root may write them, since they say what to mount.
DIRECTORY = "/run/renderfarm-overlay/unmounted"

#: Seconds to wait until the kernel releases an unmounted overlay, and between two checks. It releases an overlay in the background when
#: the last process of another mount namespace has ended.
_RELEASE_SECONDS, _POLL_SECONDS = 3.0, 0.01


def unfinished(path: bytes) -> RemountSpec | None:
    """Return how to mount the overlay that a killed run unmounted at ``path``, or None if none did.

    Raises OverlayError if the note is malformed, or is one of another overlay.
    """
    name = _note_path(path)
    try:
        entry = remount_notes.from_json(record_files.read(name, remount_notes.LARGEST_NOTE))
    except FileNotFoundError:
        return None
    except RecordError as error:
        raise OverlayError(
            f"{name}, which says how the overlay at {show(path)} was mounted, is malformed: {error}; mount the overlay, and remove the"
            " file"
        ) from None
    if entry.spec.path != path:
        raise OverlayError(
            f"{name} is a note of the overlay at {show(entry.spec.path)}, not of {show(path)}: remove the file"
        )
    return entry


def forget(path: bytes) -> None:
    """Remove the note of a killed run, since the overlay is mounted."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_note_path(path))


@contextlib.contextmanager
def unmounted(
    mount: Mount, images: tuple[bytes, ...], let_go: Callable[[], None], progress: Progress = no_progress
) -> Iterator[None]:
    """Unmount an overlay while the block runs, and always mount it again afterwards.

    ``images`` are the image files among its layers. Call ``let_go`` right before unmounting, to close what this process has open in
    the overlay. Raises OverlayError, and leaves the overlay mounted, if processes use it, which the message names, or if it could not be
    mounted again as it is.
    """
    entry = remount_notes.remount_spec(mount, images)
    _check_only_here(mount, progress)
    for layer in (*entry.spec.directories, *entry.spec.kept):
        if not beneath.is_directory_at(layer):
            raise OverlayError(
                f"{show(layer)}, a layer of the overlay at {show(mount.path)}, does not exist, so the overlay could not be mounted again:"
                " it was not unmounted"
            )
    # If the kernel refuses these options now, it would refuse them after unmounting.
    creating.rehearse(entry.spec)
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


def mount_again(entry: RemountSpec) -> None:
    """Mount an overlay that a run unmounted. Raises OverlayError if it cannot be mounted; the note stays, so a later run tries again."""
    with _mountpoint(entry.spec.path) as place:
        _mount_at(entry, place)


@contextlib.contextmanager
def _mountpoint(path: bytes) -> Iterator[bytes]:
    """Return a path to the mountpoint that goes through a descriptor of its parent directory.

    A user who may rename a directory above it cannot redirect the mount.
    """
    parent, name = os.path.split(path)
    fd = beneath.open_root(parent, os.O_PATH | os.O_CLOEXEC)
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
    """Wait until the kernel has released an unmounted overlay. Raises OverlayError if a process still uses it."""
    limit = time.monotonic() + _RELEASE_SECONDS
    while syscalls.has_superblock(mount.device):
        if time.monotonic() > limit:
            raise OverlayError(
                f"the overlay at {show(mount.path)} is still in use by processes that no mount leads to, as after a lazy unmount; nothing"
                " was sealed. End these processes, and run this again"
            )
        progress()
        time.sleep(_POLL_SECONDS)


def _mount_at(entry: RemountSpec, place: bytes) -> None:
    if entry.volatile:
        _accept_volatile(entry)
    try:
        mount = creating.new_overlay(entry.spec)
    except OverlayError as error:
        raise OverlayError(
            f"the overlay at {show(entry.spec.path)} was unmounted to be sealed and is not mounted now: {error}; the next run tries to"
            " mount it again"
        ) from None
    try:
        creating.attach(mount, place)
    finally:
        os.close(mount)
    # A new mount is shared if its parent mount is. Set what the old one had.
    syscalls.mount(b"none", place, None, syscalls.MS_SHARED if entry.shared else syscalls.MS_PRIVATE)
    forget(entry.spec.path)


def _check_only_here(mount: Mount, progress: Progress) -> None:
    """Check that unmounting an overlay here leaves no mount of it elsewhere.

    Wait for a mount namespace that is about to end, such as that of another module. Raises OverlayError if a mount would be left.
    """
    end = time.monotonic() + _RELEASE_SECONDS
    while True:
        elsewhere = _elsewhere(mount)
        if elsewhere is None:
            return
        if time.monotonic() > end:
            raise OverlayError(
                f"the overlay at {show(mount.path)} is also mounted at {elsewhere}: unmount it there, since it can only be sealed while it"
                " is mounted nowhere"
            )
        progress()
        time.sleep(10 * _POLL_SECONDS)


def _elsewhere(mount: Mount) -> str | None:
    """Return where else an overlay is and would stay mounted, for a message, or None if it would not."""
    for pid, live in namespaces.everywhere():
        for other in live:
            is_this = pid is None and other.id == mount.id
            follows = pid is not None and mountinfo.goes_with(other, mount)
            if other.device == mount.device and not is_this and not follows:
                return show(other.path) + mountinfo.in_namespace(pid)
    return None


def _accept_volatile(entry: RemountSpec) -> None:
    """Write the upper layer to its disk, and remove the mark that keeps a volatile overlay from being mounted again."""
    upper, work = map(beneath.open_layer, entry.spec.kept)
    try:
        syscalls.syncfs(upper, entry.spec.kept[0])
        files.remove_tree(os.fsdecode(os.path.join(beneath.name_of(work), uppers.VOLATILE)))
    finally:
        os.close(upper)
        os.close(work)


def _note_path(path: bytes) -> str:
    return os.path.join(DIRECTORY, hashlib.sha256(path).hexdigest()[:32] + ".json")


def _write_note(entry: RemountSpec) -> None:
    files.make_directories(os.path.dirname(DIRECTORY), 0o755)
    files.make_directories(DIRECTORY, 0o700)
    with files.written_aside(_note_path(entry.spec.path), 0o600) as stream:
        stream.write(remount_notes.to_json(entry))
