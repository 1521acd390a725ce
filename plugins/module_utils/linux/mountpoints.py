# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mountpoints: observe, create, unmount and remove one."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    deadline,
    files,
    mountinfo,
    processes,
    still_paths,
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
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.still_paths import REMOTE

#: The most processes, and the most mounts, that a message names.
_MOST_NAMED = 10

#: Seconds that a file server has to answer for the size of its file system, which the kernel never has in memory.
_ANSWER_SECONDS = 1.0
#: Seconds for the process that asks, which may be slow on a loaded host.
_ASKING_SECONDS = 20.0


def is_mounted(path: bytes) -> bool:
    """Return whether something is mounted at an absolute path. An automount that has not mounted its file system does not count."""
    mounts = own_mounts()
    real = still_paths.mountpoint(path, mounts)
    return any(mount.path == real and mount.fstype != b"autofs" for mount in mounts)


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


def silent(progress: deadline.Progress = deadline.no_progress) -> str:
    """Ask the file server of each mount, and return for a message which mounts get no answer; empty if all answer.

    The servers are asked at the same time, for at most a second. Only mounts that this process sees are asked, and no automount.
    """
    live = own_mounts()
    remote = {
        mount.device: mount
        for mount in reversed(live)
        if mount.fstype.startswith(REMOTE)
        and mount.fstype != b"autofs"
        and mountinfo.top_mount(live, mount.path) == mount
    }
    found = _without_answer([mount.path for mount in remote.values()], progress) if remote else []
    named = [f"{show(mount.path)} ({show(mount.source)})" for mount in remote.values() if mount.path in found]
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return ", ".join(sorted(named)[:_MOST_NAMED]) + more


def _without_answer(paths: Sequence[bytes], progress: deadline.Progress) -> list[bytes]:
    """Return those of the paths of mounts whose server gives no answer in time."""

    def ask_all(tick: deadline.Progress) -> list[bytes]:
        answered: set[bytes] = set()

        def ask(path: bytes) -> None:
            # A mount that answers with an error answers.
            with contextlib.suppress(OSError):
                os.statvfs(path)
            answered.add(path)

        asking = [threading.Thread(target=ask, args=(path,), daemon=True) for path in paths]
        for thread in asking:
            thread.start()
        limit = time.monotonic() + _ANSWER_SECONDS
        for thread in asking:
            thread.join(max(0.0, limit - time.monotonic()))
            tick()
        return [path for path in paths if path not in answered]

    # A thread that waits for a dead server would keep this process alive, so the threads are in a child process.
    try:
        return deadline.run(ask_all, _ASKING_SECONDS, progress)
    except deadline.TimeLimitError:
        return []


class _Made(threading.local):
    """The directories that the actions of a thread have made since it entered ``undone_on_failure``."""

    def __init__(self) -> None:
        self.paths: list[bytes] = []


_made = _Made()

#: The directories of threads that have failed, in which others still have theirs.
_left: list[bytes] = []

#: Held while directories are made or removed: a thread may need a parent that another one has made, and removes.
_making = threading.RLock()


def make(path: bytes, mode: int) -> None:
    """Make a directory and its missing parents, and remember them for ``undone_on_failure``."""
    with _making:
        # Made one at a time: if one fails, the ones before it are remembered.
        above = os.path.dirname(path)
        if not os.path.isdir(above):
            make(above, 0o755)
        _made.paths.extend(files.make_directories(path, mode))


@contextlib.contextmanager
def undone_on_failure() -> Iterator[None]:
    """Remove the directories that actions have made if the block, which carries the actions out, fails."""
    _made.paths.clear()
    try:
        yield
    except BaseException:
        with _making:
            _left.extend(_made.paths)
            files.remove_directories(_left)
            _left[:] = filter(os.path.isdir, _left)
        raise


#: Handlers of the actions that all kinds of mounts share.
HANDLERS: Handlers = {
    CreateMountpoint: lambda action: make(action.path, 0o755),
    RemoveMountpoint: lambda action: os.rmdir(action.path),
}
