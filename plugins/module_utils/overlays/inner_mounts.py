# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry the mounts inside an overlay over to the overlay that replaces it.

A child process builds the new tree in a private mount namespace: the new overlay with copies of the inner mounts. It hands the tree out
detached, so the switch attaches it in one step, and a killed run leaves nothing behind. Each copy keeps the peers and the master of its
original.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    beneath,
    mountinfo,
    namespaces,
    syscalls,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, listed
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import (
    MountpointState,
    SwitchOverlay,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees import tree_parts

#: Directories below the mountpoint, in the private mount namespace, on which the trees are mounted.
_OLD, _NEW, _MOVED = b"/old", b"/new", b"/moved"

_SYMLINK = "has a symbolic link on its path in the new overlay"


@contextlib.contextmanager
def new_tree(spec: MountSpec, old: Mount, inside: Sequence[Mount], inner: str) -> Iterator[tuple[int, list[str]]]:
    """Provide a descriptor of a new, detached overlay with copies of the mounts inside ``old``, and the mounts that it lacks.

    Each of these is a sentence. Raises OverlayError with them if there are any and ``inner`` is not ``drop``.
    """
    mount = creating.new_overlay(spec)
    problems: list[str] = []
    try:
        if inside:
            tree, problems = _with_copies(mount, old, inside)
            os.close(mount)
            mount = tree
            if problems and inner != "drop":
                raise OverlayError(
                    f"the overlay at {show(spec.path)} is not switched, since mounts inside of it would be lost: {'; '.join(problems)}."
                    " Unmount these, or give 'inner_mounts: drop' to switch without them"
                )
        yield mount, problems
    finally:
        os.close(mount)


def not_carried(plan: Sequence[Action], state: MountpointState) -> list[str]:
    """Return a sentence for each mount inside an overlay that the planned switch would leave behind. Change nothing.

    Raises OverlayError if the switch would raise it.
    """
    for action in plan:
        # Creating an overlay with an upper layer writes to that layer, so it is not tried.
        if isinstance(action, SwitchOverlay) and not action.spec.writable and state.mount and state.inner:
            with new_tree(action.spec, state.mount, state.inner, action.inner) as (_tree, problems):
                return problems
    return []


def check_unchanged(old: Mount, inside: Sequence[Mount]) -> None:
    """Check that nothing was mounted inside ``old`` since ``inside`` was observed. Raises OverlayError naming what was."""
    known = {one.id for one in inside}
    new = [one for one in mountinfo.inside(namespaces.own_mounts(), old) if one.id not in known]
    if new:
        raise OverlayError(
            f"{listed(new)} was mounted while the overlay at {show(old.path)} was switched, so the old overlay is still mounted: run the"
            " task again, which carries it over"
        )


def _with_copies(mount: int, old: Mount, inner: Sequence[Mount]) -> tuple[int, list[str]]:
    """Return a detached tree: the detached ``mount`` with copies of the ``inner`` mounts of ``old``; and those that it lacks.

    ``old`` is the topmost mount at its path. What the tree lacks is a sentence for each mount.
    """
    with held_root(old) as root:
        try:
            tree = syscalls.clone_mounts(root)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return os.dup(mount), [f"{show(one.path)} is in an overlay that is unbindable" for one in inner]
    wanted = Counter(one.path[len(old.path) :] for one in inner)

    def build() -> tuple[int, list[str]]:
        namespaces.make_private()
        problems = _move_inner_mounts(mount, tree, old.path, wanted)
        with _held(old.path + _NEW) as new:
            return syscalls.clone_mounts(new), problems

    try:
        return creating.mount_from_child(build)
    finally:
        os.close(tree)


def _move_inner_mounts(mount: int, tree: int, path: bytes, wanted: Counter[bytes]) -> list[str]:
    """Move the mounts inside ``tree`` to the same places in ``mount``; return a sentence for each that has no place there.

    ``wanted`` counts the mounts at each place. Call this in a private mount namespace.
    """
    syscalls.mount(b"tmpfs", path, b"tmpfs", 0, b"mode=0700")
    for place, one in ((_OLD, tree), (_NEW, mount)):
        os.mkdir(path + place)
        syscalls.move_mount(one, path + place)
    os.mkdir(path + _MOVED)
    top = path + _OLD
    live = namespaces.mounts_of()
    old = mountinfo.stack(live, top)[0]
    parts, inner = tree_parts.split(old, mountinfo.inside(live, old))
    # The tree becomes private, so that moving mounts out of it does not take them from its peers. The kernel moves nothing off a shared
    # mount, so where mounts cover each other the inner ones become private too.
    stacked = len({one.path for one in inner}) < len(inner)
    syscalls.set_propagation(tree, syscalls.MS_PRIVATE | (syscalls.MS_REC if stacked else 0))
    for part in _visible(tree, old, parts):
        syscalls.set_propagation(part, syscalls.MS_PRIVATE)
    found = Counter(one.path[len(top) :] for one in inner)
    problems = [f"{show(path + one)} is unbindable, so the kernel does not copy it" for one in sorted(wanted - found)]
    with _held(path + _NEW) as new:
        for place, moved in reversed(_moved_aside(tree, old, path + _MOVED)):
            problem = _attach_at(moved, new, place)
            if problem:
                problems.append(f"{show(path + place)} {problem}")
            os.close(moved)
    return problems


def _moved_aside(tree: int, old: Mount, aside: bytes) -> list[tuple[bytes, int]]:
    """Move the mounts directly on ``old`` aside, topmost first; return their places and descriptors in that order."""
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
                f"the path to the mount {show(old.path + place)} changed during the run: nothing was changed; run the task again"
            )
        # A directory is mounted on a directory and a file on a file. Asking an inner mount for its type would hang if its server is gone.
        slot = aside + b"/%d" % len(moved)
        _move_to_slot(mount, slot)
        moved.append((place, mount))


