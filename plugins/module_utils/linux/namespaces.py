# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mount namespaces: mounts that nobody else sees, and those that others have."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    mountinfo,
    namespaces,
    syscalls,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount


def make_private(flags: int = syscalls.CLONE_NEWNS) -> None:
    """Give this process mounts of its own: what it mounts from now on nobody else sees, and goes when it ends."""
    syscalls.unshare(flags)
    try:
        syscalls.mount(b"none", b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _make_private_from_above()


def _make_private_from_above() -> None:
    """The same in a chroot, whose root is no mountpoint: from the root of the namespace, and back."""
    # Opened now, so that they are of the new namespace.
    root, here = (os.open(path, syscalls.HOLD_DIRECTORY) for path in ("/", "."))
    process = os.pidfd_open(os.getpid())
    try:
        syscalls.setns(process, syscalls.CLONE_NEWNS)
        syscalls.mount(b"none", b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        os.fchdir(root)
        os.chroot(".")
        os.fchdir(here)
    finally:
        for fd in (root, here, process):
            os.close(fd)


def everywhere() -> Iterator[tuple[int | None, list[Mount]]]:
    """Yield the mounts of each mount namespace that has a process: first our own, with None, then the others with a process of theirs.

    A process is told only of mounts below its root directory. So a namespace comes again, with another process, where that is told of more.
    """
    own = mounts_of("self")
    yield None, own
    told = {os.readlink("/proc/self/ns/mnt"): {mount.id for mount in own}}
    seen = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            namespace = os.readlink(f"/proc/{name}/ns/mnt")
            place = namespace, os.readlink(f"/proc/{name}/root")
            if place not in seen:
                live = mounts_of(name)
                known = told.setdefault(namespace, set())
                if not known.issuperset(mount.id for mount in live):
                    yield int(name), live
                known.update(mount.id for mount in live)
                seen.add(place)
        except OSError:  # it has ended, or is not ours to look into; another process may be in the same namespace
            continue


def mounts_of(process: str = "self") -> list[Mount]:
    """Return the mounts that a process sees, given as it is called below /proc."""
    with open(f"/proc/{process}/mountinfo", "rb") as stream:
        return list(mountinfo.parse(stream.read()))


def own_mounts() -> list[Mount]:
    """Return the mounts that this process sees."""
    return namespaces.mounts_of()


def mounts_like(mount: Mount) -> set[int]:
    """Return the numbers of a mount and of those that show the same, at any place and in any mount namespace."""
    return {
        other.id
        for _pid, live in namespaces.everywhere()
        for other in live
        if (other.device, other.root) == (mount.device, mount.root)
    }
