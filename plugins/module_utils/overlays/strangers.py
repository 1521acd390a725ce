# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Overlays in use that are mounted nowhere and that no record is kept of, as after ``umount --lazy``.

The kernel lists such a mount in no namespace. All that shows it is that a process has a file on a mount with an unlisted number. Which
layers it has cannot be found out, unless the same overlay is mounted elsewhere as well.
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

#: Lists all NFS file systems of the network namespace, detached ones too.
_NFS_VOLUMES = "/proc/fs/nfsfs/volumes"

#: Seconds for a file system to tell its type.
_ASKING_SECONDS = 3.0

#: How many files of a mount are looked at, at most.
_SAMPLES = 20


def overlays(held: Mapping[int, Sequence[Process]], live: Collection[Mount]) -> Iterator[tuple[Process, Mount | None]]:
    """Yield each process that uses an overlay, with a mount elsewhere of the same overlay or None where there is none.

    ``held`` has the processes by the numbers of mounts that are not listed; most of these are the kernel's own, such as that of pipes.
    What cannot be looked at in time counts as an overlay.
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
    """Yield descriptors of files that processes have on a mount, which ``opened`` closes."""
    left = _SAMPLES
    for process in holders:
        for there, link in processes.links(process.pid):
            if there != mount_id or left == 0:
                continue
            with contextlib.suppress(OSError):
                # Pipes, sockets and the like have no path: 'pipe:[4711]'.
                if not os.readlink(link).startswith(b"/"):
                    continue
                # The process may have closed it, and opened something else under its number.
                fd = os.open(link, os.O_PATH | os.O_CLOEXEC)
                opened.callback(os.close, fd)
                if beneath.mount_of(fd) == mount_id:
                    left -= 1
                    yield fd


def _nfs_devices() -> set[tuple[int, int]]:
    found = set()
    with contextlib.suppress(OSError), open(_NFS_VOLUMES, encoding="ascii") as stream:
        # A line has the version, server, port and device; the first one is a heading.
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
        # Of a server or daemon that is gone, and so of no overlay of ours.
        return error.errno not in (errno.ESTALE, errno.ENOTCONN)
