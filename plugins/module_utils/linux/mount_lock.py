# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One lock for each mountpoint, which every module holds while it mounts, switches, moves or unmounts there.

What is observed before the lock is held may be out of date: observe again within it, and plan from that.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show

#: Below /run, since no lock outlives a reboot. Only root may hold one, or others could keep root from mounting.
FOLDER = "/run/renderfarm-overlay/locks"

_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextlib.contextmanager
def held(path: bytes, seconds: float, progress: Progress = no_progress) -> Iterator[None]:
    """Hold the lock of the mountpoint ``path``, a path without symbolic links, while the block runs.

    Wait for it up to ``seconds``, calling ``progress`` meanwhile. Raises OverlayError naming the mountpoint after that. The lock does not
    nest: whoever holds it does not ask for it again.
    """
    fd = _open(path)
    try:
        files.wait_for_lock(fd, f"the mountpoint {show(path)}", seconds, progress)
        yield
    finally:
        os.close(fd)


def _open(path: bytes) -> int:
    """Return a descriptor of the file that is locked. It is never removed, so that nobody waits for one that has no name any more."""
    try:
        folder = _folder()
    except PermissionError:
        if _in_initial_user_namespace():
            raise
        # Root of a user namespace alone, who may not write to /run: the mounts are those of a mount namespace of its own.
        return os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.open(hashlib.sha256(path).hexdigest()[:32], _FILE, 0o600, dir_fd=folder)
    finally:
        os.close(folder)


def _folder() -> int:
    """Return a descriptor of the directory of the locks, which is made where there is none, whatever the umask."""
    files.make_directories(os.path.dirname(FOLDER), 0o755)
    files.make_directories(FOLDER, 0o700)
    fd = os.open(FOLDER, syscalls.LIST_REAL_DIRECTORY)
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        os.close(fd)
        raise OverlayError(
            f"{FOLDER} belongs to user {status.st_uid} and has mode {stat.S_IMODE(status.st_mode):04o}: only root may be able to enter it,"
            " or others could keep root from mounting; remove it, and it is made anew"
        )
    return fd


def _in_initial_user_namespace() -> bool:
    """Tell whether this process has the user IDs of the host, all of them, as they are (user_namespaces(7))."""
    with open("/proc/self/uid_map", "rb") as stream:
        return stream.read().split() == [b"0", b"0", b"4294967295"]
