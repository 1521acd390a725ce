# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find overlays in use that are mounted nowhere and have no record, for example after ``umount --lazy``.

The kernel lists such a mount in no mount namespace. The only trace of it is a process that has a file on a mount with an unlisted mount
ID. Its layers are unknown, unless the same overlay is also mounted elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterator, Mapping, Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, deadline, processes, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.processes import Process
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.still_paths import REMOTE

#: The NFS file systems of the network namespace, including detached ones.
_NFS_VOLUMES = "/proc/fs/nfsfs/volumes"

#: Time limit, in seconds, for asking a file system for its type.
_ASKING_SECONDS = 3.0

#: How many open files of a mount are examined.
_SAMPLES = 20


def overlays(held: Mapping[int, Sequence[Process]], live: Collection[Mount]) -> Iterator[tuple[Process, Mount | None]]:
    """Yield each process that uses an unlisted overlay, with a mount of the same overlay elsewhere, or None if there is none.

    ``held`` maps unlisted mount IDs to processes; most of these mounts are the kernel's own, such as that of shared memory. A file system
    that does not answer in time counts as an overlay.
    """
    remote = {mount.device for mount in live if mount.fstype.startswith(REMOTE)} | _nfs_devices()
    known = {mount.device: mount for mount in live if mount.fstype == b"overlay"}
    for mount_id, holders in held.items():
        with contextlib.ExitStack() as opened:
            fds = list(_held_on(mount_id, holders, opened))
            devices = {syscalls.device_of(fd) for fd in fds}
            found = next((known[device] for device in devices if device in known), None)
            if found or (fds and devices.isdisjoint(remote) and _is_on_overlay(fds[0])):
                for process in holders:
                    yield process, found


def _held_on(mount_id: int, holders: Sequence[Process], opened: contextlib.ExitStack) -> Iterator[int]:
    """Yield descriptors of files that processes have open on a mount. ``opened`` closes them."""
    left = _SAMPLES
    for process in holders:
        for link_mount_id, link in processes.links(process.pid):
            if link_mount_id != mount_id:
                continue
            if left == 0:
                return
            with contextlib.suppress(OSError):
                # Files without a path, such as pipes: 'pipe:[4711]'.
                if not os.readlink(link).startswith(b"/"):
                    continue
                # The process may have reused the descriptor for another file in the meantime.
                fd = os.open(link, os.O_PATH | os.O_CLOEXEC)
                opened.callback(os.close, fd)
                if beneath.mount_of(fd) == mount_id:
                    left -= 1
                    yield fd


def _nfs_devices() -> set[tuple[int, int]]:
    found = set()
    with contextlib.suppress(OSError), open(_NFS_VOLUMES, encoding="ascii") as stream:
        # The first line is a heading. The others have a version, server, port and device.
        for words in (line.split() for line in stream.readlines()[1:]):
            with contextlib.suppress(ValueError, IndexError):
                major, minor = words[3].split(":")
                found.add((int(major), int(minor)))
    return found


def _is_on_overlay(fd: int) -> bool:
    try:
        return deadline.run(lambda _progress: syscalls.is_on_overlay(fd), _ASKING_SECONDS)
    except deadline.TimeLimitError:
        return True
    except OSError as error:
        # Only a file system with a server or daemon fails so, and an overlay has none.
        return error.errno not in (errno.ESTALE, errno.ENOTCONN)
