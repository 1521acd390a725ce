# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry what is mounted inside of an overlay over to the one that takes its place, before that is attached.

The new tree is put together in a private mount namespace of a child process, and comes out of it whole and detached, so that it can be
attached in one step, and a run that is killed leaves nothing. Each inner mount of it is a copy that follows and leads other mounts as
its original does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    beneath,
    deadline,
    mountinfo,
    namespaces,
    syscalls,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount

#: Seconds for the child process; its parent has a shorter limit of its own.
_LONGEST_WAIT = 86400.0

#: Where the trees are in the private mount namespace, below the mountpoint.
_OLD, _NEW, _MOVED = b"/old", b"/new", b"/moved"


def carried(mount: int, old: Mount, inner: Sequence[Mount]) -> tuple[int, list[str]]:
    """Return a detached tree of the detached ``mount`` with copies of what is mounted inside of ``old``, and what cannot be carried.

    ``old`` is the topmost mount at its path, and ``inner`` what is inside of it. What cannot be carried is a sentence for each.
    """
    with held_root(old) as root:
        try:
            tree = syscalls.clone_mounts(root)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return os.dup(mount), [f"{show(one.path)}: the overlay that it is in is unbindable" for one in inner]
    wanted = Counter(one.path[len(old.path) :] for one in inner)
    receiver, sender = socket.socketpair()

    def put_together(_progress: deadline.Progress) -> list[str]:
        namespaces.make_private()
        problems = _put_together(mount, tree, old.path, wanted)
        with _held(old.path + _NEW) as new:
            socket.send_fds(sender, [b"."], [syscalls.clone_mounts(new)])
        return problems

    try:
        with receiver, sender:
            problems = deadline.run(put_together, _LONGEST_WAIT)
            _message, descriptors, _flags, _address = socket.recv_fds(receiver, 1, 1)
    finally:
        os.close(tree)
    os.set_inheritable(descriptors[0], False)
    return descriptors[0], problems


def _put_together(mount: int, tree: int, path: bytes, wanted: Counter[bytes]) -> list[str]:
    """Move all that is mounted inside of ``tree`` to its place in ``mount``; return a sentence for each that has none there."""
    syscalls.mount(b"tmpfs", path, b"tmpfs", 0, b"mode=0700")
    for place, one in ((_OLD, tree), (_NEW, mount)):
        os.mkdir(path + place)
        syscalls.move_mount(one, path + place)
    os.mkdir(path + _MOVED)
    top = path + _OLD
    live = namespaces.mounts_of()
    old = mountinfo.stack(live, top)[0]
    inner = mountinfo.inside(live, old)
    # What is taken out of it here stays in those that it follows or leads. The kernel moves nothing that is on a shared mount, such as
    # one of several at the same path.
    stacked = len({one.path for one in inner}) < len(inner)
    syscalls.set_propagation(tree, syscalls.MS_PRIVATE | (syscalls.MS_REC if stacked else 0))
    found = Counter(one.path[len(top) :] for one in inner)
    problems = [f"{show(path + one)} is unbindable, so the kernel does not copy it" for one in sorted(wanted - found)]
    with _held(path + _NEW) as new:
        for place, moved in reversed(_taken_out(tree, old, path + _MOVED)):
            problem = _put(moved, new, place)
            if problem:
                problems.append(f"{show(path + place)} {problem}")
            os.close(moved)
    return problems


def _taken_out(tree: int, old: Mount, aside: bytes) -> list[tuple[bytes, int]]:
    """Move all that is mounted directly on ``old`` aside, that which is seen first; return places and descriptors in that order."""
    moved: list[tuple[bytes, int]] = []
    while True:
        live = namespaces.mounts_of()
        seen = next(_movable(live, old), None)
        if seen is None:
            return moved
        place = seen.path[len(old.path) :]
        mount = syscalls.hold_mount(tree, place[1:])
        if beneath.mount_of(mount) != seen.id:
            raise OverlayError(
                f"the way to {show(old.path + place)} was exchanged meanwhile: nothing was changed; run the task again"
            )
        # The kind of what it is moved to has to be its own, and that of an inner mount whose server is gone cannot be asked for.
        slot = aside + b"/%d" % len(moved)
        _move_aside(mount, slot)
        moved.append((place, mount))


