# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Create overlay mounts with the kernel's mount API: fsopen(2), fsconfig(2) and fsmount(2).

A new overlay is detached: no path leads to it until it is attached.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Callable, TypeVar

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    beneath,
    deadline,
    files,
    mountinfo,
    namespaces,
    syscalls,
    xattrs,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import images, uppers
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees import tree_parts

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

#: The longest value of an option, in bytes (fsconfig(2)).
LONGEST_VALUE = 255

#: Time limit, in seconds, of a child process that mounts in a private mount namespace. The module that waits for it has a shorter one.
CHILD_SECONDS = 86400.0

_Extra = TypeVar("_Extra")


def overlay_defaults() -> dict[bytes, bytes]:
    """Return this host's defaults of overlay options, by name. The kernel does not print an option that has its default."""
    directory = "/sys/module/overlay/parameters"
    defaults = {}
    for name in ("metacopy", "redirect_dir", "redirect_always_follow", "index", "nfs_export", "xino_auto"):
        try:
            with open(os.path.join(directory, name), "rb") as stream:
                defaults[name.encode("ascii")] = stream.read().strip()
        except OSError:  # this kernel has no such parameter, or has not loaded overlay yet
            continue
    return defaults


def new_overlay(spec: MountSpec) -> int:
    """Create an overlay; return a descriptor of its detached mount, or of its directory ``spec.root`` where only that is shown.

    A child process mounts images, scratch space, and an overlay that is shown in part in a private mount namespace. The returned mount
    keeps them alive, so they go when it goes or when the run is killed. Raises OverlayError if the kernel refuses the overlay.
    """
    with namespaces.held(spec.places):
        return _new_overlay(spec)


def _new_overlay(spec: MountSpec) -> int:
    if spec.parts:
        files.make_directories(tree_parts.NO_DATA, 0o755)
        return mount_from_child(lambda: (_new_tree(spec), None))[0]
    scratch = spec.writable if spec.writable and spec.writable.scratch is not None else None
    if not spec.images and not scratch and spec.root == b"/":
        uppers.make_like_lower(spec)
        return create_overlay(spec)

    def create() -> tuple[int, None]:
        images.mount_unseen(spec.images, (*spec.lower, *spec.data, *spec.kept))
        if scratch:
            uppers.mount_scratch(scratch, spec.lower[0])
        uppers.make_like_lower(spec)
        mount = create_overlay(spec)
        if scratch:
            uppers.mark_empty(scratch)
        return (mount if spec.root == b"/" else _shown_part(mount, spec)), None

    return mount_from_child(create)[0]


def _new_tree(spec: MountSpec) -> int:
    """Create a tree of overlays; return a descriptor of its detached mount, with its parts in it. Call this in a child process."""
    images.mount_unseen(spec.images, (*spec.lower, *spec.all_data))
    first, *others = spec.overlays
    # One overlay for all parts with the same data layers. Each covers the layer, so all are created before one is attached. The first one
    # is attached last: a copy of a mount has what covers it.
    overlays = {one.data: create_overlay(one) for one in (*others, first)}
    here = spec.lower[0]
    for overlay in overlays.values():
        # Before Linux 6.15 only an attached mount can be cloned.
        attach(overlay, here)
    top = overlays[first.data]
    for part in others:
        shown = syscalls.clone_tree(overlays[part.data], part.place)
        place = beneath.open_at(top, part.place, beneath.HOLD)
        try:
            syscalls.move_mount_to(shown, place)
        finally:
            os.close(place)
            os.close(shown)
    return syscalls.clone_mounts(top)


def mount_from_child(create: Callable[[], tuple[int, _Extra]]) -> tuple[int, _Extra]:
    """Run ``create`` in a child process; return what it returns: a descriptor of a detached mount, and something else."""
    receiver, sender = socket.socketpair()

    def in_child(_progress: deadline.Progress) -> _Extra:
        mount, extra = create()
        socket.send_fds(sender, [b"."], [mount])
        return extra

    with receiver, sender:
        extra = deadline.run(in_child, CHILD_SECONDS)
        _message, descriptors, _flags, _address = socket.recv_fds(receiver, 1, 1)
    os.set_inheritable(descriptors[0], False)
    return descriptors[0], extra


def _shown_part(mount: int, spec: MountSpec) -> int:
    """Return a descriptor of a mount of the overlay's directory ``spec.root``. Call this in a private mount namespace.

    Raises OverlayError if the first layer is not made for strategy redirect.
    """
    layer = spec.lower[0]
    shown = layer + spec.root
    if not os.path.isdir(shown) or xattrs.read(shown, b"trusted.overlay.opaque") != b"y":
        raise OverlayError(
            f"overlay at {show(spec.path)}: layer {show(layer)} is not made for strategy redirect: it has no opaque directory"
            f" {show(spec.root[1:])}, so the view would show names of the data layers; build the layer with strategy redirect"
        )
    # Before Linux 6.15 only an attached mount can be cloned.
    attach(mount, layer)
    return syscalls.clone_tree(mount, spec.root[1:])


