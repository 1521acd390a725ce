# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that only root can replace the target of a path, as sshd does with StrictModes.

A layer decides which files a view shows. A user who can write to it, or rename a directory above it, can become root. Every run checks
this, also a run that changes nothing. Each component of the path is opened below the one before, without following symbolic links, and the
descriptor is what is checked. Paths below a directory that has passed are safe, since only root can change them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

#: The most symbolic links that the kernel follows in one path (path_resolution(7)).
_MOST_LINKS = 40


@dataclass(frozen=True)
class _Step:
    """A component of a path."""

    path: bytes
    status: os.stat_result
    is_last: bool


def check_state_dir(state_dir: str) -> bool:
    """Return whether the state directory exists. Raises OverlayError if others than root can write to it or replace it."""
    return check_way(os.fsencode(state_dir))


def check_own(path: str, *kinds: int) -> bool:
    """Return whether ``path`` exists. Its directory has passed a check already.

    Raises OverlayError if it has another type than ``kinds`` (such as stat.S_IFDIR), or if others than root can write to it.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    kind = stat.S_IFMT(status.st_mode)
    if kind not in kinds:
        if kind == stat.S_IFLNK:
            raise linked(os.fsencode(path))
        raise OverlayError(f"{show(os.fsencode(path))} has the wrong file type, and the name is needed: remove it")
    if status.st_uid != os.geteuid() or (kind != stat.S_IFLNK and status.st_mode & _OTHERS_WRITE):
        raise _writable(os.fsencode(path), status)
    return True


def check_way(path: bytes, unless_hidden: bool = False) -> bool:
    """Return whether ``path`` exists. Raises OverlayError if others than root can write to it or replace it.

    With ``unless_hidden``, the check ends at the first directory that only root may enter.
    """
    reached = False
    for step in _steps(path):
        mode, uid = step.status.st_mode, step.status.st_uid
        owned = uid == os.geteuid() or (uid == 0 and not step.is_last)
        # In a sticky directory others may add names, but not remove those of root.
        open_to_others = mode & _OTHERS_WRITE and not stat.S_ISLNK(mode) and (step.is_last or not mode & stat.S_ISVTX)
        if not owned or open_to_others:
            raise _writable(step.path, step.status)
        reached = step.is_last
        if unless_hidden and stat.S_ISDIR(mode) and not mode & 0o077:
            return True
    return reached


def is_hidden(path: bytes) -> bool:
    """Return whether a directory on the way to ``path``, or the path itself, is one that only root may enter."""
    statuses = [step.status for step in _steps(path)]
    return any(stat.S_ISDIR(one.st_mode) and not one.st_mode & 0o077 and one.st_uid == 0 for one in statuses)


def _steps(path: bytes) -> Iterator[_Step]:
    """Yield the components of a path as far as they exist: each symbolic link, followed by the components of its target."""
    left = [part for part in path.split(b"/") if part]
    links = 0
    #: Descriptors and names of the directories from the root to the current one.
    way = [(os.open(b"/", syscalls.HOLD), b"")]
    try:
        yield _Step(b"/", os.fstat(way[0][0]), not left)
        while left:
            part = left.pop(0)
            if part == b".." and len(way) > 1:
                os.close(way.pop()[0])
            if part in (b".", b".."):
                continue
            try:
                fd = os.open(part, syscalls.HOLD, dir_fd=way[-1][0])
            except (FileNotFoundError, NotADirectoryError):
                return
            here = b"/".join((*(name for _fd, name in way), part))
            status = os.fstat(fd)
            if not stat.S_ISLNK(status.st_mode):
                way.append((fd, part))
                yield _Step(here, status, not left)
                continue
            links += 1
            try:
                yield _Step(here, status, is_last=False)
                target = os.readlink(b"", dir_fd=fd)
            finally:
                os.close(fd)
            if links > _MOST_LINKS:
                raise OverlayError(f"{show(path)} has too many symbolic links: give a path with fewer")
            left = [part for part in target.split(b"/") if part] + left
            if target.startswith(b"/"):
                while len(way) > 1:
                    os.close(way.pop()[0])
    finally:
        for fd, _name in way:
            os.close(fd)


def _writable(path: bytes, status: os.stat_result) -> OverlayError:
    return OverlayError(
        f"{show(path)} belongs to uid {status.st_uid} and has mode {stat.S_IMODE(status.st_mode):04o}: only root may be able to write"
        " there, since a layer decides which files a view shows; check its content, then chown it to root and chmod it to go-w"
    )


def linked(path: bytes) -> OverlayError:
    """Return the error about a symbolic link in a state directory."""
    return OverlayError(
        f"{show(path)} is a symbolic link: below a state directory only 'current' and 'previous' may be links; remove it, and give"
        " another 'state_dir' to keep the files elsewhere"
    )
