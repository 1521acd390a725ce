# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Detach a mount that others at the same path cover, while these stay where they are.

No system call names such a mount, and detaching it by a descriptor takes along what is on it. But unmounting spreads: when something is
unmounted in a mount that another one follows, what is lowest at that place in the other one goes, and what covers it stays there in one
step (mount_namespaces(7)). So the mount that holds the mountpoint is made to follow a copy of itself, in a private mount namespace, in
which something is mounted at that place, and then unmounted.

A run that is killed leaves nothing behind: with the mount namespace goes the copy, and who has followed it is private again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, deadline, namespaces, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import inner_mounts

#: Seconds for the child process; its parent has a shorter limit of its own.
_LONGEST_WAIT = 86400.0

#: Where the copies are in the private mount namespace, below the mountpoint.
_LEADER, _FOLLOWER = b"/leader", b"/follower"


def drop_lowest(mounts: Sequence[Mount], mount: Mount) -> None:
    """Detach ``mount``, the lowest one of those at its path. Who uses it keeps it. Needs Linux 5.15."""
    holder = next((one for one in mounts if one.id == mount.parent), None)
    if holder is None:
        raise OverlayError(f"no mount is found that holds the mountpoint {show(mount.path)}")
    below = mount.path[len(holder.path.rstrip(b"/")) + 1 :]
    follows = any(word.startswith(b"master:") for word in holder.propagation)
    shared = any(word.startswith(b"shared:") for word in holder.propagation)
    with inner_mounts.held_root(holder) as held:
        # It may not be given another one to follow, but others may be shared with it.
        borrow = follows and not shared
        if borrow:
            syscalls.set_propagation(held, syscalls.MS_SHARED)
        copy = -1
        try:
            copy = syscalls.clone_mounts(held, inner=False)
            deadline.run(lambda _progress: _unmount_in(copy, held, mount.path, below, shared or borrow), _LONGEST_WAIT)
        finally:
            if copy >= 0:
                os.close(copy)
            if borrow:
                syscalls.set_propagation(held, syscalls.MS_SLAVE)


def _unmount_in(copy: int, holder: int, path: bytes, below: bytes, shared: bool) -> None:
    """Mount and unmount something at ``below`` in the copy of the mount ``holder``. To be run in a process of its own."""
    namespaces.make_private()
    syscalls.mount(b"tmpfs", path, b"tmpfs", 0, b"mode=0700")
    for place in (_LEADER, _FOLLOWER):
        os.mkdir(path + place)
    syscalls.move_mount(copy, path + _LEADER)
    syscalls.set_propagation(copy, syscalls.MS_PRIVATE)
    mountpoint = beneath.open_at(copy, below, beneath.HOLD)
    syscalls.mount(b"tmpfs", beneath.name_of(mountpoint), b"tmpfs", 0, b"mode=0700")
    # From here on what is unmounted spreads.
    if shared:
        syscalls.share_like(holder, copy)
    else:
        syscalls.set_propagation(copy, syscalls.MS_SHARED)
        follower = syscalls.clone_mounts(copy, inner=False)
        syscalls.move_mount(follower, path + _FOLLOWER)
        syscalls.set_propagation(follower, syscalls.MS_SLAVE)
        syscalls.share_like(follower, holder)
    syscalls.umount(path + _LEADER + b"/" + below, syscalls.MNT_DETACH)