def create_overlay(spec: MountSpec, one_by_one: bool | None = None) -> int:
    """Create an overlay of layers that are directories; return a descriptor of its detached mount.

    Its images must already be mounted at their layer names. ``one_by_one`` says whether to give each layer in an option of its own, by
    default whether the kernel can take them so. Raises OverlayError with the kernel's reason if it refuses the overlay.
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
    """Give the kernel the layers and options of an overlay, and create nothing.

    An overlay with images is not tried. Raises OverlayError if the kernel refuses a layer or an option.
    """
    if not spec.images:
        with namespaces.held(spec.places), _configured(spec, takes_layers_one_by_one()):
            pass


@contextlib.contextmanager
def _configured(spec: MountSpec, one_by_one: bool) -> Iterator[int]:
    """Provide a file system context with the layers and options of an overlay.

    Raises OverlayError if the kernel refuses one, or if the block raises OSError.
    """
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
            raise OverlayError("this kernel has no overlay file system: load it with 'modprobe overlay'") from None
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
    """Return whether the kernel knows ``lowerdir+`` (Linux 6.8)."""
    # Before Linux 6.5 fsconfig(2) takes any option, and the kernel finds an unknown one only when it creates the overlay.
    return _takes_option(b"lowerdir+", b"/") and not _takes_option(b"no_such_option", b"/")


def _takes_option(name: bytes, value: bytes) -> bool:
    try:
        context = syscalls.fsopen(b"overlay")
    except OSError:  # creating the overlay fails with the reason
        return False
    try:
        syscalls.fsconfig_string(context, name, value)
        return True
    except OSError:
        return False
    finally:
        os.close(context)


def lowerdir(spec: MountSpec) -> bytes:
    """Return all layers as the value of one option. Raises OverlayError if it is longer than the kernel takes."""
    value = mountinfo.join_lowerdir(*spec.layers)
    if len(value) > LONGEST_VALUE:
        raise OverlayError(
            f"the paths of the layers of the overlay at {show(spec.path)} have {len(value)} bytes together, and this kernel takes"
            f" {LONGEST_VALUE} (Linux 6.8 takes that many of each): use fewer layers or shorter paths"
        )
    return value


def _add_layers(context: int, spec: MountSpec, one_by_one: bool) -> None:
    """Add the lower and data layers: each in an option of its own (Linux 6.8), or all in one option of at most 255 bytes."""
    lower, data = spec.layers
    if not one_by_one:
        syscalls.fsconfig_string(context, b"lowerdir", lowerdir(spec))
        return
    for path in lower:
        _add_layer(context, b"lowerdir+", path)
    for path in data:
        _add_layer(context, b"datadir+", path)


def _add_layer(context: int, option: bytes, path: bytes, value: bytes | None = None) -> None:
    """Add one layer. ``value`` is its path as the option takes it, by default as it is."""
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
            f"the path of layer {show(path)} has {len(path)} bytes, and this kernel takes {LONGEST_VALUE} (Linux 6.13 takes longer ones):"
            " use a shorter path"
        ) from None
    finally:
        os.close(fd)


def _refusal(spec: MountSpec, error: OSError, messages: str) -> str:
    """Return the message for an overlay that the kernel refuses, with its reason and what to do."""
    for path in (*spec.lower, *spec.data, *spec.kept):
        if not os.path.isdir(path):
            return f"overlay at {show(spec.path)}: layer {show(path)} does not exist or is not a directory: create it"
        try:
            os.close(os.open(path, syscalls.HOLD_DIRECTORY))
        except OSError as opening:
            return (
                f"overlay at {show(spec.path)}: layer {show(path)} is an automount, and it cannot be mounted ({opening.strerror}): check"
                " the map of the automounter, and the file server"
            )
    reason = error.strerror if error.filename is None else f"{error.strerror} at {error.filename!r}"
    said = f": {messages}" if messages else ""
    return f"overlay at {show(spec.path)}: the kernel refuses it: {reason}{said}{_hint(spec, error, messages)}"


def _hint(spec: MountSpec, error: OSError, messages: str) -> str:
    if "not supported" in messages:  # the kernel has named the layer
        return "; use a directory on a file system of another type"
    if error.errno == errno.EINVAL and spec.layers[1]:
        return (
            "; data-only layers need Linux 6.5, or a distribution kernel that has them: overlay_info shows what this kernel supports, and"
            " a layer of strategy redirect needs none"
        )
    if error.errno == errno.ESTALE and spec.writable:
        return (
            f"; the upper layer {show(spec.writable.upper)} was used over another lower layer, perhaps one that was at the same path: use"
            " an empty upper layer"
        )
    if error.errno == errno.EBUSY and spec.writable:
        return (
            "; another overlay uses the upper layer or its work directory, perhaps one that was detached and that processes still use:"
            " end these processes, or use other directories"
        )
    if error.errno == errno.ELOOP:
        return "; one layer is inside another one: use separate directories"
    if error.errno == errno.EPERM:
        return "; mounting overlays needs root: run the task as root (become: true)"
    return ""


def attach(mount: int, path: bytes) -> None:
    """Attach a detached mount at ``path``, over what is mounted there."""
    syscalls.move_mount(mount, path)
