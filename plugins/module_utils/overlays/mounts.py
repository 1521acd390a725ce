# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Observe the overlays at a mountpoint, and mount, switch and unmount them as planned."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    mountinfo,
    mountpoints,
    processes,
    syscalls,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.namespaces import (
    mounts_like,
    mounts_like_each,
    own_mounts,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import (
    covered,
    creating,
    detached,
    inner_mounts,
    uppers,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import (
    CreateUpper,
    DetachOverlay,
    DropCovered,
    MountOverlay,
    MountpointState,
    SwitchOverlay,
    UnmountOverlay,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees import tree_parts


def observe(path: bytes) -> MountpointState:
    """Return what is at a mountpoint: the topmost mount and the overlays that it covers, or whether the directory is empty.

    Raises OverlayError if the path is neither a mountpoint nor a directory nor missing.
    """
    live = own_mounts()
    found = mountinfo.stack(live, path)
    if not found:
        return MountpointState(None, mountpoints.directory_state(path))
    below = tuple(itertools.takewhile(lambda mount: mount.fstype == b"overlay", found[1:]))
    parts, inner = tree_parts.split(found[0], mountinfo.inside(live, found[0]))
    of_below = [tree_parts.split(mount, mountinfo.inside(live, mount)) for mount in below]
    can_drop = syscalls.knows_share_like()
    return MountpointState(
        found[0],
        None,
        below,
        inner=tuple(inner),
        inner_below=tuple(of_below[0][1]) if below else (),
        parts=tuple(parts),
        parts_below=tuple(part for parts_of_one, _inner in of_below for part in parts_of_one),
        can_drop=can_drop,
        droppable=mountinfo.droppable(live, found) if can_drop else 0,
    )


def can_mount_beneath() -> bool:
    """Return whether the kernel can mount beneath another mount (Linux 6.5)."""
    return syscalls.knows_mount_beneath()


def detach(path: bytes) -> None:
    """Detach the mount at ``path``. Processes that use it keep it until they close their files and leave its directories."""
    live = own_mounts()
    mount = mountinfo.top_mount(live, path)
    if mount is not None:
        _record(mount, mountinfo.inside(live, mount))
    syscalls.umount(path, syscalls.MNT_DETACH)


def _record(mount: Mount, inside: Sequence[Mount]) -> None:
    """Record a mount that is about to be detached, and those inside it. Then only the records of overlays lead to their users."""
    overlays = [one for one in (mount, *inside) if one.fstype == b"overlay"]
    ids = mounts_like_each(overlays)
    for one in overlays:
        detached.record(one, ids[one])


def _mount_new(spec: MountSpec) -> None:
    mount = creating.new_overlay(spec)
    try:
        uppers.note(spec)
        creating.attach(mount, spec.path)
    finally:
        os.close(mount)


def _switch(action: SwitchOverlay) -> None:
    if action.method == "replace":
        _unmount_all(action.spec.path)
        _mount_new(action.spec)
    else:
        _switch_unseen(action.spec, action.method, action.inner)


def _switch_unseen(spec: MountSpec, method: str, inner: str) -> None:
    """Replace the overlay at a mountpoint, so that every path walk finds the old one or the new one.

    With ``beneath`` the new one is attached beneath the old one, which is then detached; with ``over`` it is attached over the old one.
    Mounts inside the old one are carried over. Raises OverlayError, and changes nothing, if one of these cannot be and ``inner`` is not
    ``drop``, or if the kernel cannot attach the new overlay.
    """
    live = own_mounts()
    old = mountinfo.top_mount(live, spec.path)
    if old is None:
        raise OverlayError(
            f"the overlay at {show(spec.path)} was unmounted by another program during the run: run the task again"
        )
    inside = mountinfo.inside(live, old)
    _parts, of_others = tree_parts.split(old, inside)
    with inner_mounts.new_tree(spec, old, of_others, inner) as (mount, _problems), inner_mounts.held_root(old) as root:
        uppers.note(spec)
        _record(old, inside)
        if method == "beneath":
            _attach_beneath(mount, spec.path)
            inner_mounts.check_unchanged(old, inside)
            inner_mounts.separate(root, old, inside)
            syscalls.umount(spec.path, syscalls.MNT_DETACH)
        else:
            inner_mounts.check_unchanged(old, inside)
            creating.attach(mount, spec.path)
            inner_mounts.separate(root, old, inside)
            inner_mounts.detach_all(root, old, inside)
    live = own_mounts()
    new = mountinfo.top_mount(live, spec.path)
    if inside and new:
        inner_mounts.keep_private(new, inside, mountinfo.inside(live, new))


def _attach_beneath(mount: int, path: bytes) -> None:
    try:
        syscalls.move_mount(mount, path, beneath=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise OverlayError(
            f"the overlay at {show(path)} differs from the declaration, and the kernel cannot mount the declared one beneath it, for"
            " example because of its mount propagation (mount_namespaces(7)): use 'switch: over', which mounts on top of it"
        ) from None


def _drop_covered(path: bytes) -> None:
    """Detach the overlays that the topmost one at ``path`` covers, lowest first, as far as the kernel can."""
    while True:
        live = own_mounts()
        found = mountinfo.stack(live, path)
        if not mountinfo.droppable(live, found):
            return
        detached.record(found[-1], mounts_like(found[-1]))
        covered.drop_lowest(live, found[-1])


def _unmount_all(path: bytes) -> None:
    """Unmount the overlay at ``path``, and detach those that it covers.

    The covered ones go first where the kernel can do that, so that none of them is seen. Raises OverlayError if the topmost is in use.
    """
    if syscalls.knows_share_like():
        _drop_covered(path)
    live = own_mounts()
    mount = mountinfo.top_mount(live, path)
    if mount and tree_parts.split(mount, mountinfo.inside(live, mount))[0]:
        _unmount_tree(mount, mountinfo.inside(live, mount))
    else:
        mountpoints.unmount(path)
    while True:
        below = mountinfo.top_mount(own_mounts(), path)
        if below is None or below.fstype != b"overlay":
            return
        detach(path)


def _unmount_tree(mount: Mount, inside: Sequence[Mount]) -> None:
    """Unmount a tree of overlays in one step. Raises OverlayError if it is in use.

    The kernel unmounts a mount with others inside it only by detaching it, which it does whether or not the mount is in use.
    """
    parts, of_others = tree_parts.split(mount, inside)
    users = processes.of_mounts(set().union(*mounts_like_each([mount, *parts]).values()))
    if users or of_others:
        raise OverlayError(mountpoints.busy_message(mount.path, users, of_others))
    detach(mount.path)


#: Carries out the actions of a plan for a mountpoint.
HANDLERS: Handlers = {
    **mountpoints.HANDLERS,
    CreateUpper: lambda action: mountpoints.make(action.path, action.mode),
    MountOverlay: lambda action: _mount_new(action.spec),
    SwitchOverlay: _switch,
    DetachOverlay: lambda action: detach(action.path),
    DropCovered: lambda action: _drop_covered(action.path),
    UnmountOverlay: lambda action: _unmount_all(action.path),
}