def _movable(live: Sequence[Mount], old: Mount) -> Iterator[Mount]:
    """Yield what can be moved now: what is on ``old``, or covers the whole of such a mount, and is not covered itself."""
    direct = {one.id: one for one in live if one.parent == old.id and one.path != old.path}
    for one in direct.values():
        for top in reversed(mountinfo.stack(live, one.path)):
            if mountinfo.top_mount(live, one.path) == top:
                yield top


def _move_aside(mount: int, slot: bytes) -> None:
    for make in (_make_directory, _make_file):
        make(slot)
        with _held(slot) as place:
            try:
                syscalls.move_mount_to(mount, place)
                return
            except OSError as error:
                if make is _make_file or error.errno not in (errno.EINVAL, errno.ENOTDIR):
                    raise
        os.rmdir(slot)


def _make_directory(path: bytes) -> None:
    os.mkdir(path)


def _make_file(path: bytes) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC))


_LINK = "has a symbolic link in its way in the new overlay"


def _put(mount: int, new: int, place: bytes) -> str:
    """Attach a mount at its place in the new overlay; return why that cannot be, or nothing."""
    try:
        target = beneath.open_at(new, place[1:], beneath.HOLD)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return _LINK
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
        return "has no place in the new overlay, where there is nothing of that name"
    try:
        mode = os.fstat(target).st_mode
        if stat.S_ISLNK(mode):
            return _LINK
        syscalls.move_mount_to(mount, target)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTDIR):
            raise
        kind = "directory" if stat.S_ISDIR(mode) else "file"
        return f"has no place in the new overlay, where there is a {kind} of that name, and what is mounted is none"
    finally:
        os.close(target)
    return ""


@contextlib.contextmanager
def held_root(mount: Mount) -> Iterator[int]:
    """Give a descriptor of the root of the topmost mount at a path. Raises OverlayError when another mount is there by now."""
    with _held(mount.path) as fd:
        if beneath.mount_of(fd) != mount.id:
            raise OverlayError(
                f"something else was mounted at {show(mount.path)} meanwhile: nothing was changed; run the task again"
            )
        yield fd


@contextlib.contextmanager
def _held(path: bytes) -> Iterator[int]:
    fd = os.open(path, beneath.HOLD)
    try:
        yield fd
    finally:
        os.close(fd)


def separate(root: int, old: Mount, inner: Collection[Mount]) -> None:
    """Have the inner mounts of ``old``, whose root is given, be unmounted without unmounting anything elsewhere.

    What is unmounted in a shared mount goes from the mounts that it was bound from as well, so those inner mounts that hold others are
    made private.
    """
    holders = {one.parent for one in inner}
    for mount in _seen(root, old, inner):
        if beneath.mount_of(mount) in holders:
            syscalls.set_propagation(mount, syscalls.MS_PRIVATE | syscalls.MS_REC)


def detach_all(root: int, old: Mount, inner: Collection[Mount]) -> None:
    """Detach what is mounted inside of ``old``, whose root is given since others may cover it by now."""
    for _mount in inner:
        # Each may have covered another one.
        for mount in _seen(root, old, inner):
            syscalls.detach_mount(mount)


def keep_private(new: Mount, was: Collection[Mount], inner: Collection[Mount]) -> None:
    """Make those of the ``inner`` mounts of the topmost mount ``new`` private that ``was`` says were.

    What is attached to a shared mount becomes shared.
    """
    private = {one.path for one in was if not one.propagation}
    with held_root(new) as root:
        for one in inner:
            if one.path in private and one.propagation:
                with (
                    contextlib.suppress(FileNotFoundError, NotADirectoryError),
                    _mount_at(root, one.path[len(new.path) + 1 :]) as mount,
                ):
                    if beneath.mount_of(mount) == one.id:
                        syscalls.set_propagation(mount, syscalls.MS_PRIVATE)


@contextlib.contextmanager
def _mount_at(root: int, place: bytes) -> Iterator[int]:
    mount = syscalls.hold_mount(root, place)
    try:
        yield mount
    finally:
        os.close(mount)


def _seen(root: int, old: Mount, inner: Collection[Mount]) -> Iterator[int]:
    """Yield a descriptor of each of the mounts directly on ``old`` that others do not cover, or of what covers the whole of it."""
    known = {one.id for one in inner}
    for place in sorted({one.path[len(old.path) + 1 :] for one in inner if one.parent == old.id}):
        # Something may cover the way to it.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), _mount_at(root, place) as mount:
            if beneath.mount_of(mount) in known:
                yield mount
