# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Detach a mount that other mounts at the same path cover, and leave those in place.

No system call names a covered mount, and detaching it by a descriptor also detaches what is on it. But unmounting propagates: when
something is unmounted in a mount, the kernel also unmounts the lowest mount at that place in each mount that follows it, and leaves what
covers that in place (mount_namespaces(7)). So a child process copies the mount that holds the mountpoint, in a private mount namespace,
and makes the mount follow its copy. It then mounts something at the same place in the copy, and unmounts that.

A killed run leaves nothing behind: the copy goes with the mount namespace, and the follower is private again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, deadline, namespaces, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating, inner_mounts

#: Directories below the mountpoint, in the private mount namespace, on which the copies are mounted.
_LEADER, _FOLLOWER = b"/leader", b"/follower"


def drop_lowest(mounts: Sequence[Mount], mount: Mount) -> None:
    """Detach ``mount``, the lowest at its path. Processes that use it keep it. Needs Linux 5.15.

    ``mounts`` are the mounts of this mount namespace. Raises OverlayError if the mount that holds the mountpoint is not among them.
    """
    holder = next((one for one in mounts if one.id == mount.parent), None)
    if holder is None:
        raise OverlayError(
            f"the mount that holds the mountpoint {show(mount.path)} is not visible to this process: run the task outside of a chroot"
        )
    below = mount.path[len(holder.path.rstrip(b"/")) + 1 :]
    follows = any(word.startswith(b"master:") for word in holder.propagation)
    shared = any(word.startswith(b"shared:") for word in holder.propagation)
    with inner_mounts.held_root(holder) as held:
        # A mount that follows another one cannot follow the copy, but it can be a peer of the copy.
        borrow = follows and not shared
        if borrow:
            syscalls.set_propagation(held, syscalls.MS_SHARED)
        copy = -1
        try:
            copy = syscalls.clone_mounts(held, inner=False)
            deadline.run(
                lambda _progress: _unmount_in(copy, held, mount.path, below, shared or borrow), creating.CHILD_SECONDS
            )
        finally:
            if copy >= 0:
                os.close(copy)
            if borrow:
                syscalls.set_propagation(held, syscalls.MS_SLAVE)


def _unmount_in(copy: int, holder: int, path: bytes, below: bytes, shared: bool) -> None:
    """Mount something at ``below`` in the copy of the mount ``holder``, and unmount it. Call this in a child process.

    ``shared`` says whether ``holder`` is shared; then the copy becomes its peer, and otherwise its master.
    """
    namespaces.make_private()
    syscalls.mount(b"tmpfs", path, b"tmpfs", 0, b"mode=0700")
    for place in (_LEADER, _FOLLOWER):
        os.mkdir(path + place)
    syscalls.move_mount(copy, path + _LEADER)
    syscalls.set_propagation(copy, syscalls.MS_PRIVATE)
    mountpoint = beneath.open_at(copy, below, beneath.HOLD)
    syscalls.mount(b"tmpfs", beneath.name_of(mountpoint), b"tmpfs", 0, b"mode=0700")
    # From here on unmounting propagates to the holder.
    if shared:
        syscalls.share_like(holder, copy)
    else:
        syscalls.set_propagation(copy, syscalls.MS_SHARED)
        follower = syscalls.clone_mounts(copy, inner=False)
        syscalls.move_mount(follower, path + _FOLLOWER)
        syscalls.set_propagation(follower, syscalls.MS_SLAVE)
        syscalls.share_like(follower, holder)
    syscalls.umount(path + _LEADER + b"/" + below, syscalls.MNT_DETACH)
