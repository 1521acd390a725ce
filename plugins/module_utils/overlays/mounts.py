# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mounting, switching and unmounting overlays, and finding out who uses one."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Iterator, Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    deadline,
    mountinfo,
    mountpoints,
    namespaces,
    syscalls,
    xattrs,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, Handlers
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, listed
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.namespaces import mounts_like, own_mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import (
    covered,
    detached,
    images,
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

_MOUNT_ATTRIBUTES = {
    "ro": syscalls.MOUNT_ATTR_RDONLY,
    "nosuid": syscalls.MOUNT_ATTR_NOSUID,
    "nodev": syscalls.MOUNT_ATTR_NODEV,
    "noexec": syscalls.MOUNT_ATTR_NOEXEC,
    "noatime": syscalls.MOUNT_ATTR_NOATIME,
    "strictatime": syscalls.MOUNT_ATTR_STRICTATIME,
    "nodiratime": syscalls.MOUNT_ATTR_NODIRATIME,
    "nosymfollow": syscalls.MOUNT_ATTR_NOSYMFOLLOW,
}

#: Bytes that one option takes (fsconfig(2)).
LONGEST_VALUE = 255

#: Seconds for the child process that mounts images and scratch space; its parent has a shorter limit of its own.
_LONGEST_WAIT = 86400.0


def overlay_defaults() -> dict[bytes, bytes]:
    """Return the defaults of overlay options on this host, which the kernel leaves out when it prints a mount's options."""
    folder = "/sys/module/overlay/parameters"
    defaults = {}
    for name in ("metacopy", "redirect_dir", "redirect_always_follow", "index", "nfs_export", "xino_auto"):
        try:
            with open(os.path.join(folder, name), "rb") as stream:
                defaults[name.encode("ascii")] = stream.read().strip()
        except OSError:  # no such parameter in this kernel, or overlay not loaded yet
            continue
    return defaults


def new_overlay(spec: MountSpec) -> int:
    """Return a descriptor of a new, detached overlay mount, or of one of a directory of it where only that is to be seen.

    Images, scratch space, and an overlay of which a part is shown are mounted in a mount namespace of a child process and nowhere else.
    What is returned holds on to them, so they go with it, and with a run that is killed.
    """
    scratch = spec.writable if spec.writable and spec.writable.scratch is not None else None
    if not spec.images and not scratch and spec.root == b"/":
        return create_overlay(spec)
    receiver, sender = socket.socketpair()

    def create_there(_progress: deadline.Progress) -> None:
        images.mount_unseen(spec.images, (*spec.lower, *spec.data, *spec.kept))
        if scratch:
            uppers.mount_scratch(scratch, spec.lower[0])
        mount = create_overlay(spec)
        socket.send_fds(sender, [b"."], [mount if spec.root == b"/" else _shown_part(mount, spec)])

    with receiver, sender:
        deadline.run(create_there, _LONGEST_WAIT)
        _message, descriptors, _flags, _address = socket.recv_fds(receiver, 1, 1)
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _shown_part(mount: int, spec: MountSpec) -> int:
    """Return a descriptor of a mount of the directory that is shown of an overlay. It is attached to what nobody else sees for that."""
    layer = spec.lower[0]
    shown = layer + spec.root
    if not os.path.isdir(shown) or xattrs.read(shown, b"trusted.overlay.opaque") != b"y":
        raise OverlayError(
            f"overlay at {show(spec.path)}: layer {show(layer)} is not made for strategy redirect: it has no opaque directory"
            f" {show(spec.root[1:])}, so names of the data layers would be seen"
        )
    # Before Linux 6.15 only what is attached can be cloned.
    attach(mount, layer)
    return syscalls.clone_tree(mount, spec.root[1:])


def create_overlay(spec: MountSpec, one_by_one: bool | None = None) -> int:
    """Return a descriptor of a new, detached overlay mount. Raises OverlayError with what the kernel says about it.

    Images have to be mounted under their names. ``one_by_one`` tells whether each layer is named in an option of its own; by default
    where the kernel takes that.
    """
    if one_by_one is None:
        one_by_one = takes_layers_one_by_one()
    with _configured(spec, one_by_one) as context:
        syscalls.fsconfig_create(context)
        attributes = 0
        for flag in spec.flags:
            attributes |= _MOUNT_ATTRIBUTES[flag]
        return syscalls.fsmount(context, attributes)


def rehearse(spec: MountSpec) -> None:
    """Give the kernel the layers and options of an overlay without making one. Raises OverlayError for what it does not take.

    Images among the layers are not tried.
    """
    if not spec.images:
        with _configured(spec, takes_layers_one_by_one()):
            pass


@contextlib.contextmanager
def _configured(spec: MountSpec, one_by_one: bool) -> Iterator[int]:
    """Give a file system context that has the layers and options of an overlay. Raises OverlayError, also for what the block fails with."""
    context = _open_context()
    try:
        _configure(context, spec, one_by_one)
        yield context
    except OSError as error:
        raise OverlayError(_refusal(spec, error, syscalls.context_messages(context))) from None
    finally:
        os.close(context)


def _open_context() -> int:
    try:
        return syscalls.fsopen(b"overlay")
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise OverlayError("this kernel has no overlay file system; load it with 'modprobe overlay'") from None
        if error.errno == errno.EPERM:
            raise OverlayError("mounting needs CAP_SYS_ADMIN: run the task as root (become: true)") from None
        raise


def _configure(context: int, spec: MountSpec, one_by_one: bool) -> None:
    syscalls.fsconfig_string(context, b"source", spec.source)
    _add_layers(context, spec, one_by_one)
    for option, path in ((b"upperdir", spec.upper), (b"workdir", spec.work)):
        if path is not None:
            _add_layer(context, option, path, mountinfo.escape_single(path))
    for name, value in spec.settings:
        if value is None:
            syscalls.fsconfig_flag(context, name)
        else:
            syscalls.fsconfig_string(context, name, value)
    if "ro" in spec.flags:
        syscalls.fsconfig_flag(context, b"ro")


def takes_layers_one_by_one() -> bool:
    """Tell whether the kernel knows ``lowerdir+`` (Linux 6.8)."""
    # Before Linux 6.5 any option is taken, and found to be unknown when it comes to mounting.
    return _takes_option(b"lowerdir+", b"/") and not _takes_option(b"no_such_option", b"/")


def _takes_option(name: bytes, value: bytes) -> bool:
    try:
        context = syscalls.fsopen(b"overlay")
    except OSError:  # the reason is told when it comes to mounting
        return False
    try:
        syscalls.fsconfig_string(context, name, value)
        return True
    except OSError:
        return False
    finally:
        os.close(context)


def _add_layers(context: int, spec: MountSpec, one_by_one: bool) -> None:
    """Name the layers one at a time (Linux 6.8), or all in one option, which takes 255 bytes, where the kernel cannot."""
    lower, data = spec.layers
    if not one_by_one:
        value = mountinfo.join_lowerdir(lower, data)
        if len(value) > LONGEST_VALUE:
            raise OverlayError(
                f"the paths of the layers of the overlay at {show(spec.path)} have {len(value)} bytes together, and this kernel takes"
                f" {LONGEST_VALUE} (Linux 6.8 takes that many of each): use fewer layers or shorter paths"
            )
        syscalls.fsconfig_string(context, b"lowerdir", value)
        return
    for path in lower:
        _add_layer(context, b"lowerdir+", path)
    for path in data:
        _add_layer(context, b"datadir+", path)


def _add_layer(context: int, option: bytes, path: bytes, value: bytes | None = None) -> None:
    """``value`` is the path as the option takes it."""
    value = path if value is None else value
    if len(value) <= LONGEST_VALUE:
        syscalls.fsconfig_string(context, option, value)
        return
    fd = os.open(path, syscalls.HOLD_DIRECTORY)
    try:
        syscalls.fsconfig_fd(context, option, fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise OverlayError(
            f"the path of layer {show(path)} has {len(path)} bytes: this kernel takes {LONGEST_VALUE} at most (Linux 6.13 takes"
            " longer ones)"
        ) from None
    finally:
        os.close(fd)


def _refusal(spec: MountSpec, error: OSError, messages: str) -> str:
    reason = error.strerror if error.filename is None else f"{error.strerror} at {error.filename!r}"
    for path in (*spec.lower, *spec.data, *spec.kept):
        if not os.path.isdir(path):
            return f"overlay at {show(spec.path)}: the layer {show(path)} is not there"
    hint = ""
    if error.errno == errno.EINVAL and spec.layers[1]:
        hint = (
            "; data-only layers need Linux 6.5 or a distribution kernel that carries them: overlay_info tells what this"
            " kernel can do, and a layer of strategy redirect does without them"
        )
    elif error.errno == errno.ESTALE and spec.writable:
        hint = (
            f"; the upper layer {show(spec.writable.upper)} was used over another lower layer, perhaps one that was at the same path: use"
            " an empty one"
        )
    elif error.errno == errno.EBUSY and spec.writable:
        hint = "; the upper layer or its work directory is in use by another overlay, perhaps one that was detached"
    elif error.errno == errno.ELOOP:
        hint = "; one of the layers lies inside of another one"
    elif error.errno == errno.EPERM:
        hint = "; mounting overlays needs root (become: true)"
    return f"overlay at {show(spec.path)}: the kernel refuses it: {reason}{': ' + messages if messages else ''}{hint}"


def attach(mount: int, path: bytes) -> None:
    syscalls.move_mount(mount, path)


def can_mount_beneath() -> bool:
    return syscalls.knows_mount_beneath()


def _switch(spec: MountSpec, method: str, inner: str) -> None:
    """Attach a new overlay beneath the one that is there, and detach that, or over it: no path walk ever finds neither.

    What is mounted inside of the old one is carried over. Raises OverlayError where ``inner`` does not let go of what cannot be, and
    where the overlay cannot be attached; nothing is changed then.
    """
    live = own_mounts()
    old = mountinfo.top_mount(live, spec.path)
    if old is None:
        raise OverlayError(
            f"the overlay at {show(spec.path)} is gone: another program has unmounted it; run the task again"
        )
    inside = mountinfo.inside(live, old)
    with new_tree(spec, old, inside, inner) as (mount, _problems), inner_mounts.held_root(old) as root:
        uppers.note(spec)
        for one in (old, *inside):
            if one.fstype == b"overlay":
                detached.record(one, mounts_like(one))
        if method == "beneath":
            _attach_beneath(mount, spec.path)
            _check_inside(old, inside)
            inner_mounts.separate(root, old, inside)
            syscalls.umount(spec.path, syscalls.MNT_DETACH)
        else:
            _check_inside(old, inside)
            attach(mount, spec.path)
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
            f"the overlay at {show(path)} differs from what is declared, and the kernel cannot mount another one beneath it, for"
            " example because of how mounts spread there (mount_namespaces(7)): 'switch: over' mounts on top of it"
        ) from None


def _check_inside(old: Mount, inside: Sequence[Mount]) -> None:
    """Raises OverlayError when something was mounted in an overlay after its inner mounts were copied."""
    new = [one for one in mountinfo.inside(own_mounts(), old) if one.id not in {other.id for other in inside}]
    if new:
        raise OverlayError(
            f"{listed(new)} was mounted while the overlay at {show(old.path)} was switched, which is not finished: run the"
            " task again"
        )


@contextlib.contextmanager
def new_tree(spec: MountSpec, old: Mount, inside: Sequence[Mount], inner: str) -> Iterator[tuple[int, list[str]]]:
    """Give a new, detached overlay with copies of what is mounted inside of the one that it replaces, and what it lacks of that.

    Raises OverlayError naming what has no place in the new one, unless ``inner`` is ``drop``.
    """
    mount = new_overlay(spec)
    problems: list[str] = []
    try:
        if inside:
            tree, problems = inner_mounts.carried(mount, old, inside)
            os.close(mount)
            mount = tree
            if problems and inner != "drop":
                raise OverlayError(
                    f"the overlay at {show(spec.path)} is not switched, since what is mounted inside of it would be lost:"
                    f" {'; '.join(problems)}. Unmount it, or give 'inner_mounts: drop' to go on without it"
                )
        yield mount, problems
    finally:
        os.close(mount)


def not_carried(plan: Sequence[Action], state: MountpointState) -> list[str]:
    """Return a sentence for each mount inside of an overlay that a switch would leave behind, without changing anything.

    Raises OverlayError as the switch would.
    """
    for action in plan:
        # The kernel writes to an upper layer when it is mounted.
        if isinstance(action, SwitchOverlay) and not action.spec.writable and state.mount and state.inner:
            with new_tree(action.spec, state.mount, state.inner, action.inner) as (_tree, problems):
                return problems
    return []


def detach(path: bytes) -> None:
    """Take the mount at ``path`` away. Processes that have files open or stand in it keep it until they let go."""
    _note_before_detaching(path)
    syscalls.umount(path, syscalls.MNT_DETACH)


def _note_before_detaching(path: bytes) -> None:
    """Record the mount at ``path``, since its users cannot be found otherwise once it is detached."""
    mount = mountinfo.top_mount(own_mounts(), path)
    if mount is not None:
        detached.record(mount, mounts_like(mount))


def is_other_content(name: bytes) -> bool:
    """Tell whether the place under which an image is known has something else in it."""
    if not os.path.isdir(name):
        return False
    state = observe(name)
    return state.mount.fstype != b"erofs" if state.mount else not state.empty


def shown_elsewhere(old: Mount) -> list[tuple[bytes, int | None]]:
    """Return where an overlay is seen: each path, and a process in the mount namespace there, None in our own."""
    return [
        (mount.path, pid)
        for pid, live in namespaces.everywhere()
        for mount in live
        # Its number may have been given away by now.
        if (mount.device, mount.fstype, mount.super_options) == (old.device, old.fstype, old.super_options)
        and mountinfo.top_mount(live, mount.path) == mount
    ]


def observe(path: bytes) -> MountpointState:
    """Return what is at a mountpoint: the mount, and the overlays that it covers, or else whether there is an empty directory."""
    live = own_mounts()
    found = mountinfo.stack(live, path)
    if not found:
        return MountpointState(None, mountpoints.directory_state(path))
    below = tuple(itertools.takewhile(lambda mount: mount.fstype == b"overlay", found[1:]))
    can_drop = syscalls.knows_share_like()
    return MountpointState(
        found[0],
        None,
        below,
        inner=tuple(mountinfo.inside(live, found[0])),
        inner_below=tuple(mountinfo.inside(live, below[0])) if below else (),
        can_drop=can_drop,
        droppable=mountinfo.droppable(live, found) if can_drop else 0,
    )


def _drop_covered(path: bytes) -> None:
    """Detach the overlays that the one at ``path`` covers, lowest first, as far as the kernel can."""
    while True:
        live = own_mounts()
        found = mountinfo.stack(live, path)
        if not mountinfo.droppable(live, found):
            return
        detached.record(found[-1], mounts_like(found[-1]))
        covered.drop_lowest(live, found[-1])


def _unmount_all(path: bytes) -> None:
    """Unmount the overlay at ``path``, and detach those that it covers, as switches would have done: these first, so that none is seen."""
    if syscalls.knows_share_like():
        _drop_covered(path)
    mountpoints.unmount(path)
    while True:
        below = mountinfo.top_mount(own_mounts(), path)
        if below is None or below.fstype != b"overlay":
            return
        detach(path)


def _mount_new(spec: MountSpec) -> None:
    mount = new_overlay(spec)
    try:
        uppers.note(spec)
        attach(mount, spec.path)
    finally:
        os.close(mount)


def _switch_as_planned(action: SwitchOverlay) -> None:
    if action.method == "replace":
        _unmount_all(action.spec.path)
        _mount_new(action.spec)
    else:
        _switch(action.spec, action.method, action.inner)


#: Carries out the actions of a plan for a mountpoint.
HANDLERS: Handlers = {
    **mountpoints.HANDLERS,
    CreateUpper: lambda action: mountpoints.make(action.path, action.mode),
    MountOverlay: lambda action: _mount_new(action.spec),
    SwitchOverlay: _switch_as_planned,
    DetachOverlay: lambda action: detach(action.path),
    DropCovered: lambda action: _drop_covered(action.path),
    UnmountOverlay: lambda action: _unmount_all(action.path),
}
