# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mount EROFS images in a private mount namespace, for overlays that have them as layers."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Collection, Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import namespaces, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.files import make_directories
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import (
    image_path,
    is_image_path,
    without_suffix,
)

# loop(4), linux/loop.h
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_READ_ONLY = 1
_LO_FLAGS_AUTOCLEAR = 4
_LOOP_BLOCK_SIZE = 512

#: How often to ask for a free loop device: another program may take it first.
_LOOP_TRIES = 100


def mount_unseen(images: Sequence[bytes], layers: Collection[bytes]) -> None:
    """Enter a private mount namespace, and mount each image there at its layer name.

    ``layers`` are the paths of all layers of the overlay; those that are directories stay what they are outside. Call this in a child
    process. An image is mounted from its file, unless the kernel cannot do that or could then mount no overlay over the overlay. It is
    mounted through a loop device otherwise. Raises OverlayError if an image cannot be mounted.
    """
    # Opened in the outer namespace, so that the file system that holds an image is busy there.
    files = {without_suffix(image): _open(image) for image in images}
    try:
        with namespaces.held(layer for layer in layers if layer not in files):
            namespaces.make_private()
    except PermissionError:
        raise OverlayError("mounting needs CAP_SYS_ADMIN: run the task as root (become: true)") from None
    covered = {os.path.dirname(name) for name in files if not os.path.isdir(name)}
    if b"/" in covered:
        raise OverlayError("an image cannot be in the root directory: move it into another directory")
    others = {}
    for layer in layers:
        if layer in covered and layer not in files:
            raise OverlayError(f"layer {show(layer)} has images in it: move them out of it")
        if layer not in files and any(layer.startswith(directory + b"/") for directory in covered):
            others[layer] = os.open(layer, syscalls.HOLD_DIRECTORY)
    # Mountpoints for the images are made on a tmpfs, since the directory of an image may be read-only.
    for directory in sorted(covered):
        make_directories(directory, 0o755)
        syscalls.mount(b"tmpfs", directory, b"tmpfs", 0, b"mode=0700")
    for layer, fd in sorted(others.items()):
        make_directories(layer, 0o755)
        syscalls.mount(b"/proc/self/fd/%d" % fd, layer, None, syscalls.MS_BIND)
        os.close(fd)
    #: Whether images on a file system are mounted from their files, by its device.
    from_file: dict[int, bool] = {}
    for name, fd in sorted(files.items()):
        make_directories(name, 0o755)
        device = os.fstat(fd).st_dev
        if device not in from_file:
            from_file[device] = mounts_well_from_file(fd, name)
        _mount(fd, name, from_file[device])
        os.close(fd)


def among(layers: Sequence[bytes]) -> list[bytes]:
    """Return those of the layers that are image files. A missing one counts as an image if it has the name of one."""
    return [layer for layer in layers if not os.path.isdir(layer) and (is_image_path(layer) or os.path.isfile(layer))]


def _open(image: bytes) -> int:
    # O_NONBLOCK, so that opening a named pipe does not hang.
    fd = os.open(image, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OverlayError(f"image {show(image)} is not a regular file: give the path of an EROFS image")
    return fd


def mounts_well_from_file(image: int, place: bytes) -> bool:
    """Return whether the kernel can mount an open image from its file, and an overlay over an overlay of it.

    Some kernels count such a mount as a level of stacked file systems (Linux 6.17.13 and 6.18.3), of which they allow two. A loop device
    is no level. ``place`` is a directory of this private mount namespace, which is covered meanwhile.
    """
    try:
        mount = _detached(b"/proc/self/fd/%d" % image, place)
    except OSError:
        return False
    here = os.open(".", syscalls.HOLD_DIRECTORY)
    syscalls.mount(b"tmpfs", place, b"tmpfs", 0, b"mode=0700")
    try:
        # Relative paths need no escapes, and are short.
        os.chdir(place)
        for name in (b"image", b"empty", b"once", b"twice"):
            make_directories(name, 0o755)
        syscalls.move_mount(mount, b"image")
        for lower, name in ((b"image:empty", b"once"), (b"once:empty", b"twice")):
            syscalls.mount(b"overlay", name, b"overlay", syscalls.MS_RDONLY, b"lowerdir=" + lower)
    except OSError:
        return False
    finally:
        os.fchdir(here)
        syscalls.umount(place, syscalls.MNT_DETACH)
        os.close(here)
        os.close(mount)
    return True


def _mount(image: int, name: bytes, from_file: bool) -> None:
    mount = _detached(b"/proc/self/fd/%d" % image, name) if from_file else _from_loop(image, name)
    try:
        syscalls.move_mount(mount, name)
    finally:
        os.close(mount)


def _from_loop(image: int, name: bytes) -> int:
    """Return a detached mount of an image through a loop device, or from its file where no loop device can be had."""
    try:
        loop = attach_loop(image)
    except (OSError, OverlayError) as error:
        try:
            return _detached(b"/proc/self/fd/%d" % image, name)
        except OSError:  # the kernel cannot mount it from its file
            raise error from None
    try:
        return _detached(b"/proc/self/fd/%d" % loop, name)
    finally:
        os.close(loop)


def _detached(source: bytes, name: bytes) -> int:
    try:
        context = syscalls.fsopen(b"erofs")
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise OverlayError("this kernel has no EROFS file system: load it with 'modprobe erofs'") from None
        raise
    try:
        syscalls.fsconfig_string(context, b"source", source)
        syscalls.fsconfig_flag(context, b"ro")
        syscalls.fsconfig_create(context)
        return syscalls.fsmount(context, syscalls.MOUNT_ATTR_RDONLY)
    except OSError as error:
        if error.errno == errno.ENOTBLK:
            raise
        said = syscalls.context_messages(context)
        raise OverlayError(
            f"image {show(image_path(name))}: the kernel cannot mount it: {error.strerror}{': ' + said if said else ''}; check that it is a"
            " complete EROFS image"
        ) from None
    finally:
        os.close(context)


def attach_loop(image: int) -> int:
    """Return a descriptor of a read-only loop device on an open file. The kernel frees the device when nothing has it open or mounted.

    Raises OverlayError if there is no free loop device.
    """
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _try in range(_LOOP_TRIES):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            loop = os.open(f"/dev/loop{number}", os.O_RDONLY | os.O_CLOEXEC)
            flags = _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR
            # struct loop_config: descriptor, block size, struct loop_info64 with its flags after 52 bytes, reserved.
            config = struct.pack("=II52xI176x64x", image, _LOOP_BLOCK_SIZE, flags)
            try:
                fcntl.ioctl(loop, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(loop)
                if error.errno != errno.EBUSY:
                    raise OSError(error.errno, error.strerror, f"/dev/loop{number}") from None
                continue
            return loop
    finally:
        os.close(control)
    raise OverlayError("no loop device is free, since other programs take each free one first: run the task again")