def _movable(live: Sequence[Mount], old: Mount) -> Iterator[Mount]:
    """Yield the mounts that can be moved now: those on ``old``, and those that cover one of them, unless another one covers them.

    The parts of a tree stay, and mounts on them can be moved.
    """
    parts, _inner = tree_parts.split(old, mountinfo.inside(live, old))
    kept = {one.id for one in parts}
    holders = {old.id, *kept}
    direct = {one.id: one for one in live if one.parent in holders and one.path != old.path and one.id not in kept}
    for one in direct.values():
        for top in reversed(mountinfo.stack(live, one.path)):
            if mountinfo.top_mount(live, one.path) == top:
                yield top


def _move_to_slot(mount: int, slot: bytes) -> None:
    """Move a mount to ``slot``, which is made a directory or a file, whichever the kernel accepts."""
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


def _attach_at(mount: int, new: int, place: bytes) -> str:
    """Attach a mount at its place in the new overlay; return why it has none, or an empty string."""
    try:
        target = beneath.open_at(new, place[1:], beneath.HOLD)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return _SYMLINK
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
        return "has no place in the new overlay, which has nothing of that name"
    try:
        mode = os.fstat(target).st_mode
        if stat.S_ISLNK(mode):
            return _SYMLINK
        syscalls.move_mount_to(mount, target)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTDIR):
            raise
        there, mounted = ("directory", "file") if stat.S_ISDIR(mode) else ("file", "directory")
        return f"has no place in the new overlay, which has a {there} of that name, and the mount is of a {mounted}"
    finally:
        os.close(target)
    return ""


@contextlib.contextmanager
def held_root(mount: Mount) -> Iterator[int]:
    """Provide a descriptor of the root of ``mount``. Raises OverlayError if it is no longer the topmost mount at its path."""
    with _held(mount.path) as fd:
        if beneath.mount_of(fd) != mount.id:
            raise OverlayError(
                f"another program mounted at {show(mount.path)} during the run: nothing was changed; run the task again"
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
    """Make the inner mounts of ``old`` that hold other mounts private. ``root`` is a descriptor of the root of ``old``.

    Unmounting propagates: without this, detaching ``old`` would unmount what is mounted in the places that these were bound from.
    """
    holders = {one.parent for one in inner}
    for mount in _visible(root, old, inner):
        if beneath.mount_of(mount) in holders:
            syscalls.set_propagation(mount, syscalls.MS_PRIVATE | syscalls.MS_REC)


def detach_all(root: int, old: Mount, inner: Collection[Mount]) -> None:
    """Detach the inner mounts of ``old``. ``root`` is a descriptor of the root of ``old``, which another mount may cover."""
    for _mount in inner:
        # Each may have covered another one.
        for mount in _visible(root, old, inner):
            syscalls.detach_mount(mount)


def keep_private(new: Mount, was: Collection[Mount], inner: Collection[Mount]) -> None:
    """Make those of the ``inner`` mounts of ``new`` private that were private in ``was``. ``new`` is the topmost mount at its path.

    The kernel makes a mount shared that is attached to a shared mount.
    """
    private = {one.path for one in was if not one.propagation}
    with held_root(new) as root:
        for one in inner:
            if one.path in private and one.propagation:
                place = one.path[len(new.path) + 1 :]
                with contextlib.suppress(FileNotFoundError, NotADirectoryError), _mount_at(root, place) as mount:
                    if beneath.mount_of(mount) == one.id:
                        syscalls.set_propagation(mount, syscalls.MS_PRIVATE)


@contextlib.contextmanager
def _mount_at(root: int, place: bytes) -> Iterator[int]:
    mount = syscalls.hold_mount(root, place)
    try:
        yield mount
    finally:
        os.close(mount)


def _visible(root: int, old: Mount, inner: Collection[Mount]) -> Iterator[int]:
    """Yield a descriptor of the topmost inner mount at each place directly on ``old``."""
    known = {one.id for one in inner}
    for place in sorted({one.path[len(old.path) + 1 :] for one in inner if one.parent == old.id}):
        # A mount may cover the path to it.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), _mount_at(root, place) as mount:
            if beneath.mount_of(mount) in known:
                yield mount
