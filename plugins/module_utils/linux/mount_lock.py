# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One lock for each mountpoint, which every module holds while it mounts, switches, moves or unmounts there.

What was observed before taking the lock may be out of date: observe again under the lock, and plan from that.
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

#: Below /run, since locks end with a reboot. Only root may hold one: otherwise others could keep root from mounting.
DIRECTORY = "/run/renderfarm-overlay/locks"

_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextlib.contextmanager
def held(path: bytes, seconds: float, progress: Progress = no_progress) -> Iterator[None]:
    """Hold the lock of the mountpoint ``path``, a path without symbolic links, while the block runs.

    Wait for the lock up to ``seconds``, and call ``progress`` meanwhile. The lock does not nest. Raises OverlayError naming the
    mountpoint on timeout.
    """
    fd = _open(path)
    try:
        files.wait_for_lock(fd, f"the mountpoint {show(path)}", seconds, progress)
        yield
    finally:
        os.close(fd)


def _open(path: bytes) -> int:
    """Return a descriptor of the file to lock. It is never removed, since runs may be waiting for its lock."""
    try:
        directory = _open_directory()
    except PermissionError:
        if _in_initial_user_namespace():
            raise
        # Root of a user namespace may not write to /run. Its mounts are in a mount namespace of its own, so lock that.
        return os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.open(hashlib.sha256(path).hexdigest()[:32], _FILE, 0o600, dir_fd=directory)
    finally:
        os.close(directory)


def _open_directory() -> int:
    """Return a descriptor of the directory of the locks, and make it if it is missing. Raises OverlayError if others can enter it."""
    files.make_directories(os.path.dirname(DIRECTORY), 0o755)
    files.make_directories(DIRECTORY, 0o700)
    fd = os.open(DIRECTORY, syscalls.LIST_REAL_DIRECTORY)
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        os.close(fd)
        raise OverlayError(
            f"{DIRECTORY} belongs to uid {status.st_uid} and has mode {stat.S_IMODE(status.st_mode):04o}: only root may be able to enter"
            " it, or others could keep root from mounting; remove it, and the next run makes it again"
        )
    return fd


def _in_initial_user_namespace() -> bool:
    """Return whether this process is in the initial user namespace, which maps every uid to itself (user_namespaces(7))."""
    with open("/proc/self/uid_map", "rb") as stream:
        return stream.read().split() == [b"0", b"0", b"4294967295"]
