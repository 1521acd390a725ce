# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mountpoints: observe, create, unmount and remove one."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    files,
    mountinfo,
    processes,
    syscalls,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import (
    CreateMountpoint,
    Handlers,
    RemoveMountpoint,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, Mountpoint, listed
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.namespaces import mounts_like, own_mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.processes import Process

#: The most processes that a message names.
_MOST_NAMED = 10


def observe(path: bytes) -> Mountpoint:
    """Return the state of a mountpoint. Raises OverlayError if the path is neither a directory nor missing."""
    mount = mountinfo.top_mount(own_mounts(), path)
    return Mountpoint(mount, None if mount else directory_state(path))


def unmount(path: bytes) -> None:
    """Unmount the mount at ``path``. Raises OverlayError naming its users if it is busy."""
    try:
        syscalls.umount(path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise OverlayError(busy(path)) from None


def busy(path: bytes) -> str:
    """Return the message that the mount at ``path`` is busy, with the processes that use it and the mounts inside it."""
    live = own_mounts()
    mount = mountinfo.top_mount(live, path)
    users = processes.of_mounts(mounts_like(mount)) if mount else []
    return busy_message(path, users, mountinfo.inside(live, mount) if mount else [])


def busy_message(path: bytes, found: Sequence[Process], inside: Sequence[Mount]) -> str:
    """Return the message that the mount at ``path`` is busy: the processes that use it, and the mounts inside it."""
    users = ", ".join(f"{process.name} ({process.pid})" for process in found[:_MOST_NAMED])
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    mounted = f"; mounted inside it: {listed(inside)}" if inside else ""
    return f"{show(path)} is in use{' by ' + users if users else ''}{more}{mounted}; nothing was unmounted"


def directory_state(path: bytes) -> bool | None:
    """Return whether the directory ``path`` is empty; None if it does not exist. Raises OverlayError if it is not a directory."""
    try:
        with os.scandir(path) as listing:
            return next(listing, None) is None
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise OverlayError(f"mountpoint {show(path)} is not a directory") from None


def check_has_content(path: bytes) -> None:
    """Check that a software root that something else mounts is there. Raises OverlayError if it is missing or empty."""
    empty = directory_state(path)
    if empty is None:
        raise OverlayError(f"software root {show(path)} does not exist: is it mounted?")
    if empty:
        raise OverlayError(f"software root {show(path)} is empty: is it mounted?")


#: The directories that actions have made since ``undone_on_failure`` was entered.
_made: list[bytes] = []


def make(path: bytes, mode: int) -> None:
    """Make a directory and its missing parents, and remember them for ``undone_on_failure``."""
    # Made one at a time: if one fails, the ones before it are remembered.
    above = os.path.dirname(path)
    if not os.path.isdir(above):
        make(above, 0o755)
    _made.extend(files.make_directories(path, mode))


@contextlib.contextmanager
def undone_on_failure() -> Iterator[None]:
    """Remove the directories that actions have made if the block, which carries the actions out, fails."""
    _made.clear()
    try:
        yield
    except BaseException:
        files.remove_directories(_made)
        raise


#: Handlers of the actions that all kinds of mounts share.
HANDLERS: Handlers = {
    CreateMountpoint: lambda action: make(action.path, 0o755),
    RemoveMountpoint: lambda action: os.rmdir(action.path),
}
